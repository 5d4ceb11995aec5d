"""The same load from few clients and from many."""

from __future__ import annotations

from contextlib import ExitStack

from bench import loads, pool
from bench.echo import Echo
from bench.scenario import Outcome, Scenario, Settings, Sheet

SHAPES = ((1, 64), (16, 4), (64, 1))  # client processes, requests in flight of each
_MODEL = "half_plus_two"


def measure(settings: Settings) -> Outcome:
    """One worker. The clients of all shapes stay connected; those of one shape at a time load."""
    sheet = Sheet({})
    with ExitStack() as stack:
        served = stack.enter_context(pool.start(settings, _MODEL))
        echo = stack.enter_context(Echo(settings))
        fleets = []
        for count, in_flight in SHAPES:
            settings.progress.say(f"starting {count} clients")
            raw = stack.enter_context(echo.clients(count))
            fleets.append((count, in_flight, raw, stack.enter_context(loads.on(settings, served, _MODEL, count))))
        for _ in settings.repeats():
            for count, in_flight, raw, fleet in fleets:
                reference = raw.measure(settings, in_flight)
                ours = fleet.measure(settings, in_flight)
                where = f"{count} x {in_flight}"
                told = {"ours": ours.detail(), "reference": reference.detail()}
                sheet.rate(where, "req/s", ours.rate, reference.rate, told)
                sheet.cost(f"{where}, p99", "ms", ours.p99_us / 1e3)
                broker, relay = ours.cpu_us["broker"], reference.cpu_us["echo"]
                sheet.cost(f"{where}, broker CPU", "us/req", broker, relay)
    return sheet.outcome()


SCENARIO = Scenario(
    "clients",
    "half_plus_two, 64 in flight from 1, 16 and 64 client processes, beside a raw zmq echo",
    measure,
    (_MODEL,),
)
