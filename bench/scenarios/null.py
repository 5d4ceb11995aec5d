"""The null path: a model that does next to nothing, so that what is measured is the server."""

from __future__ import annotations

from bench import contest, systems
from bench.echo import Echo
from bench.fleet import Load
from bench.points import Point
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

LEVELS, FULL_LEVELS = (1, 64, 256), (1, 16, 64, 256)
ECHO = "raw zmq echo"
_MODEL = "half_plus_two"

TARGETS = {
    "p50, 1 in flight": Target(0.36, aim=0.225, on="ours"),
    "64 in flight": Target(1.7, aim=2.3),
    "256 in flight": Target(3.0, aim=5.0),
    "broker CPU, 256 in flight": Target(6.0, on="ours"),
}
BESIDE_PEERS = {
    f"64 in flight, beside {contest.BEST}": Target(5.0),
    f"256 in flight, beside {contest.BEST}": Target(12.0),
    f"p50, 1 in flight, beside {contest.BEST}": Target(0.75),
}


def measure(settings: Settings) -> Outcome:
    """One worker; one client process, or wrk where it is HTTP."""
    sheet = Sheet(TARGETS)
    levels = FULL_LEVELS if settings.full else LEVELS
    with systems.ours(settings, _MODEL) as ours, Echo(settings) as echo, echo.clients() as raw:
        for _ in settings.repeats():
            for level in levels:
                reference = raw.measure(settings, level)
                sheet.point(reference.point(ECHO, _MODEL, level))
                _add(sheet, level, ours[0].closed(settings, level), reference)
        loads = [contest.Closed(level) for level in levels]
        found = contest.contest(settings, sheet, ours, _MODEL, loads)
        sheet.expect(BESIDE_PEERS if contest.complete(found) else {})
        contest.tell(sheet, found, loads)
    return sheet.outcome()


def _add(sheet: Sheet, level: int, ours: Point, reference: Load) -> None:
    where = f"{level} in flight"
    sheet.rate(where, "req/s", ours.rate, reference.rate)
    p50, p99 = ours.at_us(0.5) / 1e3, ours.at_us(0.99) / 1e3
    if level == 1:
        sheet.cost(f"p50, {where}", "ms", p50, reference.p50_us / 1e3)
        sheet.cost(f"p99, {where}", "ms", p99, reference.p99_us / 1e3)
        return
    sheet.cost(f"p99, {where}", "ms", p99)
    for who, role, other in (("broker", "broker", "echo"), ("client", "client", "client")):
        sheet.cost(f"{who} CPU, {where}", "us/req", ours.cpu_us[role], reference.cpu_us[other])


SCENARIO = Scenario(
    "null",
    "half_plus_two, one worker, one client process, beside a raw zmq echo and peers",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=1,
    repeats={Form.QUICK: 1, Form.NORMAL: 3, Form.FULL: 3},
)
