"""Models come and go: find versions, place them, load and unload them, survive the death of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.registry import Model, Registry, State, Version
from tfpool.errors import FailedPrecondition, Internal, NotFound, TfpoolError, Unavailable
from tfpool.placement.planner import Candidate, place
from tfpool.repository.scan import scan
from tfpool.repository.versions import aspired
from tfpool.scheduler import events as ev
from tfpool.settings import ModelSettings, PoolSettings
from tfpool.telemetry import log
from tfpool.types import DType, ModelKey, SignatureSpec, TensorSpec
from tfpool.wire.messages import Bell

MAX_LOAD_DEATHS = 2


class Lifecycle:
    """``decide`` hands an event to the scheduler and performs what it asks for."""

    def __init__(
        self, registry: Registry, fleet: Fleet, pool: PoolSettings, decide: Callable[[ev.Event], None]
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._pool = pool
        self._decide = decide
        self._log = log.get("models")

    # -- models ------------------------------------------------------------------------------------------------

    def add(self, settings: ModelSettings) -> None:
        """Take a model in, and load what its policy asks for. A model that has nothing to load says so later."""
        model = self._registry.add_model(settings)
        if not settings.preload:
            return
        try:
            found = scan(settings.base_path)
            numbers = aspired(settings.version_policy, found)
            if not numbers:
                raise NotFound(f"{settings.base_path}: no version that {settings.version_policy!r} asks for")
            for number in numbers:
                self._start(self._registry.add_version(model, number, found[number]))
        except TfpoolError as error:
            model.error = error
            self._log.warning("model.failed", model=settings.name, error=error.message)

    def load(self, model: Model, number: int | None) -> Version:
        """Begin to load a version (None: the newest on disk); one that is loaded, or about to be, stays.

        Raises NotFound where there is no such version on disk.
        """
        found = scan(model.settings.base_path)
        number = number if number is not None else max(found)
        version = model.versions.get(number)
        if version is None:
            if number not in found:
                have = ", ".join(map(str, sorted(found)))
                raise NotFound(f"{model.settings.base_path} has no version {number}; it has {have}")
            version = self._registry.add_version(model, number, found[number])
        version.path = found.get(number, version.path)
        if version.state is State.FAILED:
            version.error, version.deaths = None, 0
            version.on.clear()
        model.error = None
        self._start(version)
        return version

    def unload(self, version: Version) -> None:
        """Stop sending a version requests, refuse what waits for it, and have its workers drop it."""
        gone = NotFound(f"{version.key} has been unloaded")
        for worker in version.serving():
            self._decide(ev.Unrouted(version.key, worker))
        self._decide(ev.ServableGone(version.key, gone))
        for worker, state in list(version.on.items()):
            link = self._fleet.links[worker]
            if state in (State.AVAILABLE, State.LOADING, State.WARMING) and link.up:
                link.ring(Bell.UNLOAD, version.handle)
            elif version.handle in link.loads:
                link.loads.remove(version.handle)
        self._registry.drop_version(version)
        self._log.info("model.unloaded", model=version.key.name, version=version.key.version)

    def _start(self, version: Version) -> None:
        """Place a version on as many workers as it wants, and load it there."""
        candidates = [self._candidate(link) for link in self._fleet.candidates()]
        held = [w for w, state in version.on.items() if state not in (State.FAILED, State.UNLOADING)]
        settings = version.settings
        chosen = place(candidates, held, settings.replicas[0], version.memory_bytes, settings.pin)
        if not chosen and not held:
            version.error = Unavailable(f"no worker can take {version.key}")
            version.on = {link.name: State.FAILED for link in self._fleet.links.values()}
            return
        for name in chosen:
            version.on[name] = State.PENDING
            self._fleet.links[name].loads.append(version.handle)
            self._next_loads(self._fleet.links[name])

    def _candidate(self, link: Link) -> Candidate:
        held = [v for v in self._registry.versions() if link.name in v.on]
        return Candidate(link.name, sum(v.memory_bytes or 0 for v in held), len(held), link.settings.memory)

    def _next_loads(self, link: Link) -> None:
        while link.up and link.loads and len(link.loading) < self._pool.load_concurrency:
            version = self._registry.by_handle.get(link.loads.popleft())
            if version is None or not version.step(link.name, "load"):
                continue
            link.loading.add(version.handle)
            self._log.info("model.loading", model=version.key.name, version=version.key.version, worker=link.name)
            options = {
                "stateful": list(version.settings.stateful),
                "sizes": list(version.settings.batching.allowed_batch_sizes),
            }
            link.ring(Bell.LOAD, version.handle, str(version.key), version.path, options)

    # -- what workers say --------------------------------------------------------------------------------------

    def warming(self, link: Link, handle: int) -> None:
        version = self._registry.by_handle.get(handle)
        if version is not None:
            version.step(link.name, "warming")

    def loaded(self, link: Link, handle: int, info: dict[str, Any]) -> None:
        link.loading.discard(handle)
        self._next_loads(link)
        version = self._registry.by_handle.get(handle)
        if version is None or not version.step(link.name, "loaded"):
            link.ring(Bell.UNLOAD, handle)  # it was unloaded while it loaded
            return
        version.error = None
        version.deaths = 0
        version.load_seconds = info["load_seconds"]
        version.memory_bytes = info["memory_bytes"]
        version.skipped = info["skipped"]
        signatures = tuple(_signature(fields) for fields in info["signatures"])
        if signatures != version.signatures:
            version.signatures = signatures
        self._registry.epoch += 1
        self._decide(ev.Routed(version.key, link.name))
        self._log.info(
            "model.available",
            model=version.key.name,
            version=version.key.version,
            worker=link.name,
            seconds=info["load_seconds"],
            bytes=info["memory_bytes"],
        )
        for signature in version.signatures:
            if not signature.batchable:
                self._log.info(
                    "model.unbatched", model=version.key.name, signature=signature.name, reason=signature.reason
                )

    def load_failed(self, link: Link, handle: int, error: TfpoolError) -> None:
        link.loading.discard(handle)
        self._next_loads(link)
        version = self._registry.by_handle.get(handle)
        if version is not None and version.step(link.name, "failed"):
            self._failed(version, error)

    def _failed(self, version: Version, error: TfpoolError) -> None:
        version.error = error
        self._registry.epoch += 1
        self._log.warning("model.failed", model=version.key.name, version=version.key.version, error=error.message)
        if not version.serving() and version.state is State.FAILED:
            message = f"{version.key} failed to load: {error.message}"
            self._decide(ev.ServableGone(version.key, FailedPrecondition(message)))

    # -- workers come and go -----------------------------------------------------------------------------------

    def joined(self, link: Link) -> None:
        """A worker is ready: it loads what it should hold."""
        for version in self._registry.versions():
            if link.name in version.on and version.on[link.name] is not State.FAILED:
                version.on[link.name] = State.PENDING
                link.loads.append(version.handle)
        self._next_loads(link)

    def lost(self, link: Link) -> None:
        """A worker died; its replacement will load its models again, but for those that kill it."""
        for version in self._registry.versions():
            state = version.on.get(link.name)
            if state is None or state is State.FAILED:
                continue
            version.on[link.name] = State.PENDING
            if state in (State.LOADING, State.WARMING):
                version.deaths += 1
                if version.deaths >= MAX_LOAD_DEATHS:
                    version.on[link.name] = State.FAILED
                    self._failed(version, Internal(f"loading {version.path} killed {version.deaths} workers"))
        self._registry.epoch += 1

    def halted(self, link: Link) -> None:
        """A worker will not come back: others take its models."""
        link.state = WorkerState.HALTED
        self.vacate(link)

    def vacate(self, link: Link) -> None:
        """Place what a worker holds elsewhere."""
        for version in self._registry.versions():
            if version.on.pop(link.name, None) is not None:
                self._start(version)
                if version.state is State.FAILED and version.error is not None:
                    self._failed(version, version.error)

    def vacate_gently(self, link: Link) -> None:
        """Have others load what a worker serves, while it goes on serving; see :meth:`step_drain`."""
        link.state = WorkerState.DRAINING
        for version in self._registry.versions():
            state = version.on.get(link.name)
            if state is not None and not [w for w in version.serving() if w != link.name]:
                del version.on[link.name]
                self._start(version)
                version.on[link.name] = state

    def step_drain(self, link: Link, in_flight: Callable[[str, ModelKey], int]) -> bool:
        """Let go of what others serve by now; True when nothing is left.

        Raises the error of a version that no other worker could load; the worker then keeps it.
        """
        for version in self._registry.versions():
            if link.name not in version.on:
                continue
            others = {w: state for w, state in version.on.items() if w != link.name}
            if State.AVAILABLE in others.values():
                self._decide(ev.Unrouted(version.key, link.name))
                if in_flight(link.name, version.key) == 0:
                    del version.on[link.name]
                    link.ring(Bell.UNLOAD, version.handle)
            elif all(state is State.FAILED for state in others.values()):
                link.state = WorkerState.READY
                raise version.error or Unavailable(f"no other worker can take {version.key}")
        return not any(link.name in v.on for v in self._registry.versions())

    def settled(self) -> bool:
        """Whether every model that shall serve does, or has failed for good."""
        return all(v.state in (State.AVAILABLE, State.FAILED) for v in self._registry.versions())


def _signature(fields: dict[str, Any]) -> SignatureSpec:
    tensors = {side: tuple(_tensor(item) for item in fields[side]) for side in ("inputs", "outputs")}
    return SignatureSpec(
        fields["name"],
        fields["method"],
        tensors["inputs"],
        tensors["outputs"],
        fields["batchable"],
        fields["mutates"],
        fields["reason"],
    )


def _tensor(fields: dict[str, Any]) -> TensorSpec:
    shape = fields["shape"]
    return TensorSpec(fields["name"], DType(fields["dtype"]), None if shape is None else tuple(shape))
