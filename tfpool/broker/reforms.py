"""Models that change their form where they are: another form is loaded beside the one that serves, and takes its place.

Nothing is routed anew, and no request waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from tfpool.broker.budget import MARGIN_BYTES, Budget, limit, mib, usual
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.registry import Registry, Version
from tfpool.errors import FailedPrecondition, ResourceExhausted, TfpoolError, Unavailable
from tfpool.repository.memo import Footprint
from tfpool.repository.states import State
from tfpool.settings import Form
from tfpool.telemetry import log
from tfpool.wire.messages import Bell

REMEMBERED = 50

Done = Callable[[TfpoolError | None, Version], None]


@dataclass(slots=True)
class Reform:
    """One change, on a life of a worker; migrations and changes are numbered together. Times are monotonic seconds;
    ``nbytes`` is what the new form is to keep."""

    number: int
    version: Version
    worker: str
    life: tuple[str, int]
    form: Form
    by: str
    reason: str
    nbytes: int
    begun: float
    done: Done | None = None
    ended: float | None = None
    error: TfpoolError | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None


class Reforms:
    """``recent`` are those that have ended, the oldest first. ``now`` gives monotonic seconds."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        budget: Budget,
        now: Callable[[], float],
        numbers: Iterator[int] | None = None,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._budget = budget
        self.now = now
        self._numbers = numbers if numbers is not None else count(1)
        self.active: list[Reform] = []
        self.recent: deque[Reform] = deque(maxlen=REMEMBERED)
        self._log = log.get("models")

    def begin(
        self, version: Version, link: Link, form: Form, by: str, reason: str = "", done: Done | None = None
    ) -> Reform:
        """Have a replica change its form; memory is kept for that from now on. ``done`` is told how it ended.

        Raises FailedPrecondition where it cannot, ResourceExhausted where there is no memory for it.
        """
        need = self._check(version, link, form)
        link.reserved[version.handle] = need
        link.reforming.add(version.handle)
        found = version.stored.footprint(form) if version.stored is not None else None
        nbytes, now = found.nbytes if found is not None else 0, self.now()
        reform = Reform(next(self._numbers), version, link.name, link.holder, form, by, reason, nbytes, now, done)
        self.active.append(reform)
        link.ring(Bell.REFORM, version.handle, form.value)
        return reform

    def _check(self, version: Version, link: Link, form: Form) -> int:
        """Bytes that the other form takes, beside the one that is there."""
        key, stored = version.key, version.stored
        if version.on.get(link.name) is not State.AVAILABLE or link.leaving:
            raise FailedPrecondition(f"{key} does not serve on {link.name}")
        if self.of(version, link.name) is not None:
            raise FailedPrecondition(f"{key} is changing its form on {link.name} already")
        found = stored.footprint(form) if stored is not None and version.compiled else None
        if stored is None or found is None:
            raise FailedPrecondition(f"the store has no form {form.value!r} of {key}")
        if link.forms.get(version.handle) is form:
            raise FailedPrecondition(f"{key} is {form.value} on {link.name} already")
        need = found.peak + MARGIN_BYTES + self._budget.pages.adds(link.name, stored.key, found.shared)
        if link.settings.memory is not None and form is not Form.MAPPED:  # which gives more back than it takes
            missing = self._budget.committed(link) + need - limit(link.settings.memory)
            if missing > 0:
                raise ResourceExhausted(
                    f"worker {link.name} has no room for {key} as {form.value}: it takes {mib(need)}, "
                    f"of which {mib(missing)} are missing"
                )
        return need

    def of(self, version: Version, worker: str) -> Reform | None:
        """The change of a replica that is under way."""
        return next((one for one in self.active if one.version is version and one.worker == worker), None)

    def all(self) -> Iterable[Reform]:
        """The last that ended, and those under way."""
        return [*self.recent, *self.active]

    def step(self) -> None:
        """Give those up whose workers are gone, or have been told to let go of the model."""
        for one in list(self.active):
            link = self._fleet.links[one.worker]
            if link.holder != one.life or link.bell is None:
                self._end(one, Unavailable(f"worker {one.worker} died"))
            elif one.version.handle not in link.resident:
                self._end(one, Unavailable(f"{one.version.key} has left {one.worker}"))

    # -- what workers say --------------------------------------------------------------------------------------

    def changed(self, link: Link, handle: int, found: Footprint, form: Form, key: str) -> None:
        """A replica serves in another form."""
        version = self._registry.by_handle.get(handle)
        if version is None or handle not in link.resident:
            return
        self._budget.reformed(link, version, found, form, key)
        if usual(version, form):
            version.memory_bytes, version.peak_bytes = found.nbytes, found.peak
            version.load_seconds = found.load_seconds
        one = self.of(version, link.name)
        if one is not None:
            self._end(one, None)

    def failed(self, link: Link, handle: int, why: str) -> None:
        """A replica stays what it is, for the worker could not use what the store has: that has to be seen again."""
        version = self._registry.by_handle.get(handle)
        one = self.of(version, link.name) if version is not None else None
        if version is not None:
            version.stored = None
        if one is not None:
            self._end(one, FailedPrecondition(why))

    def _end(self, one: Reform, error: TfpoolError | None) -> None:
        link, key = self._fleet.links[one.worker], one.version.key
        if link.holder == one.life:
            link.reserved.pop(one.version.handle, None)
            link.reforming.discard(one.version.handle)
        one.ended, one.error = self.now(), error
        self.active.remove(one)
        self.recent.append(one)
        self._registry.epoch += 1
        more = {} if error is None else {"error": error.message}
        write = self._log.info if error is None else self._log.warning
        write(
            "model.reformed" if error is None else "model.not_reformed",
            model=key.name,
            version=key.version,
            worker=one.worker,
            form=one.form.value,
            by=one.by,
            seconds=round(one.ended - one.begun, 3),
            **more,
        )
        if one.done is not None:
            one.done(error, one.version)
