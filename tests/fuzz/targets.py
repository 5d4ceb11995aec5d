"""What reads bytes that somebody else wrote. A target takes any bytes; what it raises is a bug.

``seeds`` are good inputs, from which fuzzers make bad ones.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from google.protobuf import text_format

from tests.fuzz import gateway
from tfpool import config, config_tfs, keys
from tfpool.broker.gather import check_frames, check_regions
from tfpool.errors import InvalidArgument, TfpoolError
from tfpool.gateway.access import read_tokens
from tfpool.protos.saved_model_pb2 import SavedModel
from tfpool.repository import describe, statefile, tfrecord, warmup_file
from tfpool.settings import Form
from tfpool.store.manifest import Compiled, Cost, Feature, Manifest, Start, Weight
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire import messages
from tfpool.wire.keys import (
    OutputKey,
    RequestKey,
    Tensor,
    pack_output_key,
    pack_request_key,
    unpack_output_key,
    unpack_request_key,
)
from tfpool.wire.messages import Bell, Group, Region, Verb

BETWEEN = b"\xfe|\xfe"
"""Separates the frames of a message."""
_CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, slots=True)
class Target:
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# -- the wire ------------------------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    """A client's message as the broker takes it in, without what depends on models."""
    header, *frames = data.split(BETWEEN)
    with suppress(InvalidArgument):
        verb, body = messages.decode(header)
        if verb == Verb.PREDICT:
            _predict(body, frames)
        elif verb == Verb.HELLO:
            messages.decode_hello(body)
        elif verb == Verb.CANCEL:
            messages.decode_cancel(body)
        elif verb == Verb.CALL:
            call = messages.decode_call(body)
            repr(call)  # it may be quoted in an error
            if call.method == "reload":
                config.read_models(call.arguments, "request", config.BatchingSettings(), ["cpu0"])


def _predict(body: Any, frames: list[bytes]) -> None:
    for group in messages.decode_groups(body):
        with suppress(InvalidArgument):
            key = unpack_request_key(group.key)
            if group.regions is not None:
                check_regions(key, group)
            elif len(frames) >= key.frames:
                own, frames = frames[: key.frames], frames[key.frames :]
                for ends in check_frames(key, group, own):
                    assert ends == sorted(ends)


def request_key(data: bytes) -> None:
    """A key that is read says the same when it is written and read again."""
    with suppress(InvalidArgument):
        key = unpack_request_key(data)
        assert unpack_request_key(pack_request_key(key)) == key


def bell(data: bytes) -> None:
    """A packet of a worker, and the output keys in it."""
    with suppress(InvalidArgument):
        packet = messages.unpack(data)
        if type(packet) is list:
            for item in packet:
                if type(item) is bytes:
                    unpack_output_key(item)


# -- files ---------------------------------------------------------------------------------------------------------


def _in_file(name: str, data: bytes, read: Callable[[str], object]) -> None:
    """``read`` a private file that holds ``data``."""
    with tempfile.TemporaryDirectory(prefix="tfp-fuzz-") as place:
        path = os.path.join(place, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(data)
        with suppress(TfpoolError):
            read(path)


def toml(data: bytes) -> None:
    with suppress(TfpoolError):
        config.parse(data.decode(errors="replace"), "pool.toml", cpus=(0, 1))


def text_proto(data: bytes) -> None:
    """TensorFlow Serving's files."""
    text = data.decode(errors="replace")
    for read in (config_tfs.parse, config_tfs.parse_models, config_tfs.parse_batching):
        with suppress(TfpoolError):
            read(text, "models.config")


def record_file(data: bytes) -> None:
    _in_file("records", data, lambda path: list(tfrecord.read(path)))
    _in_file("records", data, lambda path: list(warmup_file.read(path)))


def warmup_record(data: bytes) -> None:
    """A record with a good checksum, whatever it says."""
    _in_file("records", _records(data), lambda path: list(warmup_file.read(path)))


def saved_model(data: bytes) -> None:
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        _in_file(name, data, lambda path: describe.describe(os.path.dirname(path)))


def key_file(data: bytes) -> None:
    readers: tuple[Callable[[str], object], ...] = (
        *(keys.read_server_keys, keys.read_client_keys, keys.read_authorized, read_tokens),
    )
    for read in readers:
        _in_file("some.key", data, read)


def manifest(data: bytes) -> None:
    """What is read says the same when it is written and read again."""
    with suppress(InvalidArgument):
        read = Manifest.from_bytes(data)
        assert Manifest.from_bytes(read.to_bytes()) == read


def manifest_body(data: bytes) -> None:
    """A manifest with a good checksum, whatever it says."""
    manifest(b'{"sha256":"' + hashlib.sha256(data).hexdigest().encode() + b'",' + data[1:])


def state_file(data: bytes) -> None:
    _in_file("state", data, lambda path: statefile.StateFile(path).load())


# -- seeds ---------------------------------------------------------------------------------------------------------

_FLOATS = RequestKey("double", 0, "", "", (Tensor("x", DType.FLOAT, (3,)),), True)
_STRINGS = RequestKey("text", 2, "", "serving_default", (Tensor("s", DType.STRING, (2,)),), True)
_WHOLE = RequestKey("m", 0, "stable", "", (Tensor("a", DType.INT64, ()), Tensor("b", DType.STRING, ())), False)
_KEYS = tuple(pack_request_key(key) for key in (_FLOATS, _STRINGS, _WHOLE))
_LENGTHS = np.array([1, 2], "<u4").tobytes()
_LOGS = (
    bytes.fromhex("32270a250a0a0a016d120208031a017312170a01781212080112041202080222080000803f000000c0"),  # predict
    bytes.fromhex("121b0a190a030a016d121212100a0e0a0c0a0a0a016e12051a030a0107"),  # classify
)
_GRAPH = """meta_graphs { meta_info_def { tags: "serve" } signature_def { key: "s" value {
  inputs { key: "x" value { name: "in:0" dtype: DT_FLOAT tensor_shape { dim { size: -1 } } } }
  outputs { key: "y" value { name: "out:0" dtype: DT_STRING tensor_shape { } } }
  method_name: "m" } } }"""
_PUBLIC, _SECRET = "HelloWorld" * 4, "0" * 40


def _message(verb: Verb, body: object, *frames: bytes) -> bytes:
    return BETWEEN.join((messages.encode(verb, body), *frames))


def _group(key: bytes, **changes: Any) -> Group:
    return Group(key, 1, 1, 1, 1000, 0, None, None)._replace(**changes)


def _records(*records: bytes) -> bytes:
    file = io.BytesIO()
    tfrecord.write(file, records)
    return file.getvalue()


def _files(*names: str) -> Iterable[bytes]:
    return ((_CONFIGS / name).read_bytes() for name in names)


_STATE = (
    b'{"version": 1, "labels": {"m": {"stable": "3"}}, "shadows": {"m": "4:10"}, "models": {"n": {"base_path": "/n"}},'
    b' "removed": ["o"], "unloaded": [["m", 3]], "footprints": {"k": {"nbytes": 1, "peak": 2, "load_seconds": 0.5}}}'
)

_SPEC = SignatureSpec("s", "m", (TensorSpec("x", DType.FLOAT, (-1, 4)),), (TensorSpec("y", DType.STRING, None),))
_COST = Cost(1, 2, 0.5, 1, (((1, 0.5), (8, 1.5)),))
_ABOUT = Manifest("a" * 64, "/m/1", "2.21.0", "c0ffee", 1, created=1.5)
_REFUSED = replace(_ABOUT, refusal="it assigns variables").to_bytes()
_MANIFEST = replace(
    _ABOUT,
    signatures=(Compiled(_SPEC, ("a:0",), ("b:0",), (0,), 3, (Feature("x", 1, 4),)),),
    weights=(Weight(1, (2, 2), 0, 16), Weight(9, (), 64, 8)),
    digests={"graph.pb": "b" * 64, "weights.bin": "c" * 64},
    costs={Form.PLAIN: _COST},
    start=Start("init"),
).to_bytes()

TARGETS: dict[str, Target] = {
    "message": Target(
        message,
        (
            _message(Verb.PREDICT, [_group(_KEYS[0])], bytes(12)),
            _message(Verb.PREDICT, [_group(_KEYS[1], count=2)], _LENGTHS * 2, b"abbabb"),
            _message(Verb.PREDICT, [_group(_KEYS[2], rows=0), _group(_KEYS[0])], bytes(8), bytes(4), b"", bytes(12)),
            _message(Verb.PREDICT, [_group(_KEYS[0], regions=(Region(4096, 12),), reply=Region(8192, 64))]),
            _message(Verb.HELLO, [1, 3, 1 << 20, bytes(16)]),
            _message(Verb.HELLO, None),
            _message(Verb.CANCEL, [[1, 2], [7, 1]]),
            _message(Verb.CALL, [1, "status", {"model": "double"}, 1000]),
            _message(Verb.CALL, [1, "reload", {"model": [{"name": "m", "base_path": "/m", "replicas": [1, 2]}]}, 9]),
        ),
    ),
    "request_key": Target(request_key, _KEYS),
    "bell": Target(
        bell,
        tuple(
            msgpack.packb(packet)
            for packet in (
                [Bell.DONE, 7, 120, [[pack_output_key(OutputKey(_FLOATS.inputs, True)), [[0, 12]], False]]],
                [Bell.LOADED, 3, {"memory_bytes": 1, "signatures": [], "skipped": {}}],
                [Bell.BEAT, 0, 1.5],
                [Bell.DONE, pack_output_key(OutputKey(_WHOLE.inputs, False))],
            )
        ),
    ),
    "toml": Target(toml, tuple(_files("minimal.toml", "pool.toml"))),
    "text_proto": Target(text_proto, tuple(_files("models.config", "batching.config"))),
    "record_file": Target(record_file, (_records(*_LOGS), _records(b"hello", b""))),
    "warmup_record": Target(warmup_record, _LOGS),
    "saved_model": Target(
        saved_model,
        (
            _GRAPH.encode(),
            text_format.Parse(_GRAPH, SavedModel()).SerializeToString(),
        ),
    ),
    "key_file": Target(
        key_file,
        (
            f"# a key\npublic = {_PUBLIC}\nsecret = {_SECRET}\nserver = {_PUBLIC}\n".encode(),
            f"# who gets in\nadmin {_PUBLIC} ann\npredict {_SECRET} pete\n".encode(),
            b"monitor some-token\nadmin another-token== ann\n",
        ),
    ),
    "state_file": Target(state_file, (_STATE, b"{}")),
    "manifest": Target(manifest, (_MANIFEST, _REFUSED)),
    "manifest_body": Target(manifest_body, tuple(b"{" + data[77:] for data in (_MANIFEST, _REFUSED))),
    **{name: Target(run, seeds) for name, (run, seeds) in gateway.TARGETS.items()},
}
