"""Load from C: wrk for HTTP, h2load for gRPC, closed loops of so many requests. They have to be installed (Debian: wrk,
nghttp2-client)."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import ChildFailed, WrongAnswer
from bench.fleet import Load, Meter
from bench.points import CLIENT, QUANTILES, at_quantiles
from bench.post import Post
from bench.scenario import Settings

_SLACK_SECONDS = 30.0
_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local begun, errors, found = os.clock(), summary.errors, {{}}
  for index = 1, #latency do found[index] = string.format("[%d, %d]", latency(index)) end
  io.write(string.format('\\n{{"requests": %d, "seconds": %f, "latencies": [%s], "bad": %d, "telling": %f}}\\n',
    summary.requests, summary.duration / 1e6, table.concat(found, ", "),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout, os.clock() - begun))
end
"""


def unmetered() -> Mapping[str, float]:
    """The meter of who is not asked for CPU time."""
    return {}


def shoot(settings: Settings, label: str, post: Post, connections: int, meter: Meter = unmetered) -> Load:
    """Send a request over and over for a window, after as long a warm-up as :class:`Settings` has it.

    Raises ChildFailed, and WrongAnswer where one got no good answer.
    """
    settings.progress.say(f"{label}, {connections} connections")
    command = _command(settings, post, connections)
    if not settings.quick:
        _run([*command, f"-d{_whole(settings.warm_up)}s"], settings.warm_up)
    return _metered(label, [*command, f"-d{_whole(settings.window)}s"], settings.window, connections, meter)


def _command(settings: Settings, post: Post, connections: int) -> list[str]:
    body, script = Path(settings.directory, "wrk.body"), Path(settings.directory, "wrk.lua")
    body.write_bytes(post.body)
    headers = "".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in post.headers.items()
    )
    script.write_text(_SCRIPT.format(body=body, headers=headers))
    url = f"http://{post.address}{post.path}"
    return [_found("wrk", "wrk"), url, "-t1", f"-c{connections}", "--timeout", "30s", "-s", str(script)]


def _metered(label: str, command: list[str], seconds: float, connections: int, meter: Meter) -> Load:
    before, spent = meter(), _children_seconds()
    told = json.loads(_run(command, seconds).strip().splitlines()[-1])
    after, spent = meter(), _children_seconds() - spent
    requests = told["requests"]
    if told["bad"] or not requests:
        raise WrongAnswer(f"{label}: {told['bad']} of {requests} requests were not answered well")
    quantiles = at_quantiles(_as_measured(told, connections))
    cpu = {CLIENT: spent - told["telling"], **{role: after[role] - before[role] for role in after}}
    return Load(
        rate=requests / told["seconds"],
        requests=requests,
        p50_us=quantiles[QUANTILES.index(0.5)],
        p99_us=quantiles[QUANTILES.index(0.99)],
        max_us=quantiles[-1],
        checked=0,
        wrong=0,
        cpu_us={role: used / requests * 1e6 for role, used in cpu.items()},
        quantiles_us=quantiles,
    )


def _as_measured(told: Mapping[str, Any], connections: int) -> list[int]:
    """Latencies (us), increasing.

    wrk adds, for each that is twice as long as the mean or longer, those that it believes were omitted
    (``stats_correct`` in its stats.c), which other closed loops here do not: they are taken out again.
    """
    found = {int(value): int(count) for value, count in told["latencies"]}
    expected = round(1e6 * told["seconds"]) // max(1, told["requests"] // connections)
    for value in sorted(found, reverse=True):
        if value < 2 * expected or told["requests"] < connections:
            break
        for added in range(value - expected, expected, -expected):
            found[added] = found.get(added, 0) - found[value]
    return [value for value in sorted(found) for _ in range(max(0, found[value]))]


def _run(command: list[str], seconds: float) -> str:
    limit = seconds + _SLACK_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"{command[0]} was not done after {limit:g} s") from None
    if done.returncode:
        raise ChildFailed(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _children_seconds() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _whole(seconds: float) -> int:
    return max(1, round(seconds))


def call(settings: Settings, label: str, address: str, method: str, request: bytes, in_flight: int) -> Load:
    """Call a unary method over and over for a window, on one connection; latencies are not told.

    Raises ChildFailed, and WrongAnswer where one got no good answer.
    """
    settings.progress.say(f"{label}, {in_flight} in flight")
    body = Path(settings.directory, "h2load.body")
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    seconds = _whole(settings.window)
    command = [_found("h2load", "nghttp2-client"), f"http://{address}{method}", "-t1", "-c1", f"-m{in_flight}"]
    command += [f"-D{seconds}", f"--warm-up-time={round(settings.warm_up)}", "-d", str(body)]
    told = _run([*command, "-H", "content-type: application/grpc", "-H", "te: trailers"], seconds + settings.warm_up)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", told)
    if counts is None:
        raise ChildFailed(f"h2load told no counts: {told.strip()}")
    good, *bad = map(int, counts.groups())
    if not good or any(bad):
        raise WrongAnswer(f"{label}: {sum(bad)} of {good + sum(bad)} requests were not answered well")
    return Load(good / seconds, good, 0.0, 0.0, 0.0, 0, 0)


def _found(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ChildFailed(f"{name} is not installed (Debian: apt install {package})")
    return path
