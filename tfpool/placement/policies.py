"""The two policies of a pool, as players of :mod:`tfpool.placement.whatif`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tfpool.placement.eviction import Gdsf
from tfpool.placement.planner import Candidate, place, plan
from tfpool.placement.snapshot import Hold, Rules, Snapshot, Step, WorkerView
from tfpool.placement.whatif import Cache


class Static:
    """Models are loaded when they are asked for, and never move."""

    def __init__(self) -> None:
        self.cache: Cache = Gdsf()

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        return ()

    def choose(self, snapshot: Snapshot, handle: int) -> str:
        """As the broker does: of the workers with room for it, or else of those that could have it if they held nothing
        else."""
        view = next(view for view in snapshot.servables if view.handle == handle)
        fit = [worker for worker in snapshot.workers if worker.free >= view.peak]
        able = fit or [worker for worker in snapshot.workers if _could_hold(worker, view.peak)]
        found = place([_candidate(worker, snapshot) for worker in able], tuple(view.on), 1, view.peak, view.pins)
        return next(iter(found), "")


class Auto(Static):
    """The planner is asked for a step each time."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def steps(self, snapshot: Snapshot) -> Sequence[Step]:
        step = plan(snapshot, self._rules)
        return () if step is None else (step,)


def _could_hold(worker: WorkerView, peak: int) -> bool:
    return worker.room is None or worker.room - worker.residue >= peak


def _candidate(worker: WorkerView, snapshot: Snapshot) -> Candidate:
    there = [view for view in snapshot.servables if worker.name in view.on]
    loads = sum(view.on[worker.name].hold is Hold.COMES for view in there)
    return Candidate(worker.name, sum(v.kept(worker.name) for v in there), len(there), worker.room, loads, worker.busy)
