"""What commands print: JSON documents, tables, and numbers as people read them.

In JSON, numbers that are not finite are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (as in protobuf's
JSON), a complex number is ``[re, im]``, and bytes are text where they are UTF-8, else ``{"b64": "..."}``.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDE = 1 << 14
_STATE_STYLES = {"AVAILABLE": "green", "READY": "green", "FAILED": "bold red", "HALTED": "bold red", "UNLOADED": "dim"}


def print_json(value: object, indent: int | None = 2) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(plain(value), indent=indent, allow_nan=False))


def plain(value: Any) -> Any:
    """``value`` as JSON can say it; arrays become nested lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if hasattr(value, "tolist"):
        return plain(_listed(value))
    return value


def _listed(array: Any) -> Any:
    """Nested lists; short floats keep their shortest form (0.1, not 0.10000000149011612)."""
    import numpy as np

    if array.dtype.kind == "V" or array.dtype.name in ("float16", "float32"):  # bfloat16 and float8 are of kind V
        return np.asarray(array, np.float32).astype("U32").astype(np.float64).tolist()
    return array.tolist()


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(value).decode()}


# -- tables --------------------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; where there is none, so wide that nothing is cut or wrapped."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def table(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table. A column that starts with ``>`` is right-aligned, with ``~`` may wrap; states have their colours."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        right, folds = column.startswith(">"), column.startswith("~")
        made.add_column(column.lstrip(">~"), justify="right" if right else "left", no_wrap=not folds, overflow="fold")
    for row in rows:
        cells = ["-" if cell is None or cell == "" else str(cell) for cell in row]
        made.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in cells))
    return made


def show(*parts: RenderableType, to: Console | None = None) -> None:
    """Print tables and lines on stdout, without blanks at the ends of lines."""
    target = to or console()
    with target.capture() as captured:
        for part in parts:
            target.print(part, markup=False)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


# -- numbers -------------------------------------------------------------------------------------------------------


def size(count: float | None) -> str | None:
    """``31.2 MB``."""
    if count is None:
        return None
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str | None:
    """``180 us``, ``4.2 ms``, ``0.18 s``, ``12.4 s``, ``3m 07s``, ``2h 05m``, ``3d 04h``."""
    if seconds is None:
        return None
    if seconds < 0.0995:
        return f"{seconds * 1e6:.0f} us" if seconds < 0.0009995 else f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 24 else f"{hours // 24}d {hours % 24:02d}h"


def micros(value: float | None) -> str | None:
    """A duration given in microseconds; None for none at all."""
    return duration(value / 1e6) if value else None


def rate(per_second: float) -> str:
    """``12,340`` or ``3.2``."""
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:.1f}"


def ranges(numbers: Iterable[int]) -> str:
    """``0-3,6``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def counted(count: int, noun: str) -> str:
    """``1 model``, ``3 models``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
