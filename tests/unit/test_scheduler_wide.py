"""Servables on many workers."""

from __future__ import annotations

from random import Random

import pytest

from tfpool.scheduler import events as ev
from tfpool.testing.desk import FLAT, Desk, make_spec


def test_on_a_wide_route_one_row_goes_to_one_worker_and_many_to_all() -> None:
    desk = Desk(make_spec(), workers="abcde", points=FLAT, narrow=2)
    desk.ask()
    assert desk.turn() == [[0]]
    desk.ask(8)
    assert [len(batch) for batch in desk.turn()] == [2, 2, 2, 2]
    assert {batch.worker for batch in desk.sent} == set("abcde")
    desk.ask(3)
    assert desk.turn() == []
    desk.end("d")
    assert desk.turn() == [[9, 10, 11]]
    assert desk.sent[-1].worker == "d"


@pytest.mark.parametrize("seed", range(10))
def test_on_wide_routes_nobody_idles_while_something_waits(seed: int) -> None:
    """Whatever comes between: drained, lost and unrouted workers, of two models that not all of them serve."""
    random = Random(seed)
    specs = [make_spec(0, "one", max_rows=3), make_spec(1, "two", max_rows=2, priority=random.randint(0, 1))]
    desk = Desk(*specs, workers="abcde", points=random.choice([FLAT, [(1, 0.0005), (64, 0.0005)], ()]), narrow=2)
    draining: set[str] = set()
    closed: set[tuple[str, str]] = set()
    for _ in range(120):
        name, spec = random.choice("abcde"), random.choice(specs)
        step = random.choice(["ask", "ask", "ask", "end", "end", "end", "drain", "die", "route"])
        if step == "ask":
            desk.ask(random.randint(1, 7), of=spec, priority=random.randint(0, 1), within=random.choice([0.02, 9.0]))
        elif step == "end" and desk.batches[name]:
            desk.end(name, after=random.choice([0.0, 0.003, 0.01]))
        elif step == "drain":
            draining ^= {name}
            desk.tell(ev.Drain(name, name in draining))
        elif step == "die":
            desk.kill(name)
            draining.discard(name)
            closed = {place for place in closed if place[0] != name}
        elif step == "route":
            place = (name, spec.servable.name)
            closed ^= {place}
            desk.tell(ev.Unrouted(spec.servable, name) if place in closed else ev.Routed(spec.servable, name))
        if random.random() < 0.7:
            desk.turn()
            for queue in desk.scheduler.backlog.waiting():
                for worker, batches in desk.batches.items():
                    idle = not batches and worker not in draining
                    assert not idle or (worker, queue.spec.servable.name) in closed, f"{worker} idles"


@pytest.mark.parametrize("leaves", ["drained", "unrouted", "lost"])
def test_when_the_worker_that_was_told_cannot_another_takes_it(leaves: str) -> None:
    desk = Desk(make_spec(), workers="abcde", points=FLAT, narrow=2)
    desk.ask()
    if leaves == "drained":
        desk.tell(ev.Drain("a", True))
    elif leaves == "unrouted":
        desk.tell(ev.Unrouted(desk.specs[0].servable, "a"))
    else:
        desk.tell(ev.WorkerLost("a", "signal 9"))
    assert desk.turn() == [[0]]
    assert desk.sent[0].worker == "b"
