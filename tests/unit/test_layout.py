from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tfpool.shm.layout import ALIGN, MIN_BLOCK, Layout, Lease, align, size_class

HOLDERS = st.sampled_from(["a", "b", "c"])


@given(st.integers(0, 1 << 40))
def test_align_rounds_up_to_64(nbytes: int) -> None:
    assert align(nbytes) % ALIGN == 0
    assert 0 <= align(nbytes) - nbytes < ALIGN


@given(st.integers(0, 1 << 40))
def test_a_size_class_is_the_smallest_that_fits(nbytes: int) -> None:
    order = size_class(nbytes)
    assert MIN_BLOCK << order >= nbytes
    assert order == 0 or MIN_BLOCK << (order - 1) < nbytes


@pytest.mark.parametrize(("capacity", "start"), [(0, 0), (4095, 0), (4097, 0), (-4096, 0), (4096, 1)])
def test_an_arena_is_made_of_whole_blocks(capacity: int, start: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        Layout(capacity, start)


class Leases(RuleBasedStateMachine):
    """Any order of leases, frees, deaths and reapings, beside a plain model of what is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0
        self.taken: dict[Lease, str] = {}
        self.quarantined: dict[Lease, str] = {}
        self.ended: list[Lease] = []
        self.layout = Layout(MIN_BLOCK)
        self.start = 0

    @precondition(lambda self: not self.blocks)
    @rule(blocks=st.integers(1, 75), first=st.integers(0, 3))
    def make(self, blocks: int, first: int) -> None:
        self.blocks, self.start = blocks, first * MIN_BLOCK
        self.layout = Layout(blocks * MIN_BLOCK, self.start)

    @precondition(lambda self: self.blocks)
    @rule(nbytes=st.integers(0, 20 * MIN_BLOCK), holder=HOLDERS)
    def lease(self, nbytes: int, holder: str) -> None:
        lease = self.layout.lease(nbytes, holder)
        if lease is None:
            assert nbytes > self.layout.largest or self.taken or self.quarantined, "an empty arena has room"
            return
        assert lease.nbytes >= nbytes
        assert lease.nbytes & (lease.nbytes - 1) == 0
        assert lease.offset % MIN_BLOCK == 0
        assert self.start <= lease.offset
        assert lease.offset + lease.nbytes <= self.start + self.layout.capacity
        assert all(lease.generation > other.generation for other in (*self.taken, *self.quarantined, *self.ended))
        self.taken[lease] = holder

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.taken)))
        self.layout.free(lease)
        del self.taken[lease]
        self.ended.append(lease)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def free_again(self, data: st.DataObject) -> None:
        with pytest.raises(KeyError):
            self.layout.free(data.draw(st.sampled_from(self.ended)))

    @rule(holder=HOLDERS)
    def quarantine(self, holder: str) -> None:
        mine = [lease for lease, by in self.taken.items() if by == holder]
        assert self.layout.quarantine(holder) == sum(lease.nbytes for lease in mine)
        for lease in mine:
            self.quarantined[lease] = self.taken.pop(lease)
            with pytest.raises(KeyError):
                self.layout.free(lease)

    @rule(holder=HOLDERS)
    def release(self, holder: str) -> None:
        self.layout.release(holder)
        mine = [lease for lease, by in self.quarantined.items() if by == holder]
        self.ended += mine
        for lease in mine:
            del self.quarantined[lease]

    @invariant()
    def nothing_overlaps(self) -> None:
        end = 0
        for lease in sorted((*self.taken, *self.quarantined)):
            assert lease.offset >= end
            end = lease.offset + lease.nbytes

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.layout.leases == len(self.taken)
        assert self.layout.leased_bytes == sum(lease.nbytes for lease in self.taken)
        assert self.layout.quarantined_bytes == sum(lease.nbytes for lease in self.quarantined)
        for lease in self.taken:
            assert self.layout.is_current(lease)
            assert not self.layout.is_current(lease._replace(generation=lease.generation + 1))
        for lease in (*self.quarantined, *self.ended):
            assert not self.layout.is_current(lease)

    def teardown(self) -> None:
        for lease in self.taken:
            self.layout.free(lease)
        for holder in set(self.quarantined.values()):
            self.layout.release(holder)
        whole = self.layout.lease(self.layout.largest)
        assert whole is not None, "freed blocks merge back"


TestLeases: Any = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.integers(1, 300), st.randoms(use_true_random=False))
def test_freed_blocks_merge_back_to_the_whole_arena(blocks: int, random: Any) -> None:
    layout = Layout(blocks * MIN_BLOCK, MIN_BLOCK)
    leases = []
    while (lease := layout.lease(MIN_BLOCK)) is not None:
        leases.append(lease)
    assert len(leases) == blocks
    random.shuffle(leases)
    for lease in leases:
        layout.free(lease)
    assert layout.leased_bytes == 0
    largest = layout.lease(layout.largest)
    assert largest is not None
    assert largest.nbytes * 2 > layout.capacity
    assert layout.lease(layout.largest + 1) is None


def test_a_stale_generation_of_the_same_bytes_is_told_apart() -> None:
    layout = Layout(MIN_BLOCK)
    first = layout.lease(100)
    assert first is not None
    layout.free(first)
    second = layout.lease(100)
    assert second is not None
    assert second.offset == first.offset
    assert not layout.is_current(first)
    with pytest.raises(KeyError):
        layout.free(first)
    assert layout.is_current(second)


def test_a_dead_holder_keeps_its_bytes_until_it_is_reaped() -> None:
    layout = Layout(MIN_BLOCK)
    assert layout.lease(1, ("w", 1)) is not None
    assert layout.quarantine(("w", 1)) == MIN_BLOCK
    assert layout.quarantine(("w", 1)) == 0
    assert layout.lease(1, ("w", 2)) is None
    layout.release(("w", 2))
    assert layout.lease(1, ("w", 2)) is None
    layout.release(("w", 1))
    assert layout.lease(1, ("w", 2)) is not None
