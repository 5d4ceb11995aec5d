"""The verbs of the control plane, as methods: what the pool knows, and what may be asked of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

DEFAULT_TIMEOUT = 30.0
LOAD_TIMEOUT = 600.0


class Verbs(ABC):
    """Those of :class:`tfpool.Client`; every one has a deadline, and raises the pool's error."""

    @abstractmethod
    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any reading verb."""

    @abstractmethod
    def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Any admin verb, on the admin endpoint."""

    def models(self) -> list[dict[str, Any]]:
        """A row for each version of each model: name, version, state, workers, labels, memory_bytes, error ..."""
        found: list[dict[str, Any]] = self.call("models")
        return found

    def status(self, model: str) -> list[dict[str, Any]]:
        """The rows of one model, with its signatures, batching and meters. Raises NotFound."""
        found: list[dict[str, Any]] = self.call("status", model=model)
        return found

    def metadata(self, model: str, *, version: int = 0, label: str = "") -> dict[str, Any]:
        """Name, version and signatures (dtypes and shapes, -1: open) of what a request would reach."""
        found: dict[str, Any] = self.call("metadata", model=model, version=version, label=label)
        return found

    def workers(self) -> list[dict[str, Any]]:
        """A row for each worker: name, pid, state, device, cpus, memory (bytes), busy (0 to 1), models."""
        found: list[dict[str, Any]] = self.call("workers")
        return found

    def queues(self) -> list[dict[str, Any]]:
        """A row for each queue: model, version, signature, rows, oldest_ms, batch_rows_mean."""
        found: list[dict[str, Any]] = self.call("queues")
        return found

    def stats(self) -> dict[str, Any]:
        """Counters and histograms (microseconds) of the pool, its models and workers."""
        found: dict[str, Any] = self.call("stats")
        return found

    def plan(self) -> dict[str, Any]:
        """What would make the pool faster, and why; nothing is moved.

        ``steps`` (bytes, gain and cost in seconds of waiting, reason), the ``workers`` before and after, and
        ``migrations``: those under way, and the last.
        """
        found: dict[str, Any] = self.call("plan")
        return found

    def wait_ready(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Return when every model that shall serve does, or has failed; ``failed`` has the rows of those.

        Raises DeadlineExceeded.
        """
        found: dict[str, Any] = self.call("ready", timeout=timeout)
        return found

    def load(self, model: str, version: int | None = None, *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Load a version (the newest on disk); returns when it serves. Raises the load's error."""
        found: dict[str, Any] = self.admin("load", model=model, version=version, timeout=timeout)
        return found

    def unload(self, model: str, version: int | None = None) -> list[dict[str, Any]]:
        """Unload one version, or all, once what waits for them is answered; only a load brings them back."""
        found: list[dict[str, Any]] = self.admin("unload", model=model, version=version)
        return found

    def add(self, model: dict[str, Any], *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Add a model at run time: the keys of a ``[[model]]`` table (name, base_path ...).

        Returns when it serves, or when its files have been read where it is loaded on demand. Raises the load's error.
        """
        found: dict[str, Any] = self.admin("add", model=model, timeout=timeout)
        return found

    def remove(self, model: str, *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Forget a model, with all its versions, once what waits for them is answered."""
        found: dict[str, Any] = self.admin("remove", model=model, timeout=timeout)
        return found

    def reload(self, tables: dict[str, Any], *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Serve what a whole configuration says: all of it, once everything new is loaded, or no change at all.

        Raises the error that stood in the way.
        """
        found: dict[str, Any] = self.admin("reload", tables=tables, timeout=timeout)
        return found

    def label(self, model: str, labels: Mapping[str, str | None]) -> dict[str, Any]:
        """Set labels of a model: ``"3"``, or weights over versions as in ``"3:90,4:10"``; None takes one away."""
        found: dict[str, Any] = self.admin("label", model=model, labels=dict(labels))
        return found

    def shadow(self, model: str, rule: str | None) -> dict[str, Any]:
        """Send copies of a share of a model's requests to another version, and compare; None ends that."""
        found: dict[str, Any] = self.admin("shadow", model=model, rule=rule)
        return found

    def record(self, model: str, count: int = 100, seconds: float = 60.0, version: int | None = None) -> dict[str, Any]:
        """Samples of the live requests of a model: ``version``, its ``path``, and ``samples``.

        Returns after ``count`` requests or ``seconds``.
        """
        found: dict[str, Any] = self.admin(
            "record", model=model, count=count, seconds=seconds, version=version, timeout=seconds + DEFAULT_TIMEOUT
        )
        return found

    def migrate(
        self,
        model: str,
        to: str,
        version: int | None = None,
        *,
        source: str | None = None,
        timeout: float = LOAD_TIMEOUT,
    ) -> dict[str, Any]:
        """Move a version (the newest that serves) to the worker ``to``, from ``source`` where several hold it.

        No request fails meanwhile; returns when it serves there and has left the other: its row, and ``load_seconds``.
        Raises NotFound, FailedPrecondition where it may not be there, and the load's error.
        """
        found: dict[str, Any] = self.admin(
            "migrate", model=model, to=to, version=version, source=source, timeout=timeout
        )
        return found

    def apply(self, *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Take the steps that :meth:`plan` shows, one after the other: ``steps``, each with its ``outcome`` (DONE or
        ABORTED), ``error`` and ``took`` (seconds)."""
        found: dict[str, Any] = self.admin("apply", timeout=timeout)
        return found

    def drain(self, worker: str, *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Have other workers take over what a worker serves; returns when it holds nothing."""
        found: dict[str, Any] = self.admin("drain", worker=worker, timeout=timeout)
        return found

    def restart(self, worker: str, *, timeout: float = LOAD_TIMEOUT) -> dict[str, Any]:
        """Replace a worker's process; returns when it serves its models again.

        Others take over meanwhile what they have room for; requests for the rest wait.
        """
        found: dict[str, Any] = self.admin("restart", worker=worker, timeout=timeout)
        return found

    def restart_all(self, *, timeout: float = LOAD_TIMEOUT) -> list[dict[str, Any]]:
        """Replace the process of every worker, one after the other, as :meth:`restart` does; the rows of all."""
        found: list[dict[str, Any]] = self.admin("restart_all", timeout=timeout)
        return found

    def shutdown(self) -> dict[str, Any]:
        """Have the pool finish what waits, and end."""
        found: dict[str, Any] = self.admin("shutdown")
        return found
