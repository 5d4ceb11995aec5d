from __future__ import annotations

from dataclasses import replace

import pytest

from tfpool.broker.budget import GUESS_BYTES, GUESS_FACTOR, MARGIN_BYTES, Budget
from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.registry import Version
from tfpool.broker.stored import Stored
from tfpool.repository.memo import Footprint
from tfpool.settings import Form, ModelSettings, WorkerSettings
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


# -- with a store --------------------------------------------------------------------------------------------------

MAPPED = Footprint(2 * MIB, 3 * MIB, 0.05, 20 * MIB)
COSTS = {Form.PLAIN: Footprint(50 * MIB, 60 * MIB, 1.0), Form.MAPPED: MAPPED, Form.INLINED: Footprint(MIB, 30 * MIB, 1)}


def stored(handle: int = 1, form: Form | None = None, refusal: str = "") -> Version:
    made = version(handle)
    made.settings = replace(made.settings, form=form)
    made.stored = Stored("key", refusal, {} if refusal else COSTS, 1.2)
    return made


def test_what_is_compiled_takes_what_was_measured_then() -> None:
    made, _ = budget({1: Footprint(55 * MIB, 65 * MIB, 1.0)})
    assert made.expected(stored()) == MAPPED
    assert made.expected(stored(form=Form.INLINED)) == COSTS[Form.INLINED]
    assert made.need(link(), stored()) == 3 * MIB + MARGIN_BYTES + 20 * MIB
    made.pages.map("w", 7, "key", 20 * MIB)
    assert made.need(link(), stored()) == 3 * MIB + MARGIN_BYTES, "another model maps it there already"
    made.pages.unmap("w", 7)
    made.pages.map("v", 1, "key", 20 * MIB)
    assert made.need(link(), stored()) == 3 * MIB + MARGIN_BYTES + 10 * MIB, "half of it"


def test_what_the_mapped_form_took_says_nothing_of_others() -> None:
    """Of one that is remembered as mapped nothing is known when it has to be loaded plain."""
    known = {1: MAPPED}
    made, _ = budget(known)
    assert made.expected(version(1)) is None, "the store lost it, or there is none any more"
    assert made.expected(stored(form=Form.PLAIN)) is None
    assert made.expected(stored(refusal="it counts")) is None
    unfit = stored()
    unfit.unfit = "it kills"
    assert made.expected(unfit) is None
    assert made.need(link(), version(1, 5 * MIB)) == GUESS_FACTOR * 5 * MIB + GUESS_BYTES
    assert made.expected(stored()) == MAPPED


def test_a_gpu_holds_no_compiled_models() -> None:
    plain = Footprint(55 * MIB, 65 * MIB, 1.0)
    gpu = Link(WorkerSettings("g", "gpu:0", memory=200 * MIB), WorkerState.READY)
    made, _ = budget({1: plain})
    assert made.expected(stored(), gpu) == plain
    assert made.need(gpu, stored()) == 65 * MIB + MARGIN_BYTES
    made, _ = budget()
    assert made.expected(stored(), gpu) is None
    assert made.expected(stored(), link()) == MAPPED


def test_a_change_of_form_moves_bytes_to_the_pages_and_back() -> None:
    made, footprints = budget()
    worker, one = link(), stored()
    made.admitted(worker, one, COSTS[Form.PLAIN])
    assert made.committed(worker) == BASE + 50 * MIB
    worker.reserved[1] = 5
    made.reformed(worker, one, MAPPED, Form.MAPPED, "key")
    assert (worker.reserved, worker.resident, worker.forms) == ({}, {1: 2 * MIB}, {1: Form.MAPPED})
    assert made.committed(worker) == BASE + 22 * MIB
    assert made.gives(worker, 1) == 22 * MIB
    assert footprints["print 1"] == MAPPED
    assert made.victims(22 * MIB, [one]) == [one]
    assert made.victims(23 * MIB, [one]) == [], "it is not what it was when it was loaded"
    made.reformed(worker, one, COSTS[Form.INLINED], Form.INLINED, "")
    assert made.committed(worker) == BASE + MIB
    assert footprints["print 1"] == MAPPED, "it will be loaded mapped"
    made.reformed(worker, one, MAPPED, Form.MAPPED, "key")
    made.released(worker, 1, evicted=False, elsewhere=False)
    assert made.committed(worker) == BASE
    assert made.pages.share("w") == 0
    assert not worker.forms


def test_what_leaves_gives_its_part_of_the_pages_back() -> None:
    made, _ = budget()
    first = link()
    for one in (stored(1), stored(2)):
        made.admitted(first, one, MAPPED, Form.MAPPED, "key")
    first.unloading.add(1)
    assert made.leaving(first) == 2 * MIB, "the other still maps it"
    first.unloading.clear()
    made.released(first, 2, evicted=False, elsewhere=False)
    first.unloading.add(1)
    assert made.leaving(first) == 22 * MIB
