"""Files that workers map count once a host, whatever they map and unmap, in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.pages import Pages

WORKERS, HANDLES = ("w0", "w1", "w2"), range(1, 6)
SIZES = {"a": 100, "b": 7, "c": 0, "d": 1 << 40}
ACTS = st.one_of(
    st.tuples(st.just("map"), st.sampled_from(WORKERS), st.sampled_from(HANDLES), st.sampled_from(sorted(SIZES))),
    st.tuples(st.just("unmap"), st.sampled_from(WORKERS), st.sampled_from(HANDLES), st.just("")),
    st.tuples(st.just("lost"), st.sampled_from(WORKERS), st.just(0), st.just("")),
)


def check(pages: Pages, maps: dict[tuple[str, int], str]) -> None:
    """Of each file every worker that maps it has the same part, and all together have it once."""
    by = {key: {worker for (worker, _), mapped in maps.items() if mapped == key} for key in SIZES}
    for worker in WORKERS:
        assert pages.share(worker) == sum(SIZES[key] // len(by[key]) for key in SIZES if worker in by[key])
    total = sum(SIZES[key] for key in SIZES if by[key])
    assert total - len(WORKERS) * len(SIZES) < sum(map(pages.share, WORKERS)) <= total
    for key, workers in by.items():
        assert pages.each(key) == (SIZES[key] // len(workers) if workers else 0)


@given(st.lists(ACTS, max_size=40))
def test_shares_sum_to_each_file_once(acts: list[tuple[str, str, int, str]]) -> None:
    pages, maps = Pages(), dict[tuple[str, int], str]()
    for what, worker, handle, key in acts:
        if what == "map":
            pages.unmap(worker, handle)  # as all do that map another
            maps.pop((worker, handle), None)
            before = pages.share(worker)
            adds = pages.adds(worker, key, SIZES[key])
            pages.map(worker, handle, key, SIZES[key])
            maps[worker, handle] = key
            assert pages.share(worker) == before + adds, "it adds what was said"
        elif what == "unmap":
            before, frees = pages.share(worker), pages.frees(worker, handle)
            pages.unmap(worker, handle)
            maps.pop((worker, handle), None)
            assert pages.share(worker) == before - frees, "it frees what was said"
        else:
            pages.lost(worker)
            maps = {place: mapped for place, mapped in maps.items() if place[0] != worker}
        check(pages, maps)
    for worker in WORKERS:
        pages.lost(worker)
    check(pages, {})


def test_two_models_of_a_worker_that_map_one_file_count_once() -> None:
    pages = Pages()
    for handle in (1, 2):
        pages.map("w0", handle, "a", 100)
    assert pages.share("w0") == 100
    assert pages.frees("w0", 1) == 0, "the other keeps it"
    pages.map("w1", 1, "a", 100)
    assert (pages.share("w0"), pages.share("w1")) == (50, 50)
    pages.unmap("w0", 1)
    assert (pages.share("w0"), pages.frees("w0", 2)) == (50, 50)
    pages.unmap("w0", 2)
    assert (pages.share("w0"), pages.share("w1")) == (0, 100)


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_mapped_or_gone_already_changes_nothing(times: int) -> None:
    pages = Pages()
    for _ in range(times):
        pages.map("w0", 1, "a", 100)
    assert pages.share("w0") == 100
    for _ in range(times):
        pages.unmap("w0", 1)
        pages.unmap("w0", 9)
        pages.lost("w9")
    assert pages.share("w0") == 0
    assert pages.adds("w0", "a", 30) == 30, "nothing is known of it any more"
