"""Choose workers for a model's replicas: the least filled that may hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A worker that may be given a model: bytes and number of the models it holds, its budget in bytes."""

    name: str
    used: int
    models: int
    budget: int | None


def place(
    candidates: Sequence[Candidate], held_by: Sequence[str], replicas: int, size: int | None, pins: Sequence[str] = ()
) -> list[str]:
    """Workers that shall load a model of ``size`` bytes (None: not known) so that ``replicas`` hold it.

    Fewer are returned where fewer can; those that hold it already count. First come workers with room for it, then
    those with the fewest bytes, then with the fewest models.
    """
    wanted = replicas - len(held_by)
    able = [c for c in candidates if c.name not in held_by and (not pins or c.name in pins)]
    able.sort(key=lambda c: (_overfull(c, size), c.used, c.models, c.name))
    return [c.name for c in able[: max(0, wanted)]]


def _overfull(candidate: Candidate, size: int | None) -> bool:
    return candidate.budget is not None and candidate.used + (size or 0) > candidate.budget
