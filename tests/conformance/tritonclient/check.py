"""tritonclient, in its four forms, as its users use it: ``check.py HTTP_ADDRESS GRPC_ADDRESS MODELS``."""

from __future__ import annotations

import asyncio
import queue
import sys
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Call = Callable[..., Any]
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
ROWS = np.arange(6, dtype=np.float32)


class Form:
    """One of the four: ``ask`` calls a method of its client and waits for what it gives."""

    def __init__(self, name: str, module: Any, client: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.name = name
        self.module = module
        self.client = client
        self.http = "http" in name
        self._loop = loop

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        found = getattr(self.client, method)(*arguments, **named)
        return found if self._loop is None else self._loop.run_until_complete(found)

    def told(self, method: str, *arguments: Any) -> Any:
        """An answer as JSON values."""
        return self.ask(method, *arguments, **({} if self.http else {"as_json": True}))

    def tensor(self, name: str, array: Any, **options: Any) -> Any:
        made = self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array, **options)
        return made

    def output(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    def infer(self, model: str, name: str, array: Any, **options: Any) -> Any:
        return self.ask("infer", model, [self.tensor(name, array)], **options)


def refused(call: Callable[[], Any], *words: str) -> str:
    """The message of a refusal, which has these words."""
    try:
        call()
    except InferenceServerException as error:
        message = str(error)
        assert all(word in message for word in words), message
        return message
    raise AssertionError("this was not refused")


def health(form: Form) -> None:
    assert form.ask("is_server_live") is True
    assert form.ask("is_server_ready") is True
    assert form.ask("is_model_ready", "mlp") is True
    assert form.ask("is_model_ready", "mlp", "1") is True
    assert form.ask("is_model_ready", "mlp", "77") is False
    assert form.ask("is_model_ready", "nobody") is False


def metadata(form: Form) -> None:
    server = form.told("get_server_metadata")
    assert server["name"] == "tfpool"
    assert "binary_tensor_data" in server["extensions"]
    model = form.told("get_model_metadata", "mlp")
    assert model["versions"] == ["1"]
    assert model["platform"] == "tensorflow_savedmodel"
    (given,) = model["inputs"]
    assert (given["name"], given["datatype"], [int(size) for size in given["shape"]]) == ("x", "FP32", [-1, 256])
    refused(lambda: form.told("get_model_metadata", "nobody"), "nobody")


def config(form: Form) -> None:
    found = form.told("get_model_config", "mlp")
    found = found.get("config", found)
    assert found["max_batch_size"] == 128
    assert found["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(size) for size in found["input"][0]["dims"]] == [256]


def infer_plain(form: Form) -> None:
    found = form.infer("half_plus_two", "x", ROWS, request_id="seven")
    assert found.as_numpy("y").tolist() == (ROWS / 2 + 2).tolist()
    said = found.get_response() if form.http else found.get_response(as_json=True)
    assert (said["id"], said["model_name"], said["model_version"]) == ("seven", "half_plus_two", "1")
    assert form.infer("half_plus_two", "x", ROWS, model_version="1").as_numpy("y")[0] == 2.0


def infer_outputs(form: Form) -> None:
    text = np.array([b"ab", "häß".encode(), b""], object)
    found = form.infer("string_length", "text", text, outputs=[form.output("length")])
    assert found.as_numpy("length").tolist() == [2, 5, 0]
    assert found.as_numpy("upper") is None
    both = form.infer("string_length", "text", text, outputs=[form.output("upper"), form.output("length")])
    assert both.as_numpy("upper").tolist()[0] == b"AB"
    refused(lambda: form.infer("string_length", "text", text, outputs=[form.output("nothing")]), "nothing", "upper")


def infer_json(form: Form) -> None:
    if not form.http:
        return
    given = form.tensor("x", ROWS, binary_data=False)
    found = form.ask("infer", "half_plus_two", [given], outputs=[form.output("y", binary_data=False)])
    assert found.as_numpy("y").tolist() == (ROWS / 2 + 2).tolist()
    text = form.tensor("text", np.array(["a", "bc"], object), binary_data=False)
    outputs = [form.output("upper", binary_data=False), form.output("length", binary_data=True)]
    mixed = form.ask("infer", "string_length", [text], outputs=outputs)
    assert [str(item) for item in mixed.as_numpy("upper")] == ["A", "BC"]
    assert mixed.as_numpy("length").tolist() == [1, 2]
    odd = form.tensor("x", np.float32([np.nan, np.inf]), binary_data=True)
    words = form.ask("infer", "half_plus_two", [odd], outputs=[form.output("y", binary_data=False)]).as_numpy("y")
    assert np.isnan(words[0])
    assert words[1] == np.inf


def infer_dtypes(form: Form) -> None:
    for name in DTYPES:
        array = np.array([[0, 1], [1, 0]]).astype(name)
        found = form.infer("dtypes", "x", array, parameters={"signature": name}).as_numpy("y")
        assert found.dtype == array.dtype, name
        assert found.tolist() == array.tolist(), name
    half = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    found = form.infer("dtypes", "x", half, parameters={"signature": "bfloat16"}).as_numpy("y")
    assert found.astype(np.float32).tolist() == [[1.5, -2.0]]
    text = form.infer("dtypes", "x", np.array([[b"\xff\x00", b""]], object), parameters={"signature": "string"})
    assert text.as_numpy("y").tolist() == [[b"\xff\x00", b""]]


def infer_wrong(form: Form) -> None:
    refused(lambda: form.infer("mlp", "x", np.zeros((1, 255), np.float32)), "x")
    refused(lambda: form.infer("mlp", "wrong", np.zeros((1, 256), np.float32)), "wrong")
    refused(lambda: form.infer("nobody", "x", ROWS), "nobody")
    refused(lambda: form.infer("mlp", "x", np.zeros((1, 256), np.float32), model_version="77"), "77")


def infer_large(form: Form) -> None:
    rows = np.random.default_rng(7).random((64, 256), np.float32)
    together = form.infer("mlp", "x", rows).as_numpy("y")
    assert together.shape == (64, 128)
    apart = np.concatenate([form.infer("mlp", "x", rows[i : i + 16]).as_numpy("y") for i in range(0, 64, 16)])
    assert np.allclose(together, apart, atol=1e-3)


def classification(form: Form) -> None:
    rows = np.zeros((2, 256), np.float32)
    rows[1] = 1.0
    values = form.infer("mlp", "x", rows).as_numpy("y")
    found = form.infer("mlp", "x", rows, outputs=[form.output("y", class_count=3)]).as_numpy("y")
    assert found.shape == (2, 3)
    for row, told in zip(values, found.tolist(), strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert [int(one.split(b":")[1]) for one in told] == best.tolist()
        assert np.allclose([float(one.split(b":")[0]) for one in told], row[best], atol=1e-5)


def parameters(form: Form) -> None:
    for options in (
        {"priority": 1},
        {"priority": 9},
        {"timeout": 5_000_000},
        {"sequence_id": 4, "sequence_start": True},
    ):
        assert form.infer("half_plus_two", "x", ROWS, **options).as_numpy("y")[0] == 2.0
    refused(lambda: form.infer("dtypes", "x", ROWS), "serving_default", "float32")


def compression(form: Form) -> None:
    rows = np.zeros((64, 256), np.float32)
    for one in ("gzip", "deflate"):
        both = {"request_compression_algorithm": one, "response_compression_algorithm": one}
        options = both if form.http else {"compression_algorithm": one}
        assert form.infer("mlp", "x", rows, **options).as_numpy("y").shape == (64, 128)
    if form.http:
        told = form.infer(
            "mlp", "x", rows, outputs=[form.output("y", binary_data=False)], response_compression_algorithm="gzip"
        )
        assert told.as_numpy("y").shape == (64, 128)


def statistics(form: Form) -> None:
    def read() -> Any:
        (one,) = form.told("get_inference_statistics", "half_plus_two")["model_stats"]
        return one

    before = int(read().get("inference_count", 0))
    form.infer("half_plus_two", "x", ROWS)
    after = read()
    assert (after["name"], after["version"]) == ("half_plus_two", "1")
    assert int(after["inference_count"]) == before + len(ROWS)
    assert int(after["inference_stats"]["success"]["ns"]) > 0
    assert len(form.told("get_inference_statistics")["model_stats"]) >= 5


def repository(form: Form) -> None:
    def states() -> dict[str, str]:
        found = form.told("get_model_repository_index")
        return {one["name"]: one.get("state", "") for one in (found if form.http else found["models"])}

    assert states()["examples"] == "READY"
    form.ask("unload_model", "examples")
    assert states()["examples"] == "UNAVAILABLE"
    assert form.ask("is_model_ready", "examples") is False
    form.ask("load_model", "examples")
    assert form.ask("is_model_ready", "examples") is True
    refused(lambda: form.ask("load_model", "nobody"), "nobody")
    refused(lambda: form.ask("load_model", "examples", config="{}"), "config")


def shared_memory(form: Form) -> None:
    for kind in ("system", "cuda"):
        found = form.told(f"get_{kind}_shared_memory_status")
        assert not found or not found.get("regions")
        form.ask(f"unregister_{kind}_shared_memory")
    refused(lambda: form.ask("register_system_shared_memory", "mine", "/mine", 64), "shared memory")
    given = form.module.InferInput("x", [1], "FP32")
    given.set_shared_memory("mine", 4)
    refused(lambda: form.ask("infer", "half_plus_two", [given]), "shared memory")


def settings(form: Form) -> None:
    refused(lambda: form.ask("get_trace_settings"), "501" if form.http else "UNIMPLEMENTED")
    refused(lambda: form.ask("get_log_settings"), "501" if form.http else "UNIMPLEMENTED")


def callbacks(form: Form) -> None:
    """The ways of the blocking clients to have many requests under way."""
    if form.name == "http":
        under_way = [form.client.async_infer("half_plus_two", [form.tensor("x", ROWS + i)]) for i in range(8)]
        results = [one.get_result().as_numpy("y")[0] for one in under_way]
    elif form.name == "grpc":
        done: queue.Queue[Any] = queue.Queue()
        for i in range(8):
            given = [form.tensor("x", ROWS + i)]
            form.client.async_infer("half_plus_two", given, lambda result, error: done.put(result or error))
        results = sorted(done.get(timeout=20).as_numpy("y")[0] for _ in range(8))
    else:
        results = list(form.ask("gathered"))
    assert results == [i / 2 + 2 for i in range(8)]


def streams(form: Form) -> None:
    """Requests of which one is wrong: the others are answered all the same."""
    if form.name == "grpc":
        done: queue.Queue[Any] = queue.Queue()
        form.client.start_stream(lambda result, error: done.put((result, error)))
        for i in range(6):
            model = "nobody" if i == 3 else "half_plus_two"
            given = [form.tensor("x", ROWS + i)]
            form.client.async_stream_infer(model, given, request_id=str(i), enable_empty_final_response=True)
        answers = [done.get(timeout=20) for _ in range(6)]
        form.client.stop_stream()
    elif form.name == "grpc.aio":
        answers = form.ask("streamed")
    else:
        return
    errors = [str(error) for _, error in answers if error is not None]
    assert len(errors) == 1
    assert "nobody" in errors[0]
    found = {one.get_response().id: one.as_numpy("y")[0] for one, error in answers if error is None}
    assert found == {str(i): i / 2 + 2 for i in range(6) if i != 3}


def together(form: Form, client: Any) -> None:
    """Gives an asyncio client the two helpers that :func:`callbacks` and :func:`streams` ask for."""

    async def gathered() -> Any:
        asked = (client.infer("half_plus_two", [form.tensor("x", ROWS + i)]) for i in range(8))
        return [one.as_numpy("y")[0] for one in await asyncio.gather(*asked)]

    async def streamed() -> Any:
        async def requests() -> Any:
            for i in range(6):
                model = "nobody" if i == 3 else "half_plus_two"
                yield {"model_name": model, "inputs": [form.tensor("x", ROWS + i)], "request_id": str(i)}

        return [pair async for pair in client.stream_infer(requests())]

    client.gathered, client.streamed = gathered, streamed


CHECKS: tuple[Callable[[Form], None], ...] = (
    *(health, metadata, config, infer_plain, infer_outputs, infer_json, infer_dtypes, infer_wrong, infer_large),
    *(classification, parameters, compression, statistics, repository, shared_memory, settings, callbacks, streams),
)


def passed(form: Form, check: Callable[[Form], None]) -> bool:
    try:
        check(form)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        line = next(one.lineno for one in reversed(where) if one.filename == __file__)
        print(f"FAILED {form.name} {check.__name__}, line {line}: {type(error).__name__}: {error}")
        return False
    print(f"ok     {form.name} {check.__name__}")
    return True


async def made(make: Callable[[], Any]) -> Any:
    return make()


def main(http: str, grpc: str) -> int:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    forms = [
        Form("http", tritonclient.http, tritonclient.http.InferenceServerClient(http, concurrency=8)),
        Form("grpc", tritonclient.grpc, tritonclient.grpc.InferenceServerClient(grpc)),
    ]
    for name, module, address in (
        ("http.aio", tritonclient.http.aio, http),
        ("grpc.aio", tritonclient.grpc.aio, grpc),
    ):
        client = loop.run_until_complete(made(partial(module.InferenceServerClient, address)))
        forms.append(Form(name, module, client, loop))
        together(forms[-1], client)
    good = [passed(form, check) for form in forms for check in CHECKS]
    for form in forms:
        closed: Awaitable[None] | None = form.client.close()
        if closed is not None:
            loop.run_until_complete(closed)
    loop.close()
    print(f"{sum(good)} of {len(good)} passed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
