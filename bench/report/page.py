"""One HTML file with everything that runs found: no scripts, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element

from bench.report.canvas import WIDTH
from bench.report.cases import cases
from bench.report.markup import page, tag
from bench.report.palette import OURS
from bench.report.plots import Plot
from bench.report.reading import Measured, Run
from bench.report.tables import Grid, figure_grid, figure_row, point_grid
from bench.scenario import Form

Found = Sequence[tuple[Run, Measured]]

_STYLE = Path(__file__).with_name("page.css")


def latest(runs: Sequence[Run]) -> Found:
    """Each scenario with the run that measured it last, of those in the most thorough form; runs come in the order of
    their dates."""
    thorough = list(Form)
    found: dict[str, tuple[Run, Measured]] = {}
    for run in runs:
        for name, measured in run.scenarios.items():
            before = found.get(name)
            if before is not None and thorough.index(run.form) < thorough.index(before[0].form):
                continue
            found.pop(name, None)
            found[name] = run, measured
    return list(found.values())


def html(found: Found, plots: Mapping[str, Sequence[Plot]], titles: Mapping[int, str]) -> bytes:
    """The page. ``titles`` are of experiments by number, in the order in which they come; ``plots`` by scenario."""
    sections = {number: [one for one in found if one[1].experiment == number] for number in titles}
    headings = {number: f"{number}. {titles[number]}" if number else titles[number] for number in titles}
    body = tag("body", *_head(found), _contents({n: headings[n] for n, some in sections.items() if some}, sections))
    body.append(_verdicts(found))
    for number, some in sections.items():
        if some:
            scenarios = [_scenario(measured, plots.get(measured.name, ())) for _, measured in some]
            body.append(tag("section", tag("h2", headings[number], id=f"experiment-{number}"), *scenarios))
    return page(tag("html", _technical(), body, lang="en"))


def _technical() -> Element:
    style = _STYLE.read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "tfpool: what was measured"),
        tag("style", style),
    )


# -- what comes first ----------------------------------------------------------------------------------------------


def _head(found: Found) -> list[Element]:
    figures = [figure for _, measured in found for figure in measured.outcome.figures if figure.verdict]
    kept, broken = sum(figure.verdict == "ok" for figure in figures), [m.name for _, m in found if m.error]
    lead = f"{kept} of {len(figures)} targets kept."
    if broken:
        lead += f" Failed, without figures: {', '.join(broken)}."
    runs = list({id(run): run for run, _ in found}.values())
    made = [tag("h1", "tfpool: what was measured"), tag("p", lead, class_="lead"), _runs(runs, found)]
    if doubts := _doubts(runs):
        made.append(tag("ul", *(tag("li", doubt) for doubt in doubts), class_="notes"))
    return made


def _runs(runs: Sequence[Run], found: Found) -> Element:
    columns = ("run", "measured", "form", "commit", "machine", "load average before", "versions", "scenarios")
    rows = [
        [
            run.file,
            f"{run.date:%Y-%m-%d %H:%M %Z}",
            run.form.value,
            (run.revision[:10] or "none") + (", changed" if run.dirty else ""),
            f"{run.machine.cpu}, {run.machine.cores} cores, {run.machine.memory_bytes / 2**30:.1f} GiB, "
            f"Linux {run.machine.kernel}",
            f"{run.machine.load_average:g}",
            ", ".join(f"{name} {version}" for name, version in run.versions.items()),
            ", ".join(measured.name for of, measured in found if of is run),
        ]
        for run in runs
    ]
    if len(rows) > 1:
        return _table(Grid(columns, rows), "runs")
    facts = [
        tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in zip(columns, rows[0], strict=True)
    ]
    return _scrolling(tag("table", tag("tbody", *facts)), "the run")


def _doubts(runs: Sequence[Run]) -> list[str]:
    """What to know before a figure is trusted."""
    several = len(runs) > 1
    found = [f"{run.file}: {doubt}" if several else doubt for run in runs for doubt in run.doubts()]
    for what, differ in (
        ("machines", {(run.machine.cpu, run.machine.cores, run.machine.memory_bytes) for run in runs}),
        ("commits", {run.revision for run in runs}),
        ("versions", {tuple(sorted(run.versions.items())) for run in runs}),
    ):
        if len(differ) > 1:
            found.append(f"the runs are of {len(differ)} {what}: compare figures of one run only")
    return found


def _contents(headings: Mapping[int, str], sections: Mapping[int, Found]) -> Element:
    lines = [tag("li", tag("a", "Targets", href="#targets"))]
    for number, heading in headings.items():
        names = ", ".join(measured.name for _, measured in sections[number])
        lines.append(tag("li", tag("a", heading, href=f"#experiment-{number}"), " ", tag("span", names, class_="soft")))
    return tag("nav", tag("ul", *lines), aria_label="contents")


def _verdicts(found: Found) -> Element:
    rows = [
        [f"{measured.name}: {name}", *cells]
        for _, measured in sorted(found, key=lambda one: one[1].experiment or len(found) + 100)
        for name, *cells in (figure_row(figure) for figure in measured.outcome.figures if figure.verdict)
    ]
    grid = Grid(figure_grid(()).columns, rows)
    how = (
        "Medians over the repeats; a ratio is ours over the reference within one repeat, with the least and the most "
        "behind it. Targets are judged on the median; one with an x is on the ratio, one without on our own value."
    )
    return tag("section", tag("h2", "Targets"), tag("p", how, class_="soft"), _table(grid, "targets"), id="targets")


# -- scenarios -----------------------------------------------------------------------------------------------------


def _scenario(measured: Measured, plots: Sequence[Plot]) -> Element:
    outcome = measured.outcome
    made = tag("section", tag("h3", measured.name, id=f"scenario-{measured.name}"), tag("p", measured.description))
    made.append(tag("p", f"took {measured.seconds:,.0f} s", class_="soft"))
    if measured.error:
        made.append(tag("div", f"failed: {measured.error}", class_="error", role="alert"))
    if outcome.figures:
        made.append(_table(figure_grid(outcome.figures), f"figures of {measured.name}"))
    for case in cases(outcome.points):
        grid = point_grid(case, spreads=True)
        made.append(_table(grid, grid.title, caption=True))
    if outcome.absent:
        pairs = [part for name, why in outcome.absent.items() for part in (tag("dt", name), tag("dd", why))]
        made.extend([tag("h4", "Not measured"), tag("dl", *pairs, class_="absent")])
    made.extend(_figure(plot) for plot in plots)
    return made


def _figure(plot: Plot) -> Element:
    data = f"data:image/png;base64,{base64.b64encode(plot.png).decode()}"
    return tag("figure", tag("img", src=data, alt=plot.alt, width=str(WIDTH), loading="lazy", decoding="async"))


def _table(grid: Grid, label: str, *, caption: bool = False) -> Element:
    """Rows of a table with two names are grouped by the first."""
    kinds = ["" if place < grid.names or not name else "number" for place, name in enumerate(grid.columns)]
    head = [_cell("th", name or "verdict", kind, scope="col") for name, kind in zip(grid.columns, kinds, strict=True)]
    made = tag("table", tag("thead", tag("tr", *head)), **({"class_": "grouped"} if grid.names > 1 else {}))
    if caption:
        made.insert(0, tag("caption", label))
    for _, same in groupby(grid.rows, key=lambda row: row[0] if grid.names > 1 else ""):
        rows = list(same)
        lines = [_row(row, kinds, grid.names) for row in rows]
        if grid.names > 1 and lines:
            lines[0].insert(0, tag("th", rows[0][0], scope="rowgroup", rowspan=str(len(rows))))
        made.append(tag("tbody", *lines))
    return _scrolling(made, label)


def _row(row: Sequence[str], kinds: Sequence[str], names: int) -> Element:
    """Without the name of its group."""
    name, cells = row[names - 1], zip(row[names:], kinds[names:], strict=True)
    classes = {"class_": "ours"} if names > 1 and name.startswith(OURS) else {}
    return tag("tr", tag("th", name, scope="row"), *(_cell("td", cell, kind) for cell, kind in cells), **classes)


def _scrolling(table: Element, label: str) -> Element:
    """Wide tables scroll by themselves, by the keyboard too."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cell(name: str, text: str, kind: str, **attributes: str) -> Element:
    """A number's spread is set smaller; a verdict is marked."""
    classes = {"class_": kind} if kind else {}
    if name == "td" and text in ("ok", "ok, aim", "missed"):
        return tag("td", tag("span", text, class_=f"mark {text.split(',')[0]}"))
    value, spread, rest = text.partition(" (")
    if kind and spread:
        return tag(name, value, tag("small", f"{spread}{rest}"), **attributes, **classes)
    return tag(name, text, **attributes, **classes)
