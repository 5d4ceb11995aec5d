"""LitServe: FastAPI processes that hand requests to inference processes through the queues of a manager process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.peers.model import Model
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task, given, own_program
from bench.post import Post


class LitServe(Peer):
    name = "litserve"
    title = "LitServe"
    speaks = "raw float32 over HTTP"
    requirements = ("litserve==0.2.19",)
    batchings = (Batching(1, 0), *(Batching(rows, wait) for rows in (8, 32, 64) for wait in (0, 1, 5)))
    # 1 to 64 rows, 0 to 20 ms: its queues are the limit; batches gain little, and every wait costs.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(1, 0),
        "mlp": Batching(64, 0),
        "mobilenet_v2": Batching(1, 0),
    }

    def command(self, task: Task, environment: Environment) -> Command:
        made = own_program("bench.peers.litserve", task, environment)
        return Command(made.words, {**made.environ, "TMPDIR": task.directory})

    def post(self, task: Task, row: Array) -> Post:
        return Post(task.address, "/predict", row.tobytes(), {"Content-Type": "application/octet-stream"})

    def answer(self, task: Task, content: bytes) -> Array:
        return np.frombuffer(content, np.float32).reshape(1, *task.answer_shape)


if __name__ in ("__main__", "__mp_main__"):  # its processes import the main module again
    from typing import Annotated

    from fastapi import Body, Response
    from litserve import LitAPI, LitServer

    class Inference(LitAPI):
        def setup(self, device: str) -> None:
            self.task = given()
            self.model = Model(self.task)

        def decode_request(self, request: bytes) -> Array:
            return np.frombuffer(request, np.float32).reshape(self.task.row_shape)

        def batch(self, inputs: Sequence[Array]) -> Sequence[Array]:
            return inputs  # the model has its own place for them

        def predict(self, x: Any) -> Array:
            return self.model(x) if self.task.batching.max_rows > 1 else self.model([x])[0]  # alone it comes as it is

        def encode_response(self, output: Array) -> Response:
            return Response(output.tobytes(), media_type="application/octet-stream")

    # LitServe's own module would look these names up, were they text as all annotations here are.
    Inference.decode_request.__annotations__["request"] = Annotated[bytes, Body()]
    Inference.encode_response.__annotations__["return"] = Response


def serve() -> None:
    """The peer's program."""
    task = given()
    api = Inference(max_batch_size=task.batching.max_rows, batch_timeout=task.batching.wait_ms / 1000)
    server = LitServer(api, accelerator="cpu", workers_per_device=task.processes)
    server.run("127.0.0.1", task.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    serve()
