"""How requests are shared out over versions: by the weights of a label, and to a shadow. Pure.

Nothing is drawn by lot: what a version has been given never differs from its exact share by a whole request.
"""

from __future__ import annotations

from math import gcd

from tfpool.settings import Split

_SCALE = 10**8


class Spreader:
    """Shares requests out over the versions of ``split``, one after another.

    With a total weight W, the j-th request of a version of weight w belongs into the turns from floor((j-1)W/w) to
    ceil(jW/w). Of the versions whose next request may come, the one that must come first gets the turn. That keeps all
    windows (Tijdeman, "The chairman assignment problem", 1980), and so every version within one of its share. After W
    turns all shares are exact and it begins anew. A call costs at most W steps, whatever its count.
    """

    __slots__ = ("_cycle", "_due", "_free", "_given", "_turn", "_versions", "_weights")

    def __init__(self, split: Split) -> None:
        parts = [(version, weight) for version, weight in split if weight]
        divisor = gcd(*(weight for _, weight in parts))
        self._versions = [version for version, _ in parts]
        self._weights = [weight // divisor for _, weight in parts]
        self._cycle = sum(self._weights)
        self._begin()

    def apportion(self, count: int) -> list[tuple[int, int]]:
        """Of ``count`` requests, how many go to which version: (version, n), n > 0, in the order of the split."""
        cycles, rest = divmod(count, self._cycle)
        shares = [cycles * weight for weight in self._weights]
        for _ in range(rest):
            shares[self._next()] += 1
        return [(version, share) for version, share in zip(self._versions, shares, strict=True) if share]

    def _begin(self) -> None:
        self._turn = 0
        self._given = [0] * len(self._weights)
        self._free = [0] * len(self._weights)
        self._due = [-(-self._cycle // weight) for weight in self._weights]

    def _next(self) -> int:
        """The version, by its place, that gets the next request."""
        turn, chosen, first = self._turn, 0, self._cycle + 1
        for place, due in enumerate(self._due):
            if due < first and self._free[place] <= turn:
                chosen, first = place, due
        self._turn += 1
        if self._turn == self._cycle:
            self._begin()
            return chosen
        self._given[chosen] += 1
        given, weight = self._given[chosen], self._weights[chosen]
        self._free[chosen] = given * self._cycle // weight
        self._due[chosen] = -(-(given + 1) * self._cycle // weight)
        return chosen


class Sampler:
    """Takes a ``share`` (0 to 1, in steps of 1e-8) of the requests, evenly."""

    __slots__ = ("_credit", "_share")

    def __init__(self, share: float) -> None:
        self._share = round(share * _SCALE)
        self._credit = 0

    def take(self, count: int) -> int:
        """How many of ``count`` requests are in the sample."""
        taken, self._credit = divmod(self._credit + count * self._share, _SCALE)
        return taken
