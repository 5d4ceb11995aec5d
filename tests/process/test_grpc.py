"""gRPC over the network: deadlines, cancellation, TLS and hostile bytes, in front of a real pool."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.contract.grpc_line import Line
from tfpool.gateway.rpc.server import RpcServer
from tfpool.gateway.rpc.services import services
from tfpool.protos import inference_pb2, serving_pb2
from tfpool.settings import GatewaySettings
from tfpool.testing.fake_worker import FakePool, until
from tfpool.testing.fronts import free_address
from tfpool.types import DType, numpy_dtype
from tfpool.wire.tensor_proto import set_tensor, to_array

pytestmark = pytest.mark.process
SECONDS = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def channel(front: FakePool) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(str(front.settings.server.grpc)) as made:
        grpc.channel_ready_future(made).result(SECONDS)
        yield made


def call(channel: grpc.Channel, method: str, request: Any, kind: Any = None) -> Any:
    """A future of the response: of a kind, or bytes."""
    path = method if method.startswith("/") else f"/tensorflow.serving.{method}"
    sent = request if isinstance(request, bytes) else request.SerializeToString()
    return channel.unary_unary(path, response_deserializer=kind and kind.FromString).future(sent, timeout=SECONDS)


def request_for(model: str, signature: str = "", **inputs: Any) -> inference_pb2.PredictRequest:
    made = inference_pb2.PredictRequest()
    made.model_spec.name = model
    made.model_spec.signature_name = signature
    for name, value in inputs.items():
        set_tensor(made.inputs[name], np.asarray(value))
    return made


def predict(channel: grpc.Channel, request: inference_pb2.PredictRequest) -> Any:
    return call(channel, "PredictionService/Predict", request, inference_pb2.PredictResponse).result()


def refused(future: Any) -> tuple[StatusCode, str]:
    error = future.exception()
    return error.code(), error.details()


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype(channel: grpc.Channel, dtype: DType) -> None:
    kind = numpy_dtype(dtype)
    x = np.array([[b"", b"\xff\0"]], object) if kind.kind == "O" else np.frombuffer(bytes(2 * kind.itemsize), kind)
    for _ in range(2):
        answer = predict(channel, request_for("echo", dtype.label, x=x))
        y = to_array(answer.outputs["y"])
        assert (y.dtype, y.tolist()) == (x.dtype, x.tolist())
    assert answer.model_spec.version.value == 2


def test_large_tensors(channel: grpc.Channel) -> None:
    x = np.arange(3 << 20, dtype=np.float32).reshape(3, -1)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    target = channel._channel.target().decode()
    with grpc.insecure_channel(target, options=options) as wide:
        assert np.array_equal(to_array(predict(wide, request_for("double", x=x)).outputs["y"]), x * 2)


def test_a_label(channel: grpc.Channel) -> None:
    request = request_for("echo", "int32", x=np.int32([1]))
    request.model_spec.version_label = "stable"
    assert predict(channel, request).model_spec.version.value == 1


def test_a_deadline_that_passes(front: FakePool, channel: grpc.Channel) -> None:
    send = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    future = send.future(request_for("slow", x=np.float32([0.5])).SerializeToString(), timeout=0.1)
    assert refused(future)[0] is StatusCode.DEADLINE_EXCEEDED


def test_a_call_that_is_cancelled_leaves_the_queue(front: FakePool, channel: grpc.Channel) -> None:
    place = Path(next(model for model in front.settings.models if model.name == "slow").base_path, "1")
    (place / "busy").touch()
    wanted = request_for("slow", x=np.float32([0]))
    blocked = call(channel, "PredictionService/Predict", request_for("slow", x=np.float32([-1])))

    with front.client() as client:
        try:
            until((place / "begun").exists, SECONDS)
            futures = [call(channel, "PredictionService/Predict", wanted) for _ in range(6)]
            until(lambda: sum(row["rows"] for row in client.queues() if row["model"] == "slow") >= 4, SECONDS)
            for future in futures:
                future.cancel()
            until(lambda: client.stats()["models"]["slow"]["errors"].get("CANCELLED", 0) >= 4, SECONDS)
        finally:
            (place / "busy").unlink()
    assert blocked.result()


def test_hostile_bytes(front: FakePool, channel: grpc.Channel) -> None:
    host, _, port = str(front.settings.server.grpc).rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512):
        with socket.create_connection((host, int(port)), SECONDS) as sock:
            sock.sendall(data)
            while sock.recv(4096):
                pass
    good = request_for("double", x=np.float32([[1]])).SerializeToString()
    for data in (b"\xff", good[:-1], good + b"\x12", b"\x0a\xff\xff\xff\xff\x0f"):
        assert refused(call(channel, "PredictionService/Predict", data))[0] is StatusCode.INVALID_ARGUMENT
    assert refused(call(channel, "PredictionService/None", good))[0] is StatusCode.UNIMPLEMENTED
    assert call(channel, "PredictionService/Predict", good).result()


def test_health(channel: grpc.Channel) -> None:
    def check(name: str) -> Any:
        request = health_pb2.HealthCheckRequest(service=name)
        return call(channel, "/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse)

    for name in ("", "double", "tensorflow.serving.PredictionService"):
        assert check(name).result().status == SERVING
    assert check("broken").result().status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert refused(check("none"))[0] is StatusCode.NOT_FOUND


def test_watching(channel: grpc.Channel) -> None:
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    answers = watch(health_pb2.HealthCheckRequest(service="double").SerializeToString(), timeout=SECONDS)
    assert next(answers).status == SERVING
    answers.cancel()


def test_reflection(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "tensorflow.serving.PredictionService" in database.get_services()
    file = database.FindFileContainingSymbol("tensorflow.TensorProto")
    assert file.package == "tensorflow"


def test_reload(front: FakePool, channel: grpc.Channel) -> None:
    request = serving_pb2.ReloadConfigRequest()
    listed = request.config.model_config_list
    method = "ModelService/HandleReloadConfigRequest"

    def reload() -> Any:
        return call(channel, method, request, serving_pb2.ReloadConfigResponse)

    models = [model for model in front.settings.models if model.name not in ("broken", "echo")]
    for model in models:
        listed.config.add(name=model.name, base_path=model.base_path)
    more = listed.config.add(name="more", base_path=next(m.base_path for m in models if m.name == "double"))
    more.version_labels.add(key="l", value=1)
    assert reload().result().status.error_code == 0
    wanted = request_for("more", x=np.float32([[1]]))
    wanted.model_spec.version_label = "l"
    assert to_array(predict(channel, wanted).outputs["y"]).tolist() == [[2]]
    more.base_path = "/nowhere"
    code, details = refused(reload())
    assert code in (StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND)
    assert "/nowhere" in details
    assert predict(channel, wanted)
    more.name = "double"
    assert refused(reload())[0] is StatusCode.INVALID_ARGUMENT
    del listed.config[-1]
    assert reload().result().status.error_code == 0
    assert refused(call(channel, "PredictionService/Predict", wanted))[0] is StatusCode.INVALID_ARGUMENT


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(directory: Path) -> Callable[[str], str]:
    """Files by name: of an authority, and of a server and a client that it vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl")
    place = directory / "tls"
    place.mkdir()
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    openssl("req", "-x509", "-subj", "/CN=authority", *new, "-keyout", "authority.key", "-out", "authority.pem")
    (place / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", "-subj", f"/CN={name}", *new[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed_by = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-days", "2", *signed_by, "-out", f"{name}.pem")
    return lambda name: str(place / name)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
def test_tls(certificates: Callable[[str], str], mutual: bool) -> None:
    settings = GatewaySettings(
        tls_cert=certificates("server.pem"),
        tls_key=certificates("server.key"),
        tls_client_ca=certificates("authority.pem") if mutual else None,
    )
    authority = Path(certificates("authority.pem")).read_bytes()
    mine = [Path(certificates(f"client.{end}")).read_bytes() for end in ("key", "pem")]
    anonymous = grpc.ssl_channel_credentials(authority)
    known = grpc.ssl_channel_credentials(authority, *mine)
    address = free_address()

    async def status(channel: grpc.aio.Channel) -> StatusCode:
        request = health_pb2.HealthCheckRequest(service="half").SerializeToString()
        async with channel:
            try:
                await channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                found: StatusCode = error.code()
                return found
        return StatusCode.OK

    async def run() -> list[StatusCode]:
        server = RpcServer(settings, services(Line().desk.gateway, Everybody()))  # type: ignore[arg-type]
        await server.start(address)
        channels = (
            grpc.aio.secure_channel(address, known),
            grpc.aio.secure_channel(address, anonymous),
            grpc.aio.insecure_channel(address),
        )
        try:
            return [await status(channel) for channel in channels]
        finally:
            await server.stop(0)

    good, nameless, plain = asyncio.run(run())
    assert good is StatusCode.OK
    assert nameless is (StatusCode.UNAVAILABLE if mutual else StatusCode.OK)
    assert plain is StatusCode.UNAVAILABLE


class Everybody:
    """Lets all in."""

    def check(self, headers: Any, wanted: Any) -> Any:
        return wanted
