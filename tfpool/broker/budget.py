"""Memory of the workers: what a load will take, whether there is room for it, and what it would have to push out.

A worker's budget bounds the bytes that it has to itself, and its share of the files that it maps. Sizes are measured
at every load and remembered by what the files look like, so that a guess from the disk serves once in a model's life.
A part of the budget is kept free for what runs take beyond what loads were measured to, and for the pages that a worker
touches for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress

from tfpool.broker.fleet import Link
from tfpool.broker.pages import Pages
from tfpool.broker.registry import Version
from tfpool.errors import ResourceExhausted
from tfpool.placement.eviction import Gdsf
from tfpool.repository.memo import Footprint
from tfpool.settings import Form

GUESS_FACTOR = 4
GUESS_BYTES = 8 << 20
FREE_SHARE, MOST_FREE_BYTES = 0.1, 256 << 20
MARGIN_BYTES = 1 << 20  # two loads of the same files differ by about half of this


class Budget:
    """``footprints`` are those remembered, by fingerprint; ``remember`` takes what is learnt."""

    def __init__(self, footprints: dict[str, Footprint], remember: Callable[[str, Footprint], None]) -> None:
        self._footprints = footprints
        self._remember = remember
        self._gdsf = Gdsf()
        self.pages = Pages()

    def hit(self, version: Version, requests: int) -> None:
        """A version has been asked for."""
        self._gdsf.hit(version.handle, requests)

    def expected(self, version: Version, link: Link | None = None) -> Footprint | None:
        """What loading it took the last time, or was measured to take when it was compiled since; None if neither.

        Only workers on CPUs load what was compiled.
        """
        measured, stored = self._footprints.get(version.fingerprint), version.stored
        if stored is None or not version.compiled or (link is not None and link.settings.device != "cpu"):
            return None if measured is None or measured.shared else measured
        if measured is not None and measured.shared:
            return measured
        return stored.footprint(version.settings.form or Form.MAPPED) or measured

    def need(self, link: Link, version: Version) -> int:
        """Bytes to reserve for a load: the peak as measured, or a guess; never more than an empty worker has, so that
        whatever is not :meth:`impossible` fits at last."""
        need = self.foreseen(version, link) + self._adds(link, version)
        return need if link.settings.memory is None else min(need, limit(link.settings.memory) - link.base)

    def foreseen(self, version: Version, link: Link | None = None) -> int:
        """Bytes that a load takes at its height: as measured, or a guess."""
        known = self.expected(version, link)
        if known is not None:
            return max(known.peak, 0 if known.shared else version.disk_bytes) + MARGIN_BYTES
        return GUESS_FACTOR * version.disk_bytes + GUESS_BYTES

    def _adds(self, link: Link, version: Version) -> int:
        """Its share of a file that it would map."""
        known, stored = self.expected(version, link), version.stored
        return self.pages.adds(link.name, stored.key, known.shared) if known is not None and stored is not None else 0

    def impossible(self, link: Link, version: Version) -> ResourceExhausted | None:
        """Why a worker can never hold a version, however empty it is; None where it can."""
        if link.settings.memory is None:
            return None
        known = self.expected(version, link)
        takes = known.peak + known.shared if known else version.disk_bytes
        most = limit(link.settings.memory)
        if link.base + takes <= most:
            return None
        how = "was measured to take" if known else "has files of"
        return ResourceExhausted(
            f"it {how} {mib(takes)}; worker {link.name} has {mib(most - link.base)} for models "
            f"(of a budget of {mib(link.settings.memory)}, {mib(link.base)} are its own and "
            f"{mib(link.settings.memory - most)} are kept free)"
        )

    def missing(self, link: Link, version: Version, guess: bool = True) -> int:
        """Bytes that are lacking before a version can be loaded; 0 or less where there is room.

        One that was never measured is taken to need as much as one may guess, or only what its files have.
        """
        if link.settings.memory is None:
            return 0
        least = not guess and self.expected(version, link) is None
        need = version.disk_bytes if least else self.need(link, version)
        others = self.committed(link) - link.reserved.get(version.handle, 0)
        return others + need - limit(link.settings.memory)

    def reserve(self, link: Link, version: Version) -> None:
        """Keep memory free for a load that has begun, or is about to."""
        if link.settings.memory is not None:
            link.reserved[version.handle] = self.need(link, version)

    def excess(self, link: Link) -> int:
        """Bytes that a worker holds over what it may."""
        return self.committed(link) - limit(link.settings.memory) if link.settings.memory is not None else 0

    def leaving(self, link: Link) -> int:
        """Bytes that unloads under way will give back."""
        return sum(self.gives(link, handle) for handle in link.unloading)

    def gives(self, link: Link, handle: int) -> int:
        """Bytes that a worker has back once a model has left it."""
        return link.resident.get(handle, 0) + self.pages.frees(link.name, handle)

    def victims(self, missing: int, idle: Iterable[Version]) -> list[Version]:
        """Which of the idle versions of a worker should go to make room; none where all together do not suffice."""
        by_handle: dict[Hashable, Version] = {version.handle: version for version in idle}
        return [by_handle[handle] for handle in self._gdsf.victims(missing, by_handle)]

    def admitted(self, link: Link, version: Version, found: Footprint, form: Form = Form.PLAIN, key: str = "") -> None:
        """A version has been loaded, and measured; ``key`` names the file that it maps, if it does."""
        self.holds(link, version, found, form, key)
        if usual(version, form):
            self._remember(version.fingerprint, found)
        self._gdsf.admit(version.handle, max(1, found.nbytes + found.shared), found.load_seconds)

    def reformed(self, link: Link, version: Version, found: Footprint, form: Form, key: str) -> None:
        """A version has changed its form, and was measured."""
        self.holds(link, version, found, form, key)
        if usual(version, form):
            self._remember(version.fingerprint, found)
        self._gdsf.resize(version.handle, max(1, found.nbytes + found.shared), found.load_seconds)

    def holds(self, link: Link, version: Version, found: Footprint, form: Form, key: str) -> None:
        """What a version takes of a worker in the form that it has there now."""
        link.reserved.pop(version.handle, None)
        link.resident[version.handle], link.forms[version.handle] = found.nbytes, form
        self.pages.unmap(link.name, version.handle)
        if key:
            self.pages.map(link.name, version.handle, key, found.shared)

    def released(self, link: Link, handle: int, evicted: bool, elsewhere: bool) -> None:
        """A version has left a worker; ``elsewhere``: others still hold it."""
        link.reserved.pop(handle, None)
        link.resident.pop(handle, None)
        link.forms.pop(handle, None)
        self.pages.unmap(link.name, handle)
        if evicted:
            with suppress(KeyError):  # it was never loaded to the end, or another replica of it has left before
                self._gdsf.evicted(handle)
        elif not elsewhere:
            self._gdsf.forget(handle)

    def forget(self, version: Version) -> None:
        """A version will not come back."""
        self._gdsf.forget(version.handle)

    def residue(self, link: Link) -> int:
        """Bytes that a worker has beyond those of its base and its models."""
        return link.unique - link.base - sum(link.resident.values())

    def committed(self, link: Link) -> int:
        """Bytes that a worker has, or has promised to loads, with its share of the files that it maps."""
        held = max(link.unique, link.base + sum(link.resident.values()))
        return held + self.pages.share(link.name) + sum(link.reserved.values())


def usual(version: Version, form: Form) -> bool:
    """Whether a version is loaded in this form, and not changed to it because it is hot."""
    return form is not Form.INLINED or version.settings.form is Form.INLINED


def limit(budget: int) -> int:
    """What loads may fill of a budget."""
    return budget - min(int(budget * FREE_SHARE), MOST_FREE_BYTES)


def mib(nbytes: int) -> str:
    """Bytes, for people."""
    return f"{nbytes / (1 << 20):.1f} MiB"
