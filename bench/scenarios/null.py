"""The null path: a model that does next to nothing, so that what is measured is the server."""

from __future__ import annotations

from bench import loads, pool
from bench.echo import Echo
from bench.fleet import Load
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target

IN_FLIGHT = (1, 64, 256)
_MODEL = "half_plus_two"

TARGETS = {
    "p50, 1 in flight": Target(0.36, aim=0.225, on="ours"),
    "64 in flight": Target(1.7, aim=2.3),
    "256 in flight": Target(3.0, aim=5.0),
    "broker CPU, 256 in flight": Target(6.0, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """One worker, one client process."""
    sheet = Sheet(TARGETS)
    with (
        pool.start(settings, _MODEL) as served,
        Echo(settings) as echo,
        echo.clients() as raw,
        loads.on(settings, served, _MODEL) as fleet,
    ):
        for _ in settings.repeats():
            for in_flight in IN_FLIGHT:
                reference = raw.measure(settings, in_flight)
                _add(sheet, in_flight, fleet.measure(settings, in_flight), reference)
    return sheet.outcome()


def _add(sheet: Sheet, in_flight: int, ours: Load, reference: Load) -> None:
    where = f"{in_flight} in flight"
    told = {"ours": ours.detail(), "reference": reference.detail()}
    sheet.rate(where, "req/s", ours.rate, reference.rate, told)
    if in_flight == 1:
        sheet.cost(f"p50, {where}", "ms", ours.p50_us / 1e3, reference.p50_us / 1e3)
        sheet.cost(f"p99, {where}", "ms", ours.p99_us / 1e3, reference.p99_us / 1e3)
        return
    sheet.cost(f"p99, {where}", "ms", ours.p99_us / 1e3)
    broker, echo = ours.cpu_us["broker"], reference.cpu_us["echo"]
    sheet.cost(f"broker CPU, {where}", "us/req", broker, echo)
    client, raw_client = ours.cpu_us["client"], reference.cpu_us["client"]
    sheet.cost(f"client CPU, {where}", "us/req", client, raw_client)


SCENARIO = Scenario(
    "null", "half_plus_two, one worker, one client process, beside a raw zmq echo", measure, (_MODEL,), TARGETS
)
