"""Workers are replaced one after the other, and their models come back."""

from __future__ import annotations

from dataclasses import replace

from tfpool.broker.fleet import WorkerState
from tfpool.broker.rolling import Replacement, Stage
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State
from tfpool.testing.world import World, model, put, ready, settled
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_rules import check_rest


def where(world: World) -> dict[str, list[str]]:
    return {name: sorted(found.versions[1].serving()) for name, found in world.registry.models.items()}


def replaced(world: World, *names: str) -> list[Replacement]:
    """Workers, once they have been replaced."""
    found = world.rolling.begin([world.fleet.links[name] for name in names], "restart")
    world.settle()
    check_rest(world)
    return found


def test_all_are_replaced_and_models_come_back() -> None:
    world = ready(*(model(name) for name in "abcd"), workers=2)
    before = where(world)
    generations = [link.generation for link in world.fleet.links.values()]
    asked = [world.request(name) for name in "abcd"]
    done = replaced(world, "w0", "w1")
    assert [one.stage for one in done] == [Stage.DONE] * 2
    assert [link.generation for link in world.fleet.links.values()] == [number + 1 for number in generations]
    assert where(world) == before
    assert [world.answered(number) for number in asked] == [1] * 4
    assert not any(link.closed or link.drained for link in world.fleet.links.values())


def test_models_are_served_all_the_time() -> None:
    world = ready(*(model(name) for name in "abcd"), workers=2)
    world.rolling.begin(list(world.fleet.links.values()), "restart")
    for _ in range(200):
        world.turn()
        assert all(where(world).values()), "somebody serves each of them at every moment"
        if not world.step_once():
            break
    assert not world.rolling.busy


def test_one_worker_alone_is_replaced_in_place() -> None:
    world = ready(model(), workers=1)
    generation = world.fleet.links["w0"].generation
    waiting = world.request("m")
    replaced(world, "w0")
    assert world.answered(waiting) == 1
    assert world.fleet.links["w0"].generation == generation + 1
    assert where(world) == {"m": ["w0"]}


def test_what_finds_no_room_elsewhere_waits_for_the_new_process() -> None:
    world = ready(model("a"), model("b"), workers=2, memory=(BASE + 3 * MIB) * 10 // 9)
    for name in "ab":
        world.disk.sizes[f"/{name}/1"] = 2 * MIB
    for name in ("w0", "w1"):
        world.lose(name)
    world.settle()
    before = where(world)
    (one,) = replaced(world, before["a"][0])
    assert not one.away
    assert where(world) == before
    assert world.answered(settled(world, world.request("a"))) == 1


def test_replicas_stay_where_they_are() -> None:
    world = ready(model(replicas=(2, 2)), workers=2)
    replaced(world, "w0", "w1")
    assert where(world) == {"m": ["w0", "w1"]}


def test_a_worker_that_dies_on_its_own_needs_no_more() -> None:
    world = ready(model("a"), model("b"), workers=2)
    (name,) = world.model("a").versions[1].serving()
    (one,) = world.rolling.begin([world.fleet.links[name]], "restart")
    world.turn()
    assert one.stage is Stage.LEAVING
    world.lose(name)
    world.settle()
    check_rest(world)
    assert one.stage is Stage.DONE
    assert world.fleet.links[name].generation == one.generation + 1
    assert all(where(world).values())


def test_one_that_is_halted_fails_and_the_next_has_its_turn() -> None:
    world = ready(model("a"), model("b"), workers=3)
    first, second = world.rolling.begin([world.fleet.links["w0"], world.fleet.links["w1"]], "restart")
    world.turn()
    world.lose("w0")
    link = world.fleet.links["w0"]
    link.state = WorkerState.HALTED
    world.turnover.halted(link)
    world.turn()
    assert first.stage is Stage.FAILED
    assert first.error is not None
    assert "w0 does not come back" in first.error.message
    assert not link.closed
    assert world.rolling.under_way() == [second]


def test_nobody_is_replaced_twice() -> None:
    world = ready(model(), workers=2)
    links = [world.fleet.links["w0"]]
    assert world.rolling.begin(links, "restart") == world.rolling.begin(links, "hand")
    world.settle()
    assert world.fleet.links["w0"].generation == 2
    assert not world.rolling.busy


def test_new_models_go_elsewhere_while_a_worker_is_left() -> None:
    world = ready(model("a"), model("b"), workers=2)
    world.rolling.begin([world.fleet.links["w0"]], "restart")
    world.turn()
    assert [link.name for link in world.fleet.candidates()] == ["w1"]
    world.settle()
    assert len(world.fleet.candidates()) == 2
    assert world.model("a").versions[1].state is State.AVAILABLE


def test_the_memory_of_the_process_before_is_seen_to_come_back() -> None:
    world = ready(model(), workers=1)
    world.fleet.links["w0"].unique = BASE + 100 * MIB
    (one,) = replaced(world, "w0")
    assert one.returned is not None
    assert one.returned >= 98 * MIB


def test_what_is_on_its_way_already_is_waited_for() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (source,) = version.serving()
    target = "w1" if source == "w0" else "w0"
    world.migrations.begin(version, Kind.MIGRATE, source, target, "hand")
    (one,) = world.rolling.begin([world.fleet.links[source]], "restart")
    for _ in range(200):
        world.turn()
        assert version.serving(), "somebody serves it at every moment"
        if not world.step_once():
            break
    check_rest(world)
    assert one.stage is Stage.DONE
    assert version.serving() == [target], "where somebody wanted it"


def test_what_somebody_has_begun_to_move_on_does_not_come_back() -> None:
    world = ready(model(), workers=3)
    version = world.model().versions[1]
    (source,) = version.serving()
    (one,) = world.rolling.begin([world.fleet.links[source]], "restart")
    world.turn()
    (away,) = one.moves
    (third,) = {"w0", "w1", "w2"} - {source, away.target}
    while one.stage is not Stage.RESTARTING:
        world.turn()
        assert world.step_once() or one.stage is Stage.RESTARTING
    world.migrations.begin(version, Kind.MIGRATE, away.target, third, "hand")
    world.settle()
    check_rest(world)
    assert one.stage is Stage.DONE
    assert version.serving() == [third]


def test_what_began_while_a_worker_was_closed_gets_its_replicas_there_too() -> None:
    world = ready(model("a"), workers=2)
    world.rolling.begin([world.fleet.links["w0"]], "restart")
    world.turn()
    world.lifecycle.add(model("b", replicas=(2, 2)))
    put(world, 1, name="b")
    world.settle()
    check_rest(world)
    assert where(world)["b"] == ["w0", "w1"]


def test_nothing_is_said_of_the_memory_of_one_that_died_by_itself() -> None:
    world = ready(model("a"), model("b"), workers=2)
    (name,) = world.model("a").versions[1].serving()
    (one,) = world.rolling.begin([world.fleet.links[name]], "restart")
    world.turn()
    world.lose(name)
    world.settle()
    assert one.stage is Stage.DONE
    assert one.returned is None or one.returned >= 0


def test_a_model_that_keeps_a_state_stays_until_its_worker_goes() -> None:
    world = ready(model())
    version = world.model().versions[1]
    (signature,) = version.signatures
    world.signatures = version.signatures = (replace(signature, mutates=True),)
    (name,) = version.serving()
    world.rolling.begin([world.fleet.links[name]], "restart")
    world.turn()
    assert not world.migrations.active
    world.settle()
    assert version.serving() == [name]


def test_models_go_to_all_others_where_memory_has_no_limit() -> None:
    world = ready(*(model(f"m{number}") for number in range(12)), workers=4)
    (one,) = world.rolling.begin([world.fleet.links["w0"]], "restart")
    world.turn()
    assert len(one.moves) == 3
    assert {move.target for move in one.moves} == {"w1", "w2", "w3"}
    world.settle()
    check_rest(world)


def test_all_are_asked_for_twice() -> None:
    world = ready(model("a"), model("b"), workers=3)
    links = list(world.fleet.links.values())
    first = world.rolling.begin(links, "restart")
    world.turn()
    assert world.rolling.begin(links, "restart") == first
    world.settle()
    check_rest(world)
    assert [link.generation for link in links] == [2, 2, 2]
    assert world.rolling.begin(links, "restart") != first, "those are over"
    world.settle()
    assert [link.generation for link in links] == [3, 3, 3]


def test_one_that_is_not_there_is_waited_for() -> None:
    world = ready(model("a"), model("b"), workers=2)
    world.lose("w0")
    world.bells.pop("w0")
    (one,) = world.rolling.begin([world.fleet.links["w0"]], "restart")
    for _ in range(10):
        world.turn()
        world.step_once()
    assert one.stage is Stage.WAITS
    assert not world.fleet.links["w0"].closed
    world.join("w0")
    world.settle()
    check_rest(world)
    assert one.stage is Stage.DONE


def test_a_worker_that_is_drained_meanwhile_is_in_service_when_it_comes_back() -> None:
    world = ready(model("a"), model("b"), workers=3)
    link = world.fleet.links["w0"]
    (one,) = world.rolling.begin([link], "restart")
    world.turn()
    world.turnover.vacate(link)
    world.settle()
    check_rest(world)
    assert one.stage is Stage.DONE
    assert (link.state, link.drained) == (WorkerState.READY, False)
    assert all(where(world).values())
