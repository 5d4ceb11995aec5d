"""The broker's look at the disk, which it never waits for.

One thread knows when to look at what; others look, for a look at a dead disk may never end. Where the kernel tells of
changes, looks follow them, and a slow round of looks makes up for what it may have missed; elsewhere all is looked at
every ``poll_s`` seconds. What was seen is fetched when :meth:`Watcher.fileno` is readable.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from typing import Any, TypeVar

from tfpool.errors import Internal, NotFound, TfpoolError
from tfpool.repository.crew import Crew
from tfpool.repository.look import Identity, Look, look, look_below
from tfpool.repository.notices import Notices

T = TypeVar("T")

_NET_SECONDS = 30.0
_TICK_SECONDS = 0.1
_STUCK_SECONDS = 0.5
_STUCK_A_DEVICE = 4
_LOOKERS = 32
_COVER_SECONDS = 1.0
_JOB_SECONDS = 5.0
_JOBS = 8
_CLOSE_SECONDS = 2.0
_ROOT = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What lies on disk for a model: versions and their directories, and marks that change when their files do.

    With an ``error`` nothing is known of its versions. ``ticket`` is that of the :meth:`Watcher.look` it answers, or 0.
    """

    model: str
    base_path: str
    versions: dict[int, str]
    marks: dict[int, str]
    error: TfpoolError | None
    ticket: int


@dataclass(frozen=True, slots=True)
class Roster:
    """The directories of ``models_root`` that hold a model, by name; with an ``error``, those seen last."""

    names: dict[str, str]
    error: TfpoolError | None


@dataclass(frozen=True, slots=True)
class Done:
    """A job of :meth:`Watcher.ask` has ended."""

    future: Future[Any]


@dataclass(slots=True, eq=False)
class _Subject:
    """A model, or models_root as ``_ROOT``. A look starts when it is ``due`` and none is under way."""

    name: str
    base_path: str
    due: float
    last: Look | None = None
    tickets: list[int] = field(default_factory=list)

    @property
    def device(self) -> int | None:
        """Where its files lie, as far as is known."""
        identity = self.last and self.last.directories.get(self.base_path)
        return identity[0] if identity else None


class Watcher:
    """Looks at base paths every ``poll_s`` seconds, or as they change (0: once, None: only when told to)."""

    def __init__(self, poll_s: float | None, models_root: str | None = None) -> None:
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._seen: list[Sighting | Roster | Done] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._subjects: dict[str, _Subject] = {}
        self._owners: dict[str, set[str]] = {}
        self._looking: set[_Subject] = set()
        self._running: dict[_Subject, float] = {}
        self._uncovered = False
        self._covered = time.monotonic()
        self._wakes = 0.0
        self._tickets = count(1)
        self._closed = False
        self._lookers = Crew("tfpool-look", _STUCK_SECONDS, _LOOKERS)
        self._workers = Crew("tfpool-ask", _JOB_SECONDS, _JOBS)
        self._notices = Notices(self._touched) if poll_s else None
        if models_root is not None:
            self.watch(_ROOT, models_root)
        self._thread = threading.Thread(target=self._direct, name="tfpool-watcher", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when something has been seen."""
        return self._bell

    def seen(self) -> list[Sighting | Roster | Done]:
        """What has been seen since the last call, in order."""
        with self._changed:
            if self._seen and not self._closed:
                os.eventfd_read(self._bell)
            seen, self._seen = self._seen, []
            return seen

    def watch(self, model: str, base_path: str) -> None:
        """Tell what lies at ``base_path``, once and then whenever it changes. A model watched before is forgotten."""
        with self._changed:
            self._drop(model)
            due = inf if self._poll_s is None and model != _ROOT else 0.0
            self._subjects[model] = _Subject(model, base_path, due)
            self._rouse(due)

    def forget(self, model: str) -> None:
        """Nothing more is told of ``model``, not even in answer to a look."""
        with self._changed:
            self._drop(model)
            if self._seen:
                self._seen = [what for what in self._seen if not isinstance(what, Sighting) or what.model != model]
                if not self._seen and not self._closed:
                    os.eventfd_read(self._bell)

    def look(self, model: str) -> int:
        """Look now, and answer with a Sighting of the ticket that is returned. Raises NotFound for an unknown model."""
        with self._changed:
            subject = self._subjects.get(model)
            if subject is None:
                raise NotFound(f"model {model!r} is not watched")
            ticket = next(self._tickets)
            subject.tickets.append(ticket)
            subject.due = 0.0
            self._rouse(0.0)
            return ticket

    def ask(self, job: Callable[[], T]) -> Future[T]:
        """Run a job that may be slow; what it returns or raises is in the future, which then comes as Done."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = job()
                except Exception as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            with self._changed:
                self._tell([Done(future)])

        with self._changed:
            self._workers.submit(run)
            self._rouse(0.0)
        return future

    def close(self) -> None:
        """Ends its threads; one that a disk holds up is left behind after 2 seconds, and tells nothing any more."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        with self._changed:
            if self._closed:
                return
            self._closed = True
            os.close(self._bell)
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)
        for ending in (self._notices, self._lookers, self._workers):
            if ending is not None:
                ending.close(deadline)

    def _direct(self) -> None:
        """The thread that knows when to look at what."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                wanted = self._to_cover(now)
                self._start_looks(now)
            if wanted and self._notices:
                self._notices.cover(wanted)
            with self._changed:
                crowded = self._lookers.tend() | self._workers.tend()
                now = time.monotonic()
                due = min((s.due for s in self._subjects.values() if s not in self._looking), default=inf)
                if crowded or self._uncovered:
                    due = min(due, now + _TICK_SECONDS)
                if due > 0.0 and not self._closed:
                    self._wakes = max(due, now + _TICK_SECONDS)
                    self._changed.wait(None if due == inf else self._wakes - now)
                self._wakes = 0.0

    def _rouse(self, due: float) -> None:
        """Have the thread that directs awake by ``due``."""
        if due < self._wakes:
            self._wakes = due
            self._changed.notify()

    def _start_looks(self, now: float) -> None:
        for subject in self._subjects.values():
            if subject.due <= now and subject not in self._looking:
                subject.due = inf
                self._looking.add(subject)
                self._lookers.submit(partial(self._look, subject))

    def _begin(self, subject: _Subject) -> list[int] | None:
        """The tickets that the look will answer; None when its disk seems dead: then it is put off."""
        with self._changed:
            now = time.monotonic()
            stuck = sum(other.device == subject.device for other in self._stuck(now))
            if subject.device is not None and stuck >= _STUCK_A_DEVICE:
                self._looking.discard(subject)
                subject.due = now + _STUCK_SECONDS
                self._rouse(subject.due)
                return None
            self._running[subject] = now
            tickets, subject.tickets = subject.tickets, []
            return tickets

    def _stuck(self, now: float) -> list[_Subject]:
        return [subject for subject, began in self._running.items() if began < now - _STUCK_SECONDS / 2]

    def _look(self, subject: _Subject) -> None:
        """On a thread of the crew."""
        tickets = self._begin(subject)
        if tickets is None:
            return
        try:
            if subject.name == _ROOT:
                found = look_below(subject.base_path, subject.last.names if subject.last else {})
            else:
                found = look(subject.base_path)
        except Exception as error:
            found = Look(error=Internal(f"{subject.base_path}: cannot be looked at: {error!r}"))
        with self._changed:
            now = time.monotonic()
            self._looking.discard(subject)
            del self._running[subject]
            if self._subjects.get(subject.name) is not subject:
                return
            before, subject.last = subject.last, found
            self._own(subject, before.directories if before else (), found.directories)
            interval = self._interval(found)
            subject.due = min(subject.due, now + interval)
            news = before is None or before.told() != found.told()
            if subject.name == _ROOT:
                self._tell([Roster(found.names, found.error)] if news else [])
            else:
                self._tell([_sighting(subject, found, ticket) for ticket in tickets or ([0] if news else [])])
            self._rouse(now + _TICK_SECONDS if self._uncovered else subject.due)

    def _interval(self, found: Look) -> float:
        if not self._poll_s:
            return inf
        if self._notices is None or not found.directories or not self._notices.works:
            return self._poll_s
        self._uncovered |= self._notices.lacks(found.directories)
        if not found.restless and self._notices.covers(found.directories):
            return max(self._poll_s, _NET_SECONDS * random.uniform(0.8, 1.2))  # not all of them at once
        return self._poll_s

    def _to_cover(self, now: float) -> dict[str, Identity]:
        """All directories that matter, once the looks that may add to them have ended; they are given a second."""
        looking = len(self._looking) > len(self._stuck(now))
        if not self._uncovered or (looking and now < self._covered + _COVER_SECONDS):
            return {}
        self._uncovered, self._covered = False, now
        looks = [subject.last for subject in self._subjects.values() if subject.last]
        return {path: identity for found in looks for path, identity in found.directories.items()}

    def _touched(self, directories: set[str]) -> None:
        """From a thread that hears the kernel."""
        with self._changed:
            for name in {name for path in directories for name in self._owners.get(path, ())}:
                self._subjects[name].due = 0.0
                self._rouse(0.0)

    def _own(self, subject: _Subject, before: Iterable[str], now: Iterable[str]) -> None:
        for path in before:
            self._owners[path].discard(subject.name)
            if not self._owners[path]:
                del self._owners[path]
        for path in now:
            self._owners.setdefault(path, set()).add(subject.name)

    def _drop(self, model: str) -> None:
        subject = self._subjects.pop(model, None)
        if subject and subject.last:
            self._own(subject, subject.last.directories, ())

    def _tell(self, what: list[Sighting | Roster | Done]) -> None:
        if what and not self._closed:
            self._seen += what
            os.eventfd_write(self._bell, 1)


def _sighting(subject: _Subject, found: Look, ticket: int) -> Sighting:
    return Sighting(subject.name, subject.base_path, found.versions, found.marks, found.error, ticket)
