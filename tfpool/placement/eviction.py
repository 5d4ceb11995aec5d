"""Which cold models leave when memory is short: Greedy-Dual-Size-Frequency. Pure.

After Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy" (1998): what is
used often, dear to load again and small is worth keeping, and a clock that rises with every eviction lets what was
worth much long ago grow old. Two things are added, as simulations asked for both when popularity changes: an evicted
model keeps its frequency for when it comes back, and all frequencies are halved every few hits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

_HITS_PER_MODEL = 25
_LEAST_COST = 1e-3


class _Held:
    __slots__ = ("clock", "frequency", "nbytes", "worth")

    def __init__(self, nbytes: int, worth: float, frequency: float, clock: float) -> None:
        self.nbytes = nbytes
        self.worth = worth
        self.frequency = frequency
        self.clock = clock


class Gdsf:
    """What is held, and what keeping it is worth: clock at the last hit + frequency x seconds to load / bytes."""

    def __init__(self) -> None:
        self.clock = 0.0
        self._held: dict[Hashable, _Held] = {}
        self._ghosts: dict[Hashable, float] = {}
        self._hits_left = _HITS_PER_MODEL

    def admit(self, key: Hashable, nbytes: int, cost: float) -> None:
        """``key`` is held now: its bytes, and the seconds it would take to load it again. It counts as a hit."""
        known = self._held.get(key)
        frequency = known.frequency if known else self._ghosts.pop(key, 0.0)
        worth = max(cost, _LEAST_COST) / max(nbytes, 1)
        self._held[key] = _Held(nbytes, worth, frequency + 1, self.clock)

    def resize(self, key: Hashable, nbytes: int, cost: float) -> None:
        """What is held takes other bytes, and other seconds to load; what is not held is passed over."""
        held = self._held.get(key)
        if held is not None:
            held.nbytes, held.worth = nbytes, max(cost, _LEAST_COST) / max(nbytes, 1)

    def hit(self, key: Hashable, count: int = 1) -> None:
        """``count`` requests came for ``key``; what is not held is passed over."""
        held = self._held.get(key)
        if held is None:
            return
        held.frequency += count
        held.clock = self.clock
        self._hits_left -= count
        if self._hits_left <= 0:
            self._fade()

    def forget(self, key: Hashable) -> None:
        """``key`` left, and not for want of room."""
        self._held.pop(key, None)
        self._ghosts.pop(key, None)

    def victims(self, needed: int, evictable: Iterable[Hashable]) -> list[Hashable]:
        """What should leave to free ``needed`` bytes, the least valuable first; nothing where all is not enough.

        Of what is held and ``evictable``, those of least priority are taken until they suffice; then those that the
        others can do without are spared.
        """
        allowed = set(evictable)
        keys = sorted((key for key in self._held if key in allowed), key=self._priority)
        chosen: list[Hashable] = []
        spare = -needed
        for key in keys:
            if spare >= 0:
                break
            chosen.append(key)
            spare += self._held[key].nbytes
        if spare < 0:
            return []
        for key in reversed(chosen[:]):
            if self._held[key].nbytes <= spare:
                chosen.remove(key)
                spare -= self._held[key].nbytes
        return chosen

    def evicted(self, key: Hashable) -> None:
        """``key`` left for want of room: the clock rises to its priority. Raises KeyError when it is not held."""
        self.clock = max(self.clock, self._priority(key))
        self._ghosts[key] = self._held.pop(key).frequency

    def _priority(self, key: Hashable) -> float:
        held = self._held[key]
        return held.clock + held.frequency * held.worth

    def _fade(self) -> None:
        """Halve all frequencies; a ghost that fell below one hit is gone."""
        self._hits_left = _HITS_PER_MODEL * len(self._held)
        for held in self._held.values():
            held.frequency /= 2
        self._ghosts = {key: frequency / 2 for key, frequency in self._ghosts.items() if frequency >= 2}
