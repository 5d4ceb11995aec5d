"""Who may use which bytes of an arena: leases of power-of-two blocks, pure bookkeeping.

::

    offset 0                                                            capacity
    |  block (leased to batch 7)  |  free  |  block (quarantined)  |  free  ...  |
       64-byte aligned; from lease() until free() only its holder touches it

A buddy system (Knowlton 1965) with lazy merging (Barkley and Lee 1989): a freed block goes back to the stack of
its size class, where the next batch of that size finds it at once; buddies are merged only when a lease finds
nothing large enough. Each lease has a generation of its own, so that a late message about an earlier lease of the
same bytes is told apart.

The blocks of a dead holder are quarantined: its process may still be writing until it is reaped.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

ALIGN = 64
MIN_BLOCK = 4096


class Lease(NamedTuple):
    """``nbytes`` (a power of two, at least what was asked for) at ``offset``."""

    offset: int
    nbytes: int
    generation: int


def align(nbytes: int) -> int:
    """``nbytes`` rounded up to the next multiple of 64."""
    return (nbytes + ALIGN - 1) & -ALIGN


def size_class(nbytes: int) -> int:
    """The order of the smallest block that holds ``nbytes``."""
    return max(0, (nbytes - 1) // MIN_BLOCK).bit_length() if nbytes > MIN_BLOCK else 0


class Layout:
    """Leases over ``capacity`` bytes, beginning at ``start`` (both multiples of 4096)."""

    def __init__(self, capacity: int, start: int = 0) -> None:
        if capacity < MIN_BLOCK or capacity % MIN_BLOCK or start % MIN_BLOCK:
            raise ValueError(f"an arena needs a positive multiple of {MIN_BLOCK} bytes, got {capacity} from {start}")
        self.capacity = capacity
        self._start = start
        self._free: list[list[int]] = [[] for _ in range(size_class(capacity) + 1)]
        self._leased: dict[int, tuple[Lease, Hashable]] = {}
        self._quarantined: dict[Hashable, list[Lease]] = {}
        self._generation = 0
        self.leased_bytes = 0
        self._give_back(start, capacity)

    @property
    def largest(self) -> int:
        """The most bytes that one lease can ever have."""
        return MIN_BLOCK << (self.capacity // MIN_BLOCK).bit_length() - 1

    @property
    def leases(self) -> int:
        return len(self._leased)

    @property
    def quarantined_bytes(self) -> int:
        return sum(lease.nbytes for leases in self._quarantined.values() for lease in leases)

    def lease(self, nbytes: int, holder: Hashable = None) -> Lease | None:
        """A block for ``holder``, or None while there is none free."""
        order = size_class(nbytes)
        if order >= len(self._free):
            return None
        stack = self._free[order]
        if stack:
            offset = stack.pop()
        else:
            found = self._split(order)
            if found is None:
                self._merge()
                found = self._split(order)
                if found is None:
                    return None
            offset = found
        self._generation += 1
        lease = Lease(offset, MIN_BLOCK << order, self._generation)
        self._leased[offset] = (lease, holder)
        self.leased_bytes += lease.nbytes
        return lease

    def is_current(self, lease: Lease) -> bool:
        """Whether this very lease still stands."""
        found = self._leased.get(lease.offset)
        return found is not None and found[0] == lease

    def free(self, lease: Lease) -> None:
        """End a lease. Raises KeyError for one that does not stand (freed twice, or quarantined)."""
        found = self._leased.get(lease.offset)
        if found is None or (found[0] is not lease and found[0] != lease):
            raise KeyError(lease)
        del self._leased[lease.offset]
        self.leased_bytes -= lease.nbytes
        self._free[size_class(lease.nbytes)].append(lease.offset)

    def quarantine(self, holder: Hashable) -> int:
        """Take every lease of a dead holder out of use; the bytes this holds back."""
        kept = [lease for lease, by in self._leased.values() if by == holder]
        for lease in kept:
            del self._leased[lease.offset]
            self.leased_bytes -= lease.nbytes
        if kept:
            self._quarantined.setdefault(holder, []).extend(kept)
        return sum(lease.nbytes for lease in kept)

    def release(self, holder: Hashable) -> None:
        """The holder is reaped: its quarantined blocks are free again."""
        for lease in self._quarantined.pop(holder, ()):
            self._free[size_class(lease.nbytes)].append(lease.offset)

    def _split(self, order: int) -> int | None:
        for larger in range(order, len(self._free)):
            if self._free[larger]:
                offset = self._free[larger].pop()
                for smaller in range(larger - 1, order - 1, -1):
                    self._free[smaller].append(offset + (MIN_BLOCK << smaller))
                return offset
        return None

    def _merge(self) -> None:
        for order in range(len(self._free) - 1):
            size = MIN_BLOCK << order
            free = set(self._free[order])
            single: list[int] = []
            for offset in sorted(free):
                if offset not in free:
                    continue
                buddy = ((offset - self._start) ^ size) + self._start
                if buddy in free:
                    free -= {offset, buddy}
                    self._free[order + 1].append(min(offset, buddy))
                else:
                    free.discard(offset)
                    single.append(offset)
            self._free[order] = single[::-1]

    def _give_back(self, offset: int, nbytes: int) -> None:
        for order in range(len(self._free) - 1, -1, -1):
            size = MIN_BLOCK << order
            while nbytes >= size:
                self._free[order].append(offset)
                offset, nbytes = offset + size, nbytes - size
