"""HTTP and gRPC: what the gateway adds to the native client, beside servers that only echo the same bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from bench import loads, pool, systems, wrk
from bench.echoes import METHOD, Echo
from bench.errors import WrongAnswer
from bench.loads import ATOL, RTOL
from bench.peers.oip import infer
from bench.post import Post
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target
from tfpool.testing.fronts import await_front, free_address

CONNECTIONS = 64
_MODEL = "mlp"
_PREDICT = "/tensorflow.serving.PredictionService/Predict"

TARGETS = {
    "HTTP binary at 64": Target(11_800, aim=19_000, on="ours"),
    "added by HTTP at 1": Target(0.35, on="ours"),
    "gRPC Predict at 64": Target(0.75),
}


def measure(settings: Settings) -> Outcome:
    """One worker, one gateway, one row a request."""
    sheet = Sheet(TARGETS)
    address, rpc = free_address(), free_address()
    rows, answers = systems.samples(settings, _MODEL)
    binary = infer(address, _MODEL, "x", rows[:1])
    text, call = _json(address, rows[:1]), _call(rows[:1])
    table = [{"name": _MODEL, "base_path": settings.models.paths[_MODEL]}]
    with pool.configure(settings, table, 1, http=address, grpc=rpc) as served:
        await_front(address)
        await_front(rpc)
        reply = binary.once()
        _check(np.frombuffer(reply[-answers[:1].nbytes :], np.float32), answers[:1], "binary tensors")
        _check(_predicted(rpc, call), answers[:1], "gRPC")
        _check(np.float32(json.loads(text.once())["predictions"]), answers[:1], "JSON")
        with (
            Echo("http", reply) as http,
            Echo("grpc", reply) as grpc,
            loads.on(settings, served, _MODEL) as native,
        ):
            for _ in settings.repeats():
                _over_http(sheet, settings, binary, text, Post(http.address, "/", binary.body, {}))
                _at_one(sheet, settings, binary, native.measure(settings, 1).p50_us)
                floor = wrk.call(settings, "grpcio asyncio echo", grpc.address, METHOD, call, CONNECTIONS)
                shot = wrk.call(settings, "gRPC Predict", rpc, _PREDICT, call, CONNECTIONS)
                sheet.rate("gRPC Predict at 64", "req/s", shot.rate, floor.rate)
                for name, load in (("gRPC Predict", shot), ("grpcio asyncio echo", floor)):
                    sheet.point(load.point(name, _MODEL, CONNECTIONS))
    return sheet.outcome()


def _over_http(sheet: Sheet, settings: Settings, binary: Post, text: Post, echo: Post) -> None:
    floor = wrk.shoot(settings, "ASGI echo", echo, CONNECTIONS)
    sheet.point(floor.point("ASGI echo", _MODEL, CONNECTIONS))
    for name, post in (("HTTP binary", binary), ("JSON predict", text)):
        shot = wrk.shoot(settings, name, post, CONNECTIONS)
        where = f"{name} at {CONNECTIONS}"
        sheet.point(shot.point(name, _MODEL, CONNECTIONS))
        sheet.rate(where, "req/s", shot.rate, floor.rate)
        sheet.cost(f"p50, {where}", "ms", shot.p50_us / 1e3, floor.p50_us / 1e3)
        sheet.cost(f"p99, {where}", "ms", shot.p99_us / 1e3, floor.p99_us / 1e3)


def _at_one(sheet: Sheet, settings: Settings, binary: Post, native_us: float) -> None:
    shot = wrk.shoot(settings, "HTTP binary", binary, 1)
    sheet.cost("p50, HTTP binary at 1", "ms", shot.p50_us / 1e3, native_us / 1e3)
    sheet.cost("added by HTTP at 1", "ms", (shot.p50_us - native_us) / 1e3)


def _json(address: str, row: Any) -> Post:
    body = json.dumps({"instances": row.tolist()}).encode()
    return Post(address, f"/v1/models/{_MODEL}:predict", body, {"Content-Type": "application/json"})


def _call(row: Any) -> bytes:
    from tfpool.protos import inference_pb2
    from tfpool.wire.tensor_proto import set_tensor

    request = inference_pb2.PredictRequest()
    request.model_spec.name = _MODEL
    set_tensor(request.inputs["x"], row)
    return request.SerializeToString()


def _predicted(address: str, call: bytes) -> Any:
    import grpc

    from tfpool.protos import inference_pb2
    from tfpool.wire.tensor_proto import to_array

    with grpc.insecure_channel(address) as channel:
        answer = inference_pb2.PredictResponse.FromString(channel.unary_unary(_PREDICT)(call, timeout=10.0))
    (output,) = answer.outputs.values()
    return to_array(output)


def _check(got: Any, wanted: Any, what: str) -> None:
    if not np.allclose(got.reshape(-1), wanted.reshape(-1), RTOL, ATOL):
        raise WrongAnswer(f"{what}: the answer is not TensorFlow's")


SCENARIO = Scenario(
    "gateway",
    "the MLP over HTTP and gRPC, beside echoes of the same bytes over both",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=1,
)
