"""Load from C: wrk for HTTP, h2load for gRPC, closed loops of so many requests. They have to be installed (Debian: wrk,
nghttp2-client)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import ChildFailed, WrongAnswer
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
  local errors = summary.errors
  io.write(string.format('\\n{{"requests": %d, "seconds": %f, "p50_us": %f, "p99_us": %f, "bad": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Shot:
    """What wrk saw."""

    rate: float
    p50_us: float
    p99_us: float
    requests: int


def shoot(settings: Settings, label: str, post: Post, connections: int) -> Shot:
    """Send a request over and over for a window. Raises ChildFailed, and WrongAnswer where one got no good answer."""
    wrk = _found("wrk", "wrk")
    settings.progress.say(f"{label}, {connections} connections")
    body, script = Path(settings.directory, "wrk.body"), Path(settings.directory, "wrk.lua")
    body.write_bytes(post.body)
    headers = "".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in post.headers.items()
    )
    script.write_text(_SCRIPT.format(body=body, headers=headers))
    seconds = max(1, round(settings.window))
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://{post.address}{post.path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _SLACK_SECONDS, check=False)
    if done.returncode:
        raise ChildFailed(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["bad"] or not told["requests"]:
        raise WrongAnswer(f"{label}: {told['bad']} of {told['requests']} requests were not answered well")
    return Shot(told["requests"] / told["seconds"], told["p50_us"], told["p99_us"], told["requests"])


def call(settings: Settings, label: str, address: str, method: str, request: bytes, in_flight: int) -> Shot:
    """Call a unary method over and over for a window, on one connection; latencies are not told.

    Raises ChildFailed, and WrongAnswer where one got no good answer.
    """
    h2load = _found("h2load", "nghttp2-client")
    settings.progress.say(f"{label}, {in_flight} in flight")
    body = Path(settings.directory, "h2load.body")
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    seconds = max(1, round(settings.window))
    command = [h2load, "-t1", "-c1", f"-m{in_flight}", f"-D{seconds}", f"--warm-up-time={round(settings.warm_up)}"]
    command += ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run(
        [*command, f"http://{address}{method}"],
        capture_output=True,
        text=True,
        timeout=seconds + _SLACK_SECONDS,
        check=False,
    )
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    if done.returncode or counts is None:
        raise ChildFailed(f"h2load failed: {done.stderr.strip() or done.stdout.strip()}")
    good, *bad = map(int, counts.groups())
    if not good or any(bad):
        raise WrongAnswer(f"{label}: {sum(bad)} of {good + sum(bad)} requests were not answered well")
    return Shot(good / seconds, 0.0, 0.0, good)


def _found(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ChildFailed(f"{name} is not installed (Debian: apt install {package})")
    return path
