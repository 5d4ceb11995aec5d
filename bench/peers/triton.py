"""Triton Inference Server with its Python backend: a C++ server that hands tensors to Python over shared memory.

The server comes inside the nvidia-pytriton wheel; pytriton itself, a proxy in Python before it, is not used.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from bench.errors import PeerAbsent
from bench.peers import oip
from bench.peers.model import Model
from bench.peers.peer import ROOT, Array, Batching, Command, Environment, Peer, Task, environ, given
from bench.post import Post

_STUB = "triton_python_backend_stub"
_PROGRAM = """\
import sys

sys.path.append({root!r})
from bench.peers.triton import TritonPythonModel
"""
_CONFIG = """\
backend: "python"
max_batch_size: {rows}
input [ {{ name: "{task.input}", data_type: TYPE_FP32, {input} }} ]
output [ {{ name: "{task.output}", data_type: TYPE_FP32, {output} }} ]
instance_group [ {{ count: {task.processes}, kind: KIND_CPU }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""


class Triton(Peer):
    name = "triton"
    title = "Triton"
    speaks = "binary tensors over HTTP"
    requirements = ("numpy==1.26.4",)  # the backend misreads the arrays of numpy 2: their answers come out empty
    bare_requirements = ("nvidia-pytriton==0.7.0",)  # Triton 2.51; what pytriton needs is not needed
    batchings = tuple(Batching(rows, wait) for rows in (1, 8, 32, 64) for wait in (0, 1))
    # Tried on a busy machine: the MLP with all of these, half_plus_two from 8 rows on, 64 in flight and 1; a
    # delay costs itself with one in flight, and whether it wins anything with 64 was not to be told from noise.
    # MobileNetV2 (two processes, 16 in flight and 1) with 1, 4 and 8 rows: no difference.
    tuned = {  # noqa: RUF012
        "half_plus_two": Batching(64, 0),
        "mlp": Batching(64, 0),
        "mobilenet_v2": Batching(1, 0),
    }

    def prepare(self, environment: Environment) -> None:
        server = _server(environment)
        stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / _STUB
        if not stub.exists():
            raise PeerAbsent(f"its Python backend knows no Python {sys.version_info.major}.{sys.version_info.minor}")
        shutil.copy2(stub, server / "backends" / "python")

    def command(self, task: Task, environment: Environment) -> Command:
        repository = Path(task.directory, "repository")
        shutil.rmtree(repository, ignore_errors=True)  # of another task
        _write_model(task, repository)
        server, packages = _server(environment), environment.packages
        libraries = (Path(sys.base_prefix, "lib"), packages / "nvidia_pytriton.libs", server / "external_libs")
        options = {
            "model-repository": repository,
            "backend-directory": server / "backends",
            "backend-config": f"python,shm-region-prefix-name={_shared(task)}",
            "http-address": "127.0.0.1",
            "http-port": task.port,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "log-info": "false",
        }
        return Command(
            # Completing the configuration would start the model once more, to ask it.
            [
                str(server / "bin" / "tritonserver"),
                "--disable-auto-complete-config",
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            {
                **environ(task),
                # Its processes take their packages from the python that is found first.
                "PATH": f"{environment.python.parent}:{os.environ.get('PATH', os.defpath)}",
                "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            },
            leaves=(f"/dev/shm/{_shared(task)}*",),
        )

    def post(self, task: Task, row: Array) -> Post:
        return oip.infer(task.address, task.model, task.input, row.reshape(1, *_dims(task.row_shape)))

    def answer(self, task: Task, content: bytes) -> Array:
        return oip.output(content, [1, *_dims(task.answer_shape)]).reshape(1, *task.answer_shape)


class TritonPythonModel:
    """What the backend's processes run."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self.task = given()
        self.model = Model(self.task)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        import triton_python_backend_utils as backend

        inputs = [backend.get_input_tensor_by_name(request, self.task.input).as_numpy() for request in requests]
        answers = self.model([row for rows in inputs for row in rows])
        ends = accumulate(map(len, inputs))
        parts = (answers[end - len(rows) : end] for rows, end in zip(inputs, ends, strict=True))
        return [backend.InferenceResponse([backend.Tensor(self.task.output, part)]) for part in parts]


def _write_model(task: Task, repository: Path) -> None:
    version = repository / task.model / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_PROGRAM.format(root=str(ROOT)))
    config = _CONFIG.format(
        task=task,
        rows=task.batching.max_rows,
        input=_told(task.row_shape),
        output=_told(task.answer_shape),
        delay=round(task.batching.wait_ms * 1000),
    )
    (version.parent / "config.pbtxt").write_text(config)


def _dims(shape: Sequence[int]) -> list[int]:
    """Of a row, as it is sent: Triton knows no rows without dimensions."""
    return list(shape) or [1]


def _told(shape: Sequence[int]) -> str:
    return f"dims: {_dims(shape)}" + ("" if shape else ", reshape: { shape: [] }")


def _server(environment: Environment) -> Path:
    return environment.packages / "pytriton" / "tritonserver"


def _shared(task: Task) -> str:
    return f"tfpool_bench_triton_{task.port}_"
