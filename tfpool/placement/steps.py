"""What becomes of a snapshot once a step is done. Pure."""

from __future__ import annotations

from dataclasses import replace

from tfpool.placement.snapshot import REFORMS, Hold, Kind, Past, Replica, ServableView, Snapshot, Step, WorkerView


def after(snapshot: Snapshot, step: Step) -> Snapshot:
    """The snapshot once ``step`` is done, at the same moment. Raises StopIteration for a servable it does not have."""
    past = Past(snapshot.now, step.kind, step.handle, step.source, step.target, step.nbytes)
    workers, servables = snapshot.workers, snapshot.servables
    if step.kind is Kind.RECYCLE:
        workers = tuple(_recycled(worker) if worker.name == step.source else worker for worker in workers)
    else:
        moved = next(servable for servable in servables if servable.handle == step.handle)
        changed = _reformed(moved, step) if step.kind in REFORMS else _moved(moved, step, snapshot.now)
        servables = tuple(changed if servable is moved else servable for servable in servables)
        workers = tuple(_filled(worker, moved, changed) for worker in workers)
    return Snapshot(snapshot.now, workers, servables, (*snapshot.past, past))


def _recycled(worker: WorkerView) -> WorkerView:
    return replace(worker, held=max(0, worker.held - worker.residue), residue=0)


def _moved(servable: ServableView, step: Step, now: float) -> ServableView:
    on = {worker: replica for worker, replica in servable.on.items() if worker != step.source}
    if step.target:
        on[step.target] = Replica(Hold.SERVES, now)
    faster = servable.faster(step.source)
    seconds = servable.row_seconds if faster is None else _slowed(servable, step.source, faster.gain)
    return replace(servable, on=on, row_seconds=seconds)


def _reformed(servable: ServableView, step: Step) -> ServableView:
    worker, inlined, form = step.target or step.source, step.kind is Kind.INLINE, servable.inlined
    if form is None:
        return servable
    on = {**servable.on, worker: servable.on[worker]._replace(inlined=inlined)}
    seconds = _slowed(servable, worker, 1 / form.gain if inlined else form.gain)
    return replace(servable, on=on, row_seconds=seconds)


def _slowed(servable: ServableView, worker: str, times: float) -> dict[str, float]:
    """What a row takes, by worker, if it takes so many times as long on one of them."""
    return {w: seconds * times if w == worker else seconds for w, seconds in servable.row_seconds.items()}


def _filled(worker: WorkerView, before: ServableView, now: ServableView) -> WorkerView:
    name = worker.name
    more = (now.kept(name) if name in now.on else 0) - (before.kept(name) if name in before.on else 0)
    return replace(worker, held=worker.held + more) if more else worker
