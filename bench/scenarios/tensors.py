"""Large tensors there and back: bytes a second beside one copy in memory, and beside zmq for information."""

from __future__ import annotations

import time

import numpy as np

from bench import loads, pool
from bench.children import Channel, Child
from bench.echo import Echo
from bench.fleet import Fleet
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target

IN_FLIGHT = 8
SIZES = tuple(4**power << 10 for power in range(8))
QUICK_SIZES = (1 << 10, 1 << 20)
PAIRS = 16
_MODEL = "identity"
_GIB = 1 << 30


def measure(settings: Settings) -> Outcome:
    """One worker, one client that submits and takes the answers in order. A tensor counts once, not both ways."""
    sizes = QUICK_SIZES if settings.quick else SIZES
    sheet = Sheet({name: target for name, target in TARGETS.items() if name in map(_beside_memcpy, sizes)})
    with (
        pool.start(settings, _MODEL) as served,
        Echo(settings) as echo,
        Child(copies) as memory,
        echo.clients() as raw,
        Fleet("tfpool, identity", loads.meter(served), loads.ordered, served.endpoint, _MODEL) as fleet,
    ):
        for _ in settings.repeats():
            for nbytes in sizes:
                settings.progress.say(f"memcpy, {nbytes >> 10} KiB")
                copied = float(memory.ask([nbytes, settings.window]))
                echoed = raw.measure(settings, IN_FLIGHT, nbytes)
                ours = fleet.measure(settings, IN_FLIGHT, nbytes)
                speed = ours.rate * nbytes / _GIB
                sheet.rate(_beside_memcpy(nbytes), "GiB/s", speed, copied / _GIB, {"ours": ours.detail()})
                zmq = echoed.rate * nbytes / _GIB
                sheet.rate(f"{size_name(nbytes)}, beside zmq", "GiB/s", speed, zmq, {"reference": echoed.detail()})
    return sheet.outcome()


def copies(channel: Channel) -> None:
    """The memcpy's child: told bytes and seconds, answers with the bytes copied a second, one thread."""
    while (order := channel.hear()) is not None:
        nbytes, seconds = order
        pairs = [(np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)) for _ in range(PAIRS)]
        for source, target in pairs:
            np.copyto(target, source)
        count, begun = 0, time.monotonic()
        while (now := time.monotonic()) < begun + seconds:
            for source, target in pairs:
                np.copyto(target, source)
            count += PAIRS
        channel.say(count * nbytes / (now - begun))


def size_name(nbytes: int) -> str:
    """``64 KiB``, ``4 MiB``."""
    return f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB"


def _beside_memcpy(nbytes: int) -> str:
    return f"{size_name(nbytes)}, beside a memcpy"


TARGETS = {_beside_memcpy(nbytes): Target(0.5, aim=0.8) for nbytes in SIZES if nbytes >= 1 << 20}


SCENARIO = Scenario(
    "tensors",
    "float32 rows of 1 KiB to 16 MiB through an identity, 8 in flight, beside a memcpy",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=2,
    repeats={Form.QUICK: 1, Form.NORMAL: 1, Form.FULL: 2},
)
