"""BentoML: processes that each answer HTTP, batch by what they expect a batch to take, and run the model in a thread.

What it is told to wait is a deadline, not a pause: it answers 503 where it cannot keep it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.model import Model
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task, environ, given
from bench.post import Post

_SERVICE = """from bench.peers.bentoml import service

service = service()
"""


class BentoMl(Peer):
    name = "bentoml"
    title = "BentoML"
    speaks = "base64 of float32 in JSON over HTTP"
    requirements = ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0")
    batchings = tuple(Batching(rows, 10_000) for rows in (2, 4, 8, 16, 32, 64))
    # 2 to 64 rows, 1 and 10 s: HTTP is the limit, more rows cost less CPU time, and a busy machine missed 1 s.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(64, 10_000),
        "mlp": Batching(64, 10_000),
        "mobilenet_v2": Batching(8, 10_000),
    }

    def command(self, task: Task, environment: Environment) -> Command:
        here = task.directory
        Path(here, "service.py").write_text(_SERVICE)
        words = [str(environment.python), "-m", "bentoml", "serve", "service:service", "--working-dir", here]
        kept = {"BENTOML_HOME": here, "BENTOML_DO_NOT_TRACK": "True", "TMPDIR": here}
        return Command([*words, "--host", "127.0.0.1", "--port", str(task.port)], {**environ(task), **kept})

    def post(self, task: Task, row: Array) -> Post:
        body = json.dumps({"rows": [b64encode(row.tobytes()).decode()]}).encode()
        return Post(task.address, "/infer", body, {"Content-Type": "application/json"})

    def answer(self, task: Task, content: bytes) -> Array:
        match json.loads(content):
            case [str(row)]:
                return np.frombuffer(b64decode(row, validate=True), np.float32).reshape(1, *task.answer_shape)
        raise ValueError("a JSON list of one string was expected")


def service() -> Any:
    """The peer's program: what its command line serves."""
    import bentoml

    task = given()
    rows, deadline = task.batching.max_rows, int(task.batching.wait_ms)

    class Inference:
        def __init__(self) -> None:
            self.model = Model(task)

        @bentoml.api(batchable=True, max_batch_size=rows, max_latency_ms=deadline)
        def infer(self, rows: list[str]) -> list[str]:
            answers = self.model([np.frombuffer(b64decode(row), np.float32).reshape(task.row_shape) for row in rows])
            return [b64encode(answer.tobytes()).decode() for answer in answers]

    silent = {"metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}
    return bentoml.service(name="inference", workers=task.processes, **silent)(Inference)
