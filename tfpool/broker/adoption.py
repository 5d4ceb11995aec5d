"""Models that outlive a broker: workers still hold them, and this broker takes them over without a load."""

from __future__ import annotations

from collections.abc import Callable

from tfpool.broker.budget import Budget
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.inventory import Item, hopeless
from tfpool.broker.registry import Goal, Registry, Version
from tfpool.repository.states import Step
from tfpool.telemetry import log
from tfpool.wire.messages import Bell


class Adoption:
    """``pending`` while workers hold something that nobody has claimed. While this is ``settling``, no load makes room
    of that, however urgent it is."""

    def __init__(self, registry: Registry, fleet: Fleet, budget: Budget) -> None:
        self._registry = registry
        self._fleet = fleet
        self._budget = budget
        self.settling, self.pending = True, False
        self._sorted = -1
        self._log = log.get("models")

    def came(self, link: Link) -> None:
        """A worker is ready, maybe with what it holds."""
        if link.inventory:
            self.pending = True
            self._registry.epoch += 1

    def numbers(self, model: str) -> set[int]:
        """Versions of a model that workers hold, whether they are still what they were or not."""
        return {item.number for item in self._unclaimed() if item.model == model} if self.pending else set()

    def heirs(self, links: list[Link], version: Version) -> list[str]:
        """Those of some workers that hold a version."""
        return [link.name for link in links if link.inventory.find(version)]

    def wants(self, version: Version, unloaded: bool) -> bool:
        """Whether a version shall serve because a worker holds it; not if somebody has ``unloaded`` it."""
        if unloaded or not self.heirs(list(self._fleet.links.values()), version):
            return False
        if version.goal is Goal.OFF:  # somebody had loaded it by hand
            version.goal = Goal.SERVE
        return True

    def claim(self, link: Link, version: Version) -> bool:
        """Have a worker serve what it holds already; False where it does not hold it. It answers as after a load."""
        item = link.inventory.find(version) if link.up and not link.leaving else None
        if item is None:
            return False
        link.inventory.remove(item)
        version.step(link.name, Step.LOAD)
        link.loading.add(version.handle)
        if item.nbytes is not None:
            link.resident[version.handle] = link.resident.pop(item.handle)
        else:
            self._budget.reserve(link, version)
        self._log.info("model.adopted", model=version.key.name, version=version.key.version, worker=link.name)
        link.ring(Bell.ADOPT, item.handle, version.handle)
        return True

    def clutters(self, link: Link, asked: bool) -> bool:
        """Whether a load should wait for room that this will give back. For one that somebody has ``asked`` for, what
        has not been claimed in time goes."""
        if asked and not self.settling:
            for item in list(link.inventory):
                self._throw_out(link, item)
        return (self.settling and bool(link.inventory)) or any(handle < 0 for handle in link.unloading)

    def sort_out(self, unloaded: Callable[[Version], bool], start: Callable[[Version], None]) -> None:
        """Claim what workers brought that came late, and part with what nobody will claim."""
        if self._sorted == self._registry.epoch:
            return
        self._sorted = self._registry.epoch
        for item in self._unclaimed():
            model = self._registry.models.get(item.model)
            version = model.versions.get(item.number) if model is not None else None
            idle = version is not None and version.described and not version.on
            if version is not None and idle and self.wants(version, unloaded(version)):
                start(version)
        for link in self._fleet.links.values():
            for item in list(link.inventory):
                if hopeless(item, self._registry.models.get(item.model)):
                    self._throw_out(link, item)
        self.pending = bool(self._unclaimed())

    def _unclaimed(self) -> list[Item]:
        return [item for link in self._fleet.links.values() for item in link.inventory]

    def _throw_out(self, link: Link, item: Item) -> None:
        self._log.info("model.unclaimed", model=item.name, worker=link.name)
        link.inventory.remove(item)
        link.unloading.add(item.handle)
        link.ring(Bell.UNLOAD, item.handle)
