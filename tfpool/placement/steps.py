"""What becomes of a snapshot once a step is done. Pure."""

from __future__ import annotations

from dataclasses import replace

from tfpool.placement.snapshot import Hold, Kind, Past, Replica, ServableView, Snapshot, Step, WorkerView


def after(snapshot: Snapshot, step: Step) -> Snapshot:
    """The snapshot once ``step`` is done, at the same moment. Raises StopIteration for a servable it does not have."""
    past = Past(snapshot.now, step.kind, step.handle, step.source, step.target, step.nbytes)
    workers, servables = snapshot.workers, snapshot.servables
    if step.kind is Kind.RECYCLE:
        workers = tuple(_recycled(worker) if worker.name == step.source else worker for worker in workers)
    else:
        moved = next(servable for servable in servables if servable.handle == step.handle)
        changed = _moved(moved, step, snapshot.now)
        servables = tuple(changed if servable is moved else servable for servable in servables)
        workers = tuple(_filled(worker, step, moved.nbytes) for worker in workers)
    return Snapshot(snapshot.now, workers, servables, (*snapshot.past, past))


def _recycled(worker: WorkerView) -> WorkerView:
    return replace(worker, held=max(0, worker.held - worker.residue), residue=0)


def _moved(servable: ServableView, step: Step, now: float) -> ServableView:
    on = {worker: replica for worker, replica in servable.on.items() if worker != step.source}
    if step.target:
        on[step.target] = Replica(Hold.SERVES, now)
    return replace(servable, on=on)


def _filled(worker: WorkerView, step: Step, nbytes: int) -> WorkerView:
    more = nbytes * ((worker.name == step.target) - (worker.name == step.source))
    return replace(worker, held=worker.held + more) if more else worker
