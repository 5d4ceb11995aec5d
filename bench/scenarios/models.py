"""Models that compute: how much of what TensorFlow can do is left with a server around it, ours or a peer's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench import contest, systems
from bench.inprocess import Roofline
from bench.points import Point
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

ROOFLINE = "TensorFlow in process"


@dataclass(frozen=True)
class Case:
    """A model, on how many processes (one TensorFlow thread each), and the loads that it gets."""

    model: str
    title: str
    processes: int
    sizes: Sequence[int]
    levels: Sequence[int]
    full_levels: Sequence[int]
    shares: Sequence[float]


CASES = (
    Case("mlp", "MLP", 1, (1, 8, 16, 32, 64, 128), (64, 256), (1, 16, 64, 256), (0.05, 0.2)),
    Case("mobilenet_v2", "MobileNetV2", 2, (1, 2, 4, 8), (16,), (1, 16, 64), (0.5,)),
)

TARGETS = {"MLP, 64 in flight": Target(0.7), "MLP, 256 in flight": Target(0.95, aim=0.97)}
BESIDE_PEERS = {
    f"MLP, 64 in flight, beside {contest.BEST}": Target(1.5),
    f"MobileNetV2, 16 in flight, beside {contest.BEST}": Target(1.25),
}


def measure(settings: Settings) -> Outcome:
    """One row a request; as many workers as a peer has processes, and as the roofline has."""
    sheet = Sheet(TARGETS)
    lacking: Mapping[str, Target] = BESIDE_PEERS
    for case in CASES:
        levels = case.full_levels if settings.full else case.levels
        with systems.ours(settings, case.model, case.processes) as ours:
            with (
                _roofline(settings, case) as roofline,
                systems.ours(settings, case.model, case.processes, stored=False) as (plain, _),
            ):
                for _ in settings.repeats():
                    for level in levels:
                        _beside_roofline(settings, sheet, case, level, roofline, ours[0], plain)
                most = max(roofline.scan.values())
            some = case.shares[:1] if settings.quick else case.shares
            shares = [contest.Poisson(share, share * most) for share in some]
            loads: list[contest.Load] = [*(contest.Closed(level) for level in levels), *shares]
            found = contest.contest(settings, sheet, ours, case.model, loads, case.processes)
            contest.tell(sheet, found, loads, f"{case.title}, ")
            lacking = lacking if contest.complete(found) else {}
    sheet.expect(lacking)
    return sheet.outcome()


@contextmanager
def _roofline(settings: Settings, case: Case) -> Iterator[Roofline]:
    """The better of as many processes as there are workers, and one with as many threads."""
    with ExitStack() as stack:
        apart = stack.enter_context(Roofline(settings, case.model, case.sizes, processes=case.processes))
        if case.processes == 1:
            yield apart
            return
        together = stack.enter_context(Roofline(settings, case.model, case.sizes, threads=case.processes))
        yield max(apart, together, key=lambda one: one.scan[one.best])


def _beside_roofline(
    settings: Settings, sheet: Sheet, case: Case, level: int, roofline: Roofline, *ours: systems.System
) -> None:
    where = f"{case.title}, {level} in flight"
    best = roofline.p50_us(settings) / 1e3 if level == 1 else roofline.rate(settings)
    if level > 1:
        sheet.point(Point(ROOFLINE, case.model, "closed", level, best))
    for system, how in zip(ours, ("", ", store off"), strict=True):
        point = system.closed(settings, level)
        sheet.point(point)
        if level == 1:
            sheet.cost(f"p50, {where}{how}", "ms", point.at_us(0.5) / 1e3, best)
            continue
        sheet.rate(f"{where}{how}", "rows/s", point.rate, best, {"best_batch": roofline.best, "scan": roofline.scan})
        sheet.cost(f"p50, {where}{how}", "ms", point.at_us(0.5) / 1e3)
        sheet.cost(f"p99, {where}{how}", "ms", point.at_us(0.99) / 1e3)


SCENARIO = Scenario(
    "models",
    "an MLP on one worker and MobileNetV2 on two, beside TensorFlow in process and peers with as many processes",
    measure,
    tuple(case.model for case in CASES),
    TARGETS,
    experiment=3,
    repeats={Form.QUICK: 1, Form.NORMAL: 3, Form.FULL: 3},
)
