from __future__ import annotations

import pytest

from tfpool.broker.budget import GUESS_BYTES, GUESS_FACTOR, MARGIN_BYTES, Budget
from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.registry import Version
from tfpool.repository.memo import Footprint
from tfpool.settings import ModelSettings, WorkerSettings
from tfpool.types import ModelKey

MIB = 1 << 20
BASE = 100 * MIB


def link(memory: int | None = 200 * MIB * 10 // 9) -> Link:
    """Loads may fill 200 MiB of its budget."""
    made = Link(WorkerSettings("w", memory=memory), WorkerState.READY)
    made.base = made.unique = BASE
    return made


def version(handle: int, disk: int = MIB) -> Version:
    made = Version(ModelKey("m", handle, handle), f"/m/{handle}", ModelSettings("m", "/m"))
    made.fingerprint, made.disk_bytes = f"print {handle}", disk
    return made


def budget(known: dict[int, Footprint] | None = None) -> tuple[Budget, dict[str, Footprint]]:
    footprints = {f"print {handle}": found for handle, found in (known or {}).items()}
    return Budget(footprints, footprints.__setitem__), footprints


def test_what_was_measured_is_known_the_next_time() -> None:
    made, footprints = budget()
    worker, one = link(), version(1, 2 * MIB)
    assert made.need(worker, one) == GUESS_FACTOR * 2 * MIB + GUESS_BYTES
    worker.reserved[1] = made.need(worker, one)
    made.admitted(worker, one, Footprint(5 * MIB, 7 * MIB, 0.5))
    assert (worker.reserved, worker.resident) == ({}, {1: 5 * MIB})
    assert footprints == {"print 1": Footprint(5 * MIB, 7 * MIB, 0.5)}
    again = version(2)
    again.fingerprint = "print 1"
    assert made.need(worker, again) == 7 * MIB + MARGIN_BYTES
    again.disk_bytes = 300 * MIB
    assert made.need(worker, again) == 100 * MIB, "an empty worker has room, for it has been there before"


def test_a_guess_leaves_everybody_a_chance() -> None:
    made, _ = budget()
    assert made.need(link(), version(1, 99 * MIB)) == 100 * MIB, "all that there is"
    assert made.missing(link(), version(1, 99 * MIB)) == 0
    assert made.need(link(None), version(1, 99 * MIB)) == GUESS_FACTOR * 99 * MIB + GUESS_BYTES
    assert made.missing(link(None), version(1, 1 << 50)) == 0


def test_what_can_never_fit() -> None:
    made, _ = budget({2: Footprint(MIB, 150 * MIB, 1.0), 3: Footprint(MIB, 100 * MIB, 1.0)})
    assert made.impossible(link(), version(1, 100 * MIB)) is None
    files = made.impossible(link(), version(1, 101 * MIB))
    assert files is not None
    assert files.message == (
        "it has files of 101.0 MiB; worker w has 100.0 MiB for models "
        "(of a budget of 222.2 MiB, 100.0 MiB are its own and 22.2 MiB are kept free)"
    )
    measured = made.impossible(link(), version(2, 1))
    assert measured is not None
    assert "was measured to take 150.0 MiB" in measured.message
    assert made.impossible(link(), version(3, 1)) is None
    assert made.impossible(link(None), version(2, 1 << 50)) is None


def test_what_is_missing_counts_the_larger_of_what_is_told_and_what_is_known() -> None:
    made, _ = budget({1: Footprint(30 * MIB, 30 * MIB, 1.0)})
    worker = link()
    need = 30 * MIB + MARGIN_BYTES
    assert made.missing(worker, version(1)) == need - 100 * MIB
    worker.resident[7] = 60 * MIB  # it has not been told of yet
    assert made.missing(worker, version(1)) == need - 40 * MIB
    worker.unique = BASE + 80 * MIB
    assert made.missing(worker, version(1)) == need - 20 * MIB
    worker.reserved[8] = 15 * MIB
    assert made.missing(worker, version(1)) == need - 5 * MIB
    assert made.excess(worker) == -5 * MIB
    assert made.missing(worker, version(9, MIB), guess=False) == MIB - 5 * MIB, "one that was never measured"
    assert made.missing(worker, version(1), guess=False) == need - 5 * MIB
    assert made.residue(worker) == 20 * MIB


def test_what_is_leaving_gives_back() -> None:
    made, _ = budget()
    worker = link()
    worker.resident.update({1: 10, 2: 20, 3: 40})
    worker.unloading.update({2, 3, 9})
    assert made.leaving(worker) == 60


def test_the_least_valuable_leave_and_come_back_with_their_fame() -> None:
    made, _ = budget()
    worker = link()
    versions = [version(i) for i in range(1, 5)]
    for one in versions:
        made.admitted(worker, one, Footprint(10 * MIB, 10 * MIB, 1.0))
    made.hit(versions[0], 50)
    made.hit(versions[1], 10)
    assert [v.handle for v in made.victims(15 * MIB, versions)] == [3, 4]
    assert made.victims(15 * MIB, versions[:1]) == [], "all together do not suffice"
    assert made.victims(0, versions) == []
    made.released(worker, 1, evicted=True, elsewhere=False)
    assert worker.resident.keys() == {2, 3, 4}
    made.admitted(worker, versions[0], Footprint(10 * MIB, 10 * MIB, 1.0))
    assert {v.handle for v in made.victims(25 * MIB, versions)} == {2, 3, 4}, "it is known from before"


@pytest.mark.parametrize("evicted", [False, True])
def test_one_that_others_hold_stays_known(evicted: bool) -> None:
    made, _ = budget()
    first, second, one = link(), link(), version(1)
    for worker in (first, second):
        made.admitted(worker, one, Footprint(10 * MIB, 10 * MIB, 1.0))
    made.released(first, 1, evicted=False, elsewhere=True)
    assert made.victims(MIB, [one]) == [one]
    made.released(second, 1, evicted=evicted, elsewhere=False)
    made.released(second, 1, evicted=evicted, elsewhere=False)  # told twice
    assert made.victims(MIB, [one]) == []
