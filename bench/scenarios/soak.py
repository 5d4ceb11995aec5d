"""A million requests, and whether any process is larger for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict

from bench import loads, pool
from bench.fleet import Window, sleep_until
from bench.processes import Footprint, footprint
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target

REQUESTS = 1_000_000
IN_FLIGHT = 64
_SETTLED = 0.05  # the share of the requests after which memory is looked at first
_MODEL = "half_plus_two"
_PROCESSES = ("supervisor", "broker", "zygote", "worker 1", "client")

TARGETS = {
    **{f"{name}, memory growth": Target(5.0, on="ours") for name in _PROCESSES},
    **{f"{name}, descriptors more": Target(0.0, on="ours") for name in _PROCESSES},
}


def measure(settings: Settings) -> Outcome:
    """One worker, one client process; once, whatever the repeats. ``--seconds`` takes the place of the million."""
    sheet = Sheet(TARGETS)
    with pool.start(settings, _MODEL) as served, loads.on(settings, served, _MODEL) as fleet:
        pids = {**pool.processes(served), "client": fleet.pids[0]}
        probe = fleet.measure(settings, IN_FLIGHT)
        seconds = settings.window if settings.quick else settings.seconds or REQUESTS / probe.rate
        begin = time.monotonic()
        window = Window(begin, begin + seconds, IN_FLIGHT)
        settings.progress.say(f"soaking for {seconds:.0f} s")
        fleet.start(window)
        sleep_until(begin + _SETTLED * seconds)
        first = _footprints(pids)
        sleep_until(window.end)
        last = _footprints(pids)
        load = fleet.collect(window)
        sheet.rate("requests", "", load.requests, detail=load.detail())
        for name in pids:
            grown = (last[name].pss - first[name].pss) / 1e6
            told = {"first": asdict(first[name]), "last": asdict(last[name])}
            sheet.cost(f"{name}, memory growth", "MB", grown, detail=told)
            more = last[name].fds - first[name].fds
            sheet.cost(f"{name}, descriptors more", "", more)
    return sheet.outcome()


def _footprints(pids: Mapping[str, int]) -> dict[str, Footprint]:
    return {name: footprint(pid) for name, pid in pids.items()}


SCENARIO = Scenario("soak", "a million requests of half_plus_two: growth of every process", measure, (_MODEL,), TARGETS)
