"""Messages of the same form, told by their bytes: only the elements of their tensors differ. Pure.

A client sends the same message again and again, with other numbers in it. Where the numbers lie, and what the rest
means, is found out once; after that it is enough to compare the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from tfpool.types import Shape
from tfpool.wire.tensors import Array

T = TypeVar("T")

MAX_FIXED_BYTES = 8192
_LENGTHS_KEPT = 1024
_FORMS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the elements of a tensor begin in a message."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    at: int

    @property
    def end(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return self.at + count


@dataclass(frozen=True, slots=True)
class Layout(Generic[T]):
    """Messages whose ``fixed`` bytes, each after its offset, are these, and what they mean but for their tensors."""

    fixed: tuple[tuple[int, bytes], ...]
    slots: tuple[Slot, ...]
    meaning: T

    def arrays(self, data: bytes) -> dict[str, Array]:
        """The tensors of such a message by name: views of ``data``, read-only."""
        return {slot.name: np.ndarray(slot.shape, slot.dtype, data, slot.at) for slot in self.slots}


def layout_of(data: bytes, slots: Iterable[Slot], meaning: T) -> Layout[T]:
    """The layout of a message."""
    fixed, at = [], 0
    placed = tuple(slots)
    for slot in sorted(placed, key=lambda slot: slot.at):
        fixed.append((at, data[at : slot.at]))
        at = slot.end
    fixed.append((at, data[at:]))
    return Layout(tuple(fixed), placed, meaning)


class Layouts(Generic[T]):
    """Those that have been seen, a bounded number."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[Layout[T]]] = {}

    def find(self, data: bytes) -> Layout[T] | None:
        """The layout that ``data`` has, if it is known: whatever was true of the first such message is true of it."""
        for layout in self._by_length.get(len(data), ()):
            for at, part in layout.fixed:
                if not data.startswith(part, at):
                    break
            else:
                return layout
        return None

    def keep(self, layout: Layout[T]) -> None:
        """Know it from now on, unless it is too large to compare."""
        size = sum(len(part) for _, part in layout.fixed)
        if size > MAX_FIXED_BYTES:
            return
        length = size + sum(slot.end - slot.at for slot in layout.slots)
        if len(self._by_length) >= _LENGTHS_KEPT:
            self._by_length.clear()
        forms = self._by_length.setdefault(length, [])
        forms.insert(0, layout)
        del forms[_FORMS_KEPT:]
