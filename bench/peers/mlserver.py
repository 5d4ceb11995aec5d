"""MLServer: one process that answers HTTP and makes batches, and hands them to inference processes through queues.

Its REST interface has no binary tensors; of the encodings that it has, base64 in JSON costs it least.
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

_RUNTIME = """from bench.peers.mlserver import runtime

Inference = runtime()
"""


class MlServer(Peer):
    name = "mlserver"
    title = "MLServer"
    speaks = "Open Inference Protocol, base64 of float32 in JSON over HTTP"
    requirements = (
        "mlserver==1.7.1",
        "uvloop==0.21.0",
        "httptools==0.9.0",
    )  # its processes do not start on uvloop 0.22
    batchings = (Batching(1, 0), *(Batching(rows, wait) for rows in (4, 16, 32, 64) for wait in (0.1, 1, 5)))
    # 1 to 64 rows, 0.1 to 20 ms: batches save the tiny models three quarters of the CPU time, a longer wait nothing.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(64, 0.1),
        "mlp": Batching(64, 0.1),
        "mobilenet_v2": Batching(1, 0),
    }

    def command(self, task: Task, environment: Environment) -> Command:
        here = Path(task.directory)
        (here / "runtime.py").write_text(_RUNTIME)
        (here / "settings.json").write_text(json.dumps(_settings(task)))
        (here / "model-settings.json").write_text(json.dumps(_model_settings(task)))
        words = [str(environment.python), str(environment.python.with_name("mlserver")), "start", task.directory]
        return Command(words, {**environ(task), "TMPDIR": task.directory})

    def post(self, task: Task, row: Array) -> Post:
        tensor = {
            "name": task.input,
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [b64encode(row.tobytes()).decode()],
        }
        body = json.dumps({"inputs": [tensor]}).encode()
        return Post(task.address, f"/v2/models/{task.model}/infer", body, {"Content-Type": "application/json"})

    def answer(self, task: Task, content: bytes) -> Array:
        match json.loads(content):
            case {"outputs": [{"data": [str(row)]}]}:
                return np.frombuffer(b64decode(row, validate=True), np.float32).reshape(1, *task.answer_shape)
        raise ValueError("one output of one string was expected")


def _settings(task: Task) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "http_port": task.port,
        "grpc_port": task.port + 1,
        "metrics_endpoint": None,
        "parallel_workers": task.processes,
        "debug": False,
        "gzip_enabled": False,
    }


def _model_settings(task: Task) -> dict[str, Any]:
    return {
        "name": task.model,
        "implementation": "runtime.Inference",
        "max_batch_size": task.batching.max_rows,
        "max_batch_time": task.batching.wait_ms / 1000,
    }


def runtime() -> type:
    """The peer's program: the class of which its inference processes make the model."""
    from mlserver import MLModel
    from mlserver.codecs import Base64Codec
    from mlserver.types import InferenceRequest, InferenceResponse

    class Inference(MLModel):
        async def load(self) -> bool:
            self.task = given()
            self.run = Model(self.task)
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            rows = Base64Codec.decode_input(payload.inputs[0])
            answers = self.run([np.frombuffer(row, np.float32).reshape(self.task.row_shape) for row in rows])
            packed = [answer.tobytes() for answer in answers]
            output = Base64Codec.encode_output(self.task.output, packed, use_bytes=False)
            return InferenceResponse(model_name=self.name, outputs=[output])

    return Inference
