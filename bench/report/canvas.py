"""What all plots share: size, style, log axes that are always numbered, labels that do not overlap, a legend below."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from math import log10

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.report.palette import FAINT, INK, Look
from bench.report.tables import number

WIDTH = 700  # pixels on a page
_DPI = 100
_SCALE = 2
_LONG_NAME = 22  # characters in a legend
_SHORT_DECADES, _FEW_DECADES = 0.7, 2.2
_HALO = (withStroke(linewidth=2.5, foreground="white"),)
_STYLE: Mapping[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}

Label = tuple[float, float, str, str]  # x, y, text, colour

_Box = tuple[float, float, float, float]


def styled() -> AbstractContextManager[None]:
    """Plots that are made in the block look like all others."""
    return matplotlib.rc_context(dict(_STYLE))  # type: ignore[arg-type]


def png(canvas: Canvas) -> bytes:
    """The same plot gives the same bytes."""
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=_SCALE * _DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def blank(inches: float) -> Canvas:
    """A plot so high, as wide as a page."""
    return Canvas(figsize=(WIDTH / _DPI, inches))


def heading(axes: Axes, title: str, explained: str) -> None:
    """A title, and how to read the plot."""
    axes.set_title(f"{title}\n" if explained else title)
    axes.text(0, 1.015, explained, transform=axes.transAxes, color=INK, fontsize=8.5)


def log(axes: Axes, *, x: bool, y: bool) -> None:
    """Make axes logarithmic; :func:`ticks` numbers them later."""
    if x:
        axes.set_xscale("log")
    if y:
        axes.set_yscale("log")


def ticks(axis: Axis, text: Callable[[float], str] = number) -> None:
    """Enough numbers along a log axis, however short; to be called when everything is drawn."""
    least, most = axis.get_view_interval()
    decades = log10(most / least)
    if decades < _FEW_DECADES:
        subs = (1.0, 2.0, 5.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(MaxNLocator(6) if decades < _SHORT_DECADES else LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def legend(canvas: Canvas, systems: Collection[str], look: Mapping[str, Look]) -> None:
    """Below everything."""
    lines = [
        Line2D([], [], color=style.color, ls=style.dashes, lw=style.width, marker=style.marker, ms=5)
        for style in map(look.__getitem__, systems)
    ]
    canvas.legend(
        lines, list(systems), loc="outside lower center", ncols=3 if max(map(len, systems)) > _LONG_NAME else 4
    )


def annotate(axes: Axes, labels: Sequence[Label]) -> None:
    """Texts beside their dots, where there is room for them; the others are left out."""
    points_a_pixel = 72 / _DPI
    dots = [tuple(axes.transData.transform((x, y))) for x, y, _, _ in labels]
    taken: list[_Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for (x, y, text, color), (px, py) in zip(labels, dots, strict=True):
        width, height = 6.5 * len(text), 10.0
        for dx, dy in ((-width / 2, 7.0), (8.0, -height / 2), (-width / 2, -7.0 - height), (-8.0 - width, -height / 2)):
            box = (px + dx, py + dy, px + dx + width, py + dy + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                offset = dx * points_a_pixel, dy * points_a_pixel
                axes.annotate(
                    text, (x, y), offset, textcoords="offset points", fontsize=8, color=color, path_effects=_HALO
                )
                break


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
