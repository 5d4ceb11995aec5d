"""What a worker still holds for a broker that died: claimed, version by version, or thrown away in the end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tfpool.broker.registry import Model, Version
from tfpool.settings import Form


class Item(NamedTuple):
    """A model that a worker holds: its handle there, how it was ordered, and its bytes (None: it is being loaded)."""

    handle: int
    name: str
    path: str
    options: dict[str, Any]
    nbytes: int | None

    @property
    def model(self) -> str:
        return self.name.rpartition(":")[0]

    @property
    def number(self) -> int:
        """Which version of the model it is."""
        return int(self.name.rpartition(":")[2])


def order(version: Version) -> tuple[str, str, dict[str, Any]]:
    """How a worker is told to load a version."""
    options = {
        "stateful": list(version.settings.stateful),
        "sizes": list(version.settings.batching.allowed_batch_sizes),
        "rows": version.settings.batching.max_batch_size,
        "fingerprint": version.fingerprint,
        "form": (Form.PLAIN if version.unfit else version.settings.form or Form.MAPPED).value,
    }
    return str(version.key), version.path, options


class Inventory:
    """What one worker holds that nobody has claimed yet."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._by_name: dict[str, list[Item]] = {}
        for item in items:
            self._by_name.setdefault(item.name, []).append(item)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._by_name.values() for item in items)

    def find(self, version: Version) -> Item | None:
        """What can serve as this very version: the same files, loaded in the same way. How it was warmed up is past."""
        items = self._by_name.get(str(version.key))
        if not items:
            return None
        wanted = _identity(*order(version)[1:])
        return next((item for item in items if _identity(item.path, item.options) == wanted), None)

    def remove(self, item: Item) -> None:
        items = self._by_name[item.name]
        items.remove(item)
        if not items:
            del self._by_name[item.name]


def _identity(path: str, options: dict[str, Any]) -> tuple[Any, ...]:
    return path, options["fingerprint"], options["stateful"]


def hopeless(item: Item, model: Model | None) -> bool:
    """Whether nobody is going to claim an item; ``model`` is the one of its name, if there is one.

    A model whose directory has not been seen yet, or cannot be read, may still want it.
    """
    if model is None:
        return True
    if not model.found:
        return False
    version = model.versions.get(item.number)
    return version is None or version.described
