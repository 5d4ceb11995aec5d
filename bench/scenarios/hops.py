"""Where the time of one request goes: the floors of its hops, and what is left for Python in the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench import loads, pool
from bench.children import Child
from bench.echo import Echo, seqpacket
from bench.inprocess import Roofline
from bench.processes import thread_seconds
from bench.scenario import Outcome, Scenario, Settings, Sheet

_MODEL = "half_plus_two"


def measure(settings: Settings) -> Outcome:
    """One worker, one client, one request at a time."""
    sheet = Sheet({})
    with (
        Roofline(settings, _MODEL, sizes=(1,)) as roofline,
        pool.start(settings, _MODEL) as served,
        Echo(settings) as echo,
        Child(seqpacket) as pair,
        echo.clients() as raw,
        loads.on(settings, served, _MODEL) as fleet,
    ):
        pids = pool.processes(served)
        roles = {"client": fleet.pids[0], "broker": pids["broker"], "worker": pids["worker 1"]}
        fleet.meter = _threads(roles)
        for _ in settings.repeats():
            zmq = raw.measure(settings, 1).p50_us
            settings.progress.say("SEQPACKET round trip")
            bell = float(pair.ask(settings.window)["p50_us"])
            run = roofline.p50_us(settings)
            ours = fleet.measure(settings, 1)
            floors = zmq + bell + run
            for name, value in (
                ("zmq ipc round trip, p50", zmq),
                ("SEQPACKET round trip, two cores, p50", bell),
                ("TensorFlow call, p50", run),
            ):
                sheet.cost(name, "us", value)
            sheet.cost("tfpool, p50, beside their sum", "us", ours.p50_us, floors)
            sheet.cost("what is left: our Python", "us", ours.p50_us - floors)
            for role in roles:
                threads = {name: us for name, us in ours.cpu_us.items() if name.startswith(f"{role}: ")}
                sheet.cost(f"CPU of the {role}", "us", sum(threads.values()), detail={"threads": threads})
    return sheet.outcome()


def _threads(pids: Mapping[str, int]) -> Callable[[], Mapping[str, float]]:
    """Reads CPU seconds by process and thread."""

    def meter() -> Mapping[str, float]:
        return {
            f"{role}: {thread}": seconds
            for role, pid in pids.items()
            for thread, seconds in thread_seconds(pid).items()
        }

    return meter


SCENARIO = Scenario("hops", "one request at a time, hop by hop", measure, (_MODEL,))
