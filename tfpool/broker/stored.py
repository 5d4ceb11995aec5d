"""What the store has for the files of a version, in short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tfpool.repository.memo import Footprint
from tfpool.settings import Form
from tfpool.store.manifest import Manifest
from tfpool.store.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry of the store. ``refusal`` says why the model cannot be compiled (empty: it is). ``footprints`` are those
    that its forms were measured to have, ``gain`` how many times the rows a second the inlined form runs."""

    key: str
    refusal: str
    footprints: Mapping[Form, Footprint]
    gain: float

    @property
    def usable(self) -> bool:
        return not self.refusal

    @property
    def shared(self) -> int:
        """Bytes of the file that its mapped form maps."""
        mapped = self.footprints.get(Form.MAPPED)
        return mapped.shared if mapped is not None else 0

    def footprint(self, form: Form) -> Footprint | None:
        return self.footprints.get(form)


def look_up(directory: str, path: str) -> Stored | None:
    """What the store in ``directory`` has for the files in ``path``. Raises a TfpoolError where it cannot be read."""
    entry = Shelf(directory).find(path)
    return None if entry is None else _stored(entry.key, entry.manifest)


def touch(directory: str, keys: Iterable[str]) -> None:
    """Entries are in use."""
    shelf = Shelf(directory)
    for key in keys:
        shelf.touch(key)


def _stored(key: str, manifest: Manifest) -> Stored:
    shared = {Form.MAPPED: manifest.shared}
    footprints = {
        form: Footprint(cost.nbytes, cost.peak, cost.load_seconds, shared.get(form, 0))
        for form, cost in manifest.costs.items()
    }
    return Stored(key, manifest.refusal, footprints, manifest.gain)
