"""The verbs that move models and replace workers, asked of a broker without its sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tfpool.broker import moving, plans, verbs
from tfpool.broker.fleet import WorkerState
from tfpool.broker.later import Later
from tfpool.broker.registry import Version
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, TfpoolError, Unavailable
from tfpool.settings import Loading
from tfpool.testing.world import World, model, put, ready
from tfpool.testing.world_fakes import BASE, MIB
from tfpool.testing.world_plans import planner
from tfpool.testing.world_rules import check_rest
from tfpool.wire.messages import Call


class Asked:
    """A broker that is a world, and its answers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broker: Any = SimpleNamespace(
            registry=world.registry,
            fleet=world.fleet,
            migrations=world.migrations,
            reforms=world.reforms,
            turnover=world.turnover,
            rolling=world.rolling,
            planning=planner(world),
        )

    def begin(self, verb: str, **arguments: Any) -> Any:
        """The answer, or the Later that has its question."""
        try:
            return verbs.answer(self.broker, Call(1, verb, arguments, 1000), admin=True)
        except Later as later:
            return later

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The answer, once it is there; questions are asked once a turn, after everything else."""
        found = self.begin(verb, **arguments)
        for _ in range(500):
            if not isinstance(found, Later):
                return found
            self.world.turn()
            self.broker.planning.step(self.world.now)
            answer = found.question()
            if answer is not None:
                return answer
            if not self.world.step_once():
                self.world.now += 1.0
        raise AssertionError("it is never answered")

    def version(self, name: str = "m") -> Version:
        return self.world.model(name).versions[1]

    def places(self, name: str = "m") -> tuple[str, str]:
        """The worker that serves a version, and another."""
        (here,) = self.version(name).serving()
        return here, "w1" if here == "w0" else "w0"


def test_a_model_is_moved() -> None:
    asked = Asked(ready(model()))
    here, there = asked.places()
    row = asked.ask("migrate", model="m", to=there)
    assert (row["name"], row["version"], row["workers"], row["load_seconds"]) == ("m", 1, [there], 0.5)
    check_rest(asked.world)
    (told,) = [plans.migration_row(one) for one in asked.world.migrations.all()]
    assert (told["source"], told["target"], told["by"], told["phase"], told["error"]) == (
        here,
        there,
        "hand",
        "DONE",
        None,
    )


def test_the_busiest_lets_go_where_nobody_is_named() -> None:
    asked = Asked(ready(model(replicas=(2, 2)), workers=3))
    first, second = asked.version().serving()
    (third,) = asked.world.fleet.links.keys() - {first, second}
    asked.world.fleet.links[second].busy_share = 0.5
    row = asked.ask("migrate", model="m", to=third, version=1)
    assert row["workers"] == sorted([first, third])
    row = asked.ask("migrate", model="m", to=second, source=third)
    assert row["workers"] == sorted([first, second])
    check_rest(asked.world)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": "x", "to": "w1"}, NotFound, "no model 'x'"),
        ({"model": "m", "to": "w9"}, NotFound, "no worker 'w9'; there are w0, w1"),
        ({"model": "m", "to": "w1", "version": 7}, NotFound, "no version 7"),
        ({"model": "m", "to": "w1", "version": -1}, NotFound, "no version -1"),
        ({"model": "m", "to": "w1", "version": 1 << 80}, NotFound, "no version 1208925819614629174706176"),
        ({"model": "m", "to": "w1", "version": True}, InvalidArgument, "got bool, expected int"),
        ({"model": "m", "to": 3}, InvalidArgument, "to: got int, expected str"),
        ({"model": "m"}, InvalidArgument, "missing 1 required positional argument: 'to'"),
        ({"model": "m", "to": "w1", "force": 1}, InvalidArgument, "unexpected keyword argument 'force'"),
        ({"model": "m", "to": "w1", "source": "w1"}, FailedPrecondition, "m:1 cannot leave w1: it is served by w0"),
        ({"model": "m", "to": "w1", "source": ""}, NotFound, "no worker ''"),
        ({"model": "m", "to": "w0"}, FailedPrecondition, r"m:1 is on w0 already \(AVAILABLE\)"),
        ({"model": "pinned", "to": "w1"}, FailedPrecondition, "pinned:1 is pinned to w0; w1 may not hold it"),
        ({"model": "lazy", "to": "w1"}, FailedPrecondition, "lazy:1 is UNLOADED, expected AVAILABLE"),
        ({"model": "explicit", "to": "w1"}, NotFound, "explicit:1 is unloaded"),
    ],
)
def test_what_cannot_be_moved(arguments: dict[str, Any], error: type[TfpoolError], says: str) -> None:
    settings = (
        model(pin=("w0",)),
        model("pinned", pin=("w0",)),
        model("lazy", preload=Loading.LAZY),
        model("explicit", preload=Loading.EXPLICIT),
    )
    world = ready(*settings)
    version = world.model().versions[1]
    version.settings = model()
    assert version.serving() == ["w0"]
    with pytest.raises(error, match=says):
        Asked(world).begin("migrate", **arguments)
    assert not world.migrations.active
    check_rest(world)


def test_one_way_at_a_time() -> None:
    asked = Asked(ready(model(), workers=3))
    here, there = asked.places()
    (third,) = asked.world.fleet.links.keys() - {here, there}
    assert isinstance(asked.begin("migrate", model="m", to=there), Later)
    with pytest.raises(FailedPrecondition, match=f"m:1 is on its way to {there} already"):
        asked.begin("migrate", model="m", to=third)


def test_a_move_that_fails_says_why() -> None:
    asked = Asked(ready(model()))
    asked.world.broken.add("/m/1")
    here, there = asked.places()
    with pytest.raises(FailedPrecondition, match="/m/1: broken"):
        asked.ask("migrate", model="m", to=there)
    assert asked.version().serving() == [here]
    later = asked.begin("migrate", model="m", to=there)
    asked.world.lifecycle.unload(asked.world.model(), asked.version())
    asked.world.turn()
    with pytest.raises(FailedPrecondition, match="m:1 was unloaded, or wanted elsewhere, while it moved"):
        later.question()


def test_the_model_is_removed_while_it_moves() -> None:
    asked = Asked(ready(model("m"), model("n")))
    later = asked.begin("migrate", model="m", to=asked.places()[1])
    asked.world.lifecycle.remove(asked.world.model("m"))
    asked.world.settle()
    with pytest.raises(TfpoolError, match="m"):
        later.question()
    check_rest(asked.world)
    assert [plans.migration_row(one)["model"] for one in asked.world.migrations.all()] == ["m"], "it is still told"


def test_odd_names_are_told_as_they_are() -> None:
    name = "a:b/ü 模型"
    asked = Asked(ready(model(name)))
    here, there = asked.places(name)
    assert asked.ask("migrate", model=name, to=there)["workers"] == [there]
    (row,) = [plans.migration_row(one) for one in asked.world.migrations.all()]
    assert (row["model"], row["version"]) == (name, 1)
    assert here != there


def test_only_an_admin_moves() -> None:
    asked = Asked(ready(model()))
    for verb in moving.VERBS:
        with pytest.raises(PermissionDenied, match=f"{verb} is an admin verb"):
            verbs.answer(asked.broker, Call(1, verb, {}, 1000), admin=False)


# -- workers -------------------------------------------------------------------------------------------------------


def test_a_worker_is_drained_and_comes_back() -> None:
    asked = Asked(ready(model("m"), model("n")))
    link = asked.world.fleet.links["w0"]
    row = asked.ask("drain", worker="w0")
    assert (row["state"], row["models"]) == ("DRAINING", [])
    assert all(asked.version(name).serving() == ["w1"] for name in "mn")
    assert asked.ask("drain", worker="w0")["models"] == [], "as often as one likes"
    assert asked.ask("restart", worker="w0")["state"] == "READY"
    assert not link.drained
    check_rest(asked.world)


def test_the_last_worker_is_not_drained() -> None:
    asked = Asked(ready(model(), workers=1))
    with pytest.raises(FailedPrecondition, match="no other worker can take the 1 models of w0"):
        asked.begin("drain", worker="w0")
    assert asked.world.fleet.links["w0"].state is WorkerState.READY
    pinned = Asked(ready(model(pin=("w0",))))
    with pytest.raises(Unavailable, match="no worker can take m:1"):
        pinned.begin("drain", worker="w0")
    assert not pinned.world.fleet.links["w0"].drained


@pytest.mark.parametrize("verb", ["drain", "restart"])
def test_a_worker_that_is_not_there(verb: str) -> None:
    asked = Asked(ready(model()))
    with pytest.raises(NotFound, match="no worker 'w7'"):
        asked.begin(verb, worker="w7")
    asked.world.lose("w0")
    with pytest.raises(FailedPrecondition, match="worker w0 is BACKOFF, expected READY"):
        asked.begin(verb, worker="w0")


def test_a_drained_worker_that_is_replaced_meanwhile_is_not_drained() -> None:
    asked = Asked(ready(model("m"), model("n")))
    later = asked.begin("drain", worker="w0")
    assert isinstance(later, Later)
    asked.world.recycle(asked.world.fleet.links["w0"])
    with pytest.raises(FailedPrecondition, match="w0"):
        later.question()
    asked.world.settle()
    check_rest(asked.world)


def test_all_workers_are_replaced_but_those_that_are_drained() -> None:
    asked = Asked(ready(model("m"), model("n"), workers=3))
    asked.ask("drain", worker="w2")
    rows = asked.ask("restart_all")
    assert [(row["name"], row["state"]) for row in rows] == [("w0", "READY"), ("w1", "READY")]
    assert all("returned_bytes" in row for row in rows)
    assert [link.generation for link in asked.world.fleet.links.values()] == [2, 2, 1]
    assert asked.world.fleet.links["w2"].drained
    check_rest(asked.world)


def test_a_worker_that_does_not_come_back_is_told() -> None:
    asked = Asked(ready(model("m"), model("n"), workers=3))
    later = asked.begin("restart", worker="w0")
    asked.world.turn()
    asked.world.lose("w0")
    asked.world.turnover.halted(asked.world.fleet.links["w0"])
    asked.world.turn()
    with pytest.raises(FailedPrecondition, match="worker w0 does not come back: it is halted"):
        later.question()
    rows = asked.begin("restart_all")
    assert isinstance(rows, Later)
    assert [one.link.name for one in asked.world.rolling.under_way()] == ["w1", "w2"]


# -- plans ---------------------------------------------------------------------------------------------------------


def test_a_plan_with_nothing_in_it_is_carried_out_at_once() -> None:
    asked = Asked(ready(model()))
    assert asked.ask("apply") == {"steps": []}


def test_a_plan_waits_for_workers_that_are_being_replaced() -> None:
    asked = Asked(ready(model("m"), model("n")))
    asked.world.rolling.begin([asked.world.fleet.links["w0"]], "restart")
    later = asked.begin("apply")
    assert isinstance(later, Later)
    asked.world.turn()
    asked.broker.planning.step(asked.world.now)
    assert asked.world.rolling.busy
    assert later.question() is None
    asked.world.settle()
    asked.broker.planning.step(asked.world.now)
    assert later.question() == {"steps": []}


def test_a_pool_is_shown_whatever_is_under_way() -> None:
    """A full pool with a model too large for it, one that moves, one that is gone, and a worker that is not there."""
    world = ready(model("m"), model("n"), model("gone"), workers=3, memory=(BASE + 8 * MIB) * 10 // 9)
    asked = Asked(world)
    here, there = asked.places()
    asked.begin("migrate", model="m", to=there)
    world.lifecycle.remove(world.model("gone"))
    world.lose(sorted(world.fleet.links.keys() - {here, there})[0])
    put(world, 1, 2, name="n")
    world.disk.sizes["/n/2"] = 100 * MIB
    world.turn()
    for _ in range(20):
        shown = plans.proposal(asked.broker)
        assert {row["name"] for row in shown["workers"]} == {"w0", "w1", "w2"}
        assert shown["cost"]["now"] >= 0
        world.step_once()
        world.turn()
    assert next(row["phase"] for row in shown["migrations"]) in ("DONE", "ABORTED")


def test_who_applies_twice_gets_one_answer() -> None:
    asked = Asked(ready(model("m"), model("n")))
    asked.world.rolling.begin([asked.world.fleet.links["w0"]], "restart")
    first, second = asked.begin("apply"), asked.begin("apply")
    asked.world.settle()
    asked.broker.planning.step(asked.world.now)
    assert first.question() == second.question() == {"steps": []}
