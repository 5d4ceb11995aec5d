"""mosec: a Rust server that hands raw bytes to Python processes over a socket."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.model import Model
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task, given, own_program
from bench.post import Post


class Mosec(Peer):
    name = "mosec"
    title = "mosec"
    speaks = "raw float32 over HTTP"
    requirements = ("mosec==0.9.8",)
    batchings = tuple(Batching(rows, wait) for rows in (1, 8, 16, 32, 64) for wait in (0, 1))
    # Tried on a busy machine: the MLP and half_plus_two from 16 rows on, 64 in flight and 1; no wait takes 12 ms
    # with one in flight. MobileNetV2 (two processes, 16 in flight and 1) with 1, 4, 8 and 32 rows: from 8 on
    # fewer were answered.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(64, 1),
        "mlp": Batching(64, 1),
        "mobilenet_v2": Batching(1, 0),
    }

    def command(self, task: Task, environment: Environment) -> Command:
        made = own_program("bench.peers.mosec", task, environment)
        options = ["--address", "127.0.0.1", "--port", str(task.port), "--timeout", "30000"]
        return Command([*made.words, *options], made.environ)

    def post(self, task: Task, row: Array) -> Post:
        return Post(task.address, "/inference", row.tobytes(), {"Content-Type": "application/octet-stream"})

    def answer(self, task: Task, content: bytes) -> Array:
        return np.frombuffer(content, np.float32).reshape(1, *task.answer_shape)


if __name__ in ("__main__", "__mp_main__"):  # its processes import the main module again
    from mosec import Server, Worker

    class Inference(Worker):
        def __init__(self) -> None:
            super().__init__()
            self.task = given()
            self.model = Model(self.task)

        def deserialize(self, data: bytes) -> Array:
            return np.frombuffer(data, np.float32).reshape(self.task.row_shape)

        def serialize(self, data: Array) -> bytes:
            return data.tobytes()

        def forward(self, data: Any) -> Any:
            """A list of rows; where the batch may have one row, that row by itself."""
            return list(self.model(data)) if self.task.batching.max_rows > 1 else self.model([data])[0]


def serve() -> None:
    """The peer's program."""
    task = given()
    server = Server()
    rows, wait = task.batching.max_rows, int(task.batching.wait_ms)
    server.append_worker(Inference, num=task.processes, max_batch_size=rows, max_wait_time=wait)
    server.run()


if __name__ == "__main__":
    serve()
