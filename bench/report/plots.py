"""The plots of a scenario, as PNG at twice the size at which they are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.points import CLIENT, QUANTILES, Point
from bench.report.canvas import Label, annotate, blank, heading, legend, log, png, styled, ticks
from bench.report.cases import Case, Repeats, cases
from bench.report.palette import BAD, GOOD, INK, REFERENCE_GREYS, REFERENCES, Look, looks, role_colors
from bench.report.reading import Measured
from bench.report.tables import number, target_text
from bench.scenario import Figure, Spread

_ROW_INCHES = 0.34
_NAME = 42  # characters of a figure's name in a line
_SIZE = re.compile(r"(\d+) (KiB|MiB), beside (.+)")
_FEWEST_SIZES = 2

Drawn = tuple[str, Canvas]  # title, plot


@dataclass(frozen=True)
class Plot:
    """``name`` is that of its file, without the end; ``alt`` tells what is seen."""

    name: str
    alt: str
    png: bytes


def of(found: Sequence[Measured]) -> Mapping[str, Sequence[Plot]]:
    """By scenario. Systems have the same colours in all of them."""
    look = looks(point.system for one in found for point in one.outcome.points)
    with styled():
        return {one.name: list(_of(one, look)) for one in found}


def _of(measured: Measured, look: Mapping[str, Look]) -> Iterator[Plot]:
    drawn: list[tuple[str, Drawn | None]] = []
    for model, same in groupby(cases(_drawable(measured.outcome.points)), key=lambda case: case.model):
        several = list(same)
        if len({system for case in several for system in case.systems()}) == 1 < len(several):
            drawn.append((f"-{model}-distribution", _distribution_by_load(several)))
            continue
        for case in several:
            name = f"-{model}-{case.load}"
            drawn += [
                (f"{name}-latency", _throughput_and_latency(case, look)),
                (f"{name}-distribution", _distribution(case, look)),
                (f"{name}-cpu", _cpu(case)),
                (f"{name}-memory", _memory(case)),
            ]
    drawn += [("-sizes", _sizes(measured)), ("-ratios", _ratios(measured))]
    for name, made in drawn:
        if made is not None:
            title, canvas = made
            yield Plot(_slug(measured.name + name), title, png(canvas))


def _drawable(points: Sequence[Point]) -> list[Point]:
    """What log axes can show: nothing of who answered nothing, and no latencies that are not positive; the greatest
    is not shown."""
    return [
        point if min(point.quantiles_us[:-1], default=0.0) > 0 else replace(point, quantiles_us=())
        for point in points
        if point.rate > 0
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- latencies -----------------------------------------------------------------------------------------------------


def _throughput_and_latency(case: Case, look: Mapping[str, Look]) -> Drawn | None:
    """Two panels, p50 and p99: a line a system over the levels; what has no latencies is a line at its best rate."""
    systems = {system: case.of(system) for system in case.systems()}
    if not any(one.latency_ms(0.5) for some in systems.values() for one in some.values()):
        return None
    canvas = blank(7.2)
    panels = canvas.subplots(2, 1, sharex=True)
    labels = [_panel(axes, case, systems, look, q) for axes, q in zip(panels, (0.5, 0.99), strict=True)]
    title = f"{case.title}: {'throughput against latency' if case.closed else 'latency under load'}"
    heading(panels[0], title, "right and down is better; numbers are requests in flight" if case.closed else "")
    panels[1].set_xlabel("requests answered a second" if case.closed else "load, % of what the roofline can do")
    legend(canvas, systems, look)
    canvas.draw_without_rendering()  # lays the panels out: labels need to know where dots are
    for axes, some in zip(panels, labels, strict=True):
        annotate(axes, some)
    return title, canvas


def _panel(
    axes: Axes, case: Case, systems: Mapping[str, Mapping[float, Repeats]], look: Mapping[str, Look], q: float
) -> list[Label]:
    """Gives the labels that its dots would have."""
    labels: list[Label] = []
    log(axes, x=case.closed, y=True)
    axes.set_ylabel(f"p{100 * q:g} latency, ms")
    for system, levels in systems.items():
        style = look[system]
        dots = [
            (one.rate.median if case.closed else 100 * level, taken.median, f"{level:g}")
            for level, one in levels.items()
            if (taken := one.latency_ms(q)) is not None
        ]
        xs, ys = [x for x, _, _ in dots], [y for _, y, _ in dots]
        axes.plot(xs, ys, style.dashes, color=style.color, lw=style.width, marker=style.marker or "o", ms=5.5)
        if case.closed:
            labels += [(*dot, style.color) for dot in dots]
            if len(dots) < len(levels):
                best = max(one.rate.median for one in levels.values())
                axes.axvline(best, color=style.color, ls="--", lw=style.width)
    axes.margins(y=0.08)
    ticks(axes.yaxis)
    if case.closed:
        ticks(axes.xaxis)
    return labels


def _distribution(case: Case, look: Mapping[str, Look]) -> Drawn | None:
    """Of each system, at the level that tells the most of those that serve."""
    level = case.telling(lambda one: one.system not in REFERENCES and one.quantiles_ms())
    if level is None:
        return None
    lines = {one.system: taken for one in case.levels[level] if (taken := one.quantiles_ms())}
    return _quantiles(f"{case.title}: distribution of latencies, {case.level_text(level)}", lines, look)


def _distribution_by_load(several: Sequence[Case]) -> Drawn | None:
    """Of one system that is by itself under different loads."""
    lines = {
        f"{case.load}, {case.level_text(level)}": taken
        for case in several
        for level, (one,) in case.levels.items()
        if (taken := one.quantiles_ms())
    }
    (system, *_), model = several[0].systems(), several[0].model
    return _quantiles(f"{model}, {system}: distribution of latencies by load", lines, looks(lines)) if lines else None


def _quantiles(title: str, lines: Mapping[str, Sequence[float]], look: Mapping[str, Look]) -> Drawn:
    """Latencies up to the 99.9th percentile."""
    canvas = blank(4.4)
    axes = canvas.subplots()
    log(axes, x=True, y=True)
    for name, taken in lines.items():
        style = look[name]
        shown = [(ms, 1 - q) for q, ms in zip(QUANTILES, taken, strict=True) if q < 1]
        axes.plot(*zip(*shown, strict=True), style.dashes, color=style.color, lw=style.width, marker=style.marker, ms=4)
    axes.set_ylim(1.0, 1e-3)
    axes.set_yticks([0.5, 0.1, 0.01, 0.001], ["50 %", "90 %", "99 %", "99.9 %"])
    axes.yaxis.set_minor_locator(NullLocator())
    ticks(axes.xaxis)
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of the requests that took no longer")
    axes.set_title(title)
    legend(canvas, lines, look)
    return title, canvas


# -- what it takes -------------------------------------------------------------------------------------------------


def _cpu(case: Case) -> Drawn | None:
    return _bars(case, Repeats.cpu_us, "CPU time a request", "CPU time, us a request")


def _memory(case: Case) -> Drawn | None:
    return _bars(case, Repeats.memory_mb, "memory", "PSS, MB")


def _bars(case: Case, of: Callable[[Repeats], Mapping[str, float]], what: str, label: str) -> Drawn | None:
    """A stack of roles a system, at the level that tells the most; the client's share comes last."""
    level = case.telling(of)
    if level is None:
        return None
    parts = {one.system: known for one in case.levels[level] if (known := of(one))}
    roles = sorted(dict.fromkeys(role for known in parts.values() for role in known), key=lambda role: role == CLIENT)
    colors = role_colors(roles)
    canvas = blank(1.3 + _ROW_INCHES * len(parts))
    axes = canvas.subplots()
    most = max(sum(known.values()) for known in parts.values())
    for place, known in enumerate(parts.values()):
        left = 0.0
        for role in roles:
            share = known.get(role, 0.0)
            hatch = "////" if role == CLIENT else None
            axes.barh(place, share, 0.66, left, color=colors[role], edgecolor="white", linewidth=0.5, hatch=hatch)
            left += share
        axes.text(left + 0.01 * most, place, number(left), va="center", fontsize=8.5)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * most)
    axes.grid(False, axis="y")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    title = f"{case.title}: {what}, {case.level_text(level)}"
    axes.set_title(title)
    patches = [Patch(facecolor=colors[r], hatch="////" if r == CLIENT else None, edgecolor="white") for r in roles]
    canvas.legend(patches, roles, loc="outside lower center", ncols=5)
    return title, canvas


# -- figures -------------------------------------------------------------------------------------------------------


def _sizes(measured: Measured) -> Drawn | None:
    """Bytes a second over sizes, where figures are named ``4 MiB, beside a memcpy``."""
    lines: dict[str, dict[int, Spread]] = {}
    for figure in measured.outcome.figures:
        match = _SIZE.fullmatch(figure.name)
        if match and figure.reference:
            nbytes = int(match[1]) << (10 if match[2] == "KiB" else 20)
            lines.setdefault("tfpool", {})[nbytes] = figure.ours
            lines.setdefault(match[3], {})[nbytes] = figure.reference
            unit = figure.unit
    if len(lines.get("tfpool", ())) < _FEWEST_SIZES:
        return None
    canvas = blank(4.2)
    axes = canvas.subplots()
    log(axes, x=True, y=True)
    style = looks(["tfpool"])["tfpool"]
    for place, (name, sizes) in enumerate(lines.items()):
        ordered = sorted(sizes)
        values = [sizes[nbytes] for nbytes in ordered]
        ours = name == "tfpool"
        color = style.color if ours else REFERENCE_GREYS[place % len(REFERENCE_GREYS)]
        axes.fill_between(ordered, [v.least for v in values], [v.most for v in values], color=color, alpha=0.15, lw=0)
        dashes = "-" if ours else ("--", ":")[place % 2]
        width = style.width if ours else 1.8
        axes.plot(ordered, [v.median for v in values], dashes, color=color, lw=width, marker="o", label=name)
    every = sorted(lines["tfpool"])
    axes.set_xticks(every, [f"{n >> 10} KiB" if n < 1 << 20 else f"{n >> 20} MiB" for n in every])
    axes.xaxis.set_minor_locator(NullLocator())
    ticks(axes.yaxis)
    axes.set_xlabel("size of a tensor")
    axes.set_ylabel(unit)
    title = f"{measured.name}: {unit} over the size of a tensor, median and min..max"
    axes.set_title(title)
    canvas.legend(loc="outside lower center", ncols=4)
    return title, canvas


def _ratios(measured: Measured) -> Drawn | None:
    """Ratios that have a target, of a scenario without points."""
    rows = [] if measured.outcome.points else [one for one in measured.outcome.figures if _charted(one)]
    if not rows:
        return None
    names = [f"{fill(one.name, _NAME)}\n{target_text(one.target, one.higher_is_better)}" for one in rows]
    canvas = blank(1.2 + 0.6 * _ROW_INCHES * sum(name.count("\n") + 1 for name in names))
    axes = canvas.subplots()
    axes.set_xscale("log")
    axes.axvline(1.0, color=REFERENCE_GREYS[0], ls="--", lw=1.2)
    for place, figure in enumerate(rows):
        ratio, target = figure.ratio, figure.target
        assert ratio
        assert target
        color = GOOD if figure.verdict == "ok" else BAD
        axes.plot([ratio.least, ratio.most], [place, place], color=color, lw=2.2, solid_capstyle="round")
        axes.plot(ratio.median, place, "o" if figure.verdict == "ok" else "X", color=color, ms=7)
        axes.plot([target.bound] * 2, [place - 0.36, place + 0.36], color=INK, lw=2)
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    ticks(axes.xaxis, lambda value: f"{number(value)}x")
    axes.set_xlabel("ours over the reference, median and min..max; black: the target")
    title = f"{measured.name}: ratios beside their targets"
    canvas.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return title, canvas


def _charted(figure: Figure) -> bool:
    """Its target is on a ratio that a log axis can show."""
    ratio, target = figure.ratio, figure.target
    if ratio is None or target is None or target.on != "ratio" or target.bound <= 0:
        return False
    return all(isfinite(value) and value > 0 for value in ratio.values)
