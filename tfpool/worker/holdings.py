"""The models that a worker holds or is loading. They outlive the broker that had them loaded.

The next broker is given an inventory, in which they go by negative handles, and adopts what it wants under handles of
its own. Until then nobody is told of them.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tfpool.wire.messages import Bell
from tfpool.worker.executor import Servable
from tfpool.worker.voice import Voice


@dataclass(slots=True, eq=False)
class Holding:
    """One model: how it was ordered, in which reign of a broker, and what came of it.

    ``load`` is the load, done or under way. ``outcome`` is what it ended with: a verb and what follows the handle;
    ``servable`` is set where that is LOADED, and ``stamp`` marks the files it came from.
    """

    handle: int
    name: str
    path: str
    options: dict[str, Any]
    reign: int
    load: Future[None] = field(default_factory=Future)
    servable: Servable | None = None
    stamp: str = ""
    outcome: tuple[Any, ...] = ()


class Holdings:
    """All of them, by handle. Methods may be called from any thread."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._held: dict[int, Holding] = {}

    def add(self, handle: int, name: str, path: str, options: dict[str, Any]) -> Holding:
        """The present broker wants a model loaded."""
        made = self._held[handle] = Holding(handle, name, path, options, self._voice.reign)
        return made

    def servable(self, handle: int) -> Servable | None:
        """What runs go to; None where there is none, or not yet."""
        found = self._held.get(handle)
        return found.servable if found is not None else None

    def get(self, handle: int) -> Holding | None:
        """What is held by this handle."""
        return self._held.get(handle)

    def take(self, handle: int) -> Holding | None:
        """Hold something no longer; a load that is under way goes on."""
        return self._held.pop(handle, None)

    def tell(self, holding: Holding, verb: Bell, *fields: Any) -> None:
        """Tell how a load, or a change, gets on."""
        with self._voice.lock:
            self._voice.answer(holding.reign, verb, holding.handle, *fields)

    def loaded(self, holding: Holding, servable: Servable, stamp: str, info: dict[str, Any]) -> None:
        """A load has ended well, from the files that ``stamp`` marks."""
        with self._voice.lock:
            holding.servable, holding.stamp, holding.outcome = servable, stamp, (Bell.LOADED, info)
            self._report(holding)

    def changed(self, holding: Holding, servable: Servable, info: dict[str, Any]) -> None:
        """A model is served in another form from now on; who has adopted it meanwhile is told."""
        with self._voice.lock:
            holding.servable, holding.outcome = servable, (Bell.LOADED, info)
            self.tell(holding, Bell.REFORMED, info)

    def failed(self, holding: Holding, code: int, message: str) -> None:
        """A load has failed."""
        with self._voice.lock:
            holding.outcome = (Bell.LOAD_FAILED, code, message)
            self._report(holding)

    def inventory(self) -> list[list[Any]]:
        """What there is for a broker that knows nothing of it: negative handle, name, path, options, and bytes (None:
        it is being loaded) of each."""
        with self._voice.lock:
            left = [holding for holding in self._held.values() if holding.outcome[:1] != (Bell.LOAD_FAILED,)]
            self._held = {-number: holding for number, holding in enumerate(left, 1)}
            for handle, holding in self._held.items():
                holding.handle = handle
            return [[h.handle, h.name, h.path, h.options, _bytes(h)] for h in left]

    def adopt(self, handle: int, new: int) -> None:
        """The present broker claims a part of the inventory; it hears how the load ended, now or later."""
        with self._voice.lock:
            holding = self._held[new] = self._held.pop(handle)
            holding.handle, holding.reign = new, self._voice.reign
            if holding.outcome:
                self._report(holding)

    def _report(self, holding: Holding) -> None:
        """Say what came of a load; one that failed is forgotten once it has been asked for."""
        verb, *fields = holding.outcome
        if verb == Bell.LOAD_FAILED and holding.reign == self._voice.reign:
            self._held.pop(holding.handle, None)
        self._voice.answer(holding.reign, verb, holding.handle, *fields)


def _bytes(holding: Holding) -> int | None:
    return int(holding.outcome[1]["memory_bytes"]) if holding.outcome else None
