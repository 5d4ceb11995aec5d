"""Which workers a servable is given to when it is first loaded. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A worker that may be given a model: bytes and number of the models it holds, its budget in bytes, how many loads
    it has to do, and the share of its time that it runs."""

    name: str
    used: int
    models: int
    budget: int | None
    loads: int = 0
    busy: float = 0.0


def place(
    candidates: Sequence[Candidate], held_by: Sequence[str], replicas: int, size: int | None, pins: Sequence[str] = ()
) -> list[str]:
    """Workers that shall load a model of ``size`` bytes (None: not known) so that ``replicas`` hold it.

    Fewer are returned where fewer can; those that hold it already count. First come workers with room for it, then
    those with the fewest loads to do, for a load begins after those before it; then the less busy ones, in tenths;
    then those with the fewest bytes, then with the fewest models.
    """
    wanted = replicas - len(held_by)
    able = [c for c in candidates if c.name not in held_by and (not pins or c.name in pins)]
    able.sort(key=lambda c: (_overfull(c, size), c.loads, round(c.busy, 1), c.used, c.models, c.name))
    return [c.name for c in able[: max(0, wanted)]]


def _overfull(candidate: Candidate, size: int | None) -> bool:
    return candidate.budget is not None and candidate.used + (size or 0) > candidate.budget
