from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfpool.broker.recorder import MAX_RECORDINGS, Recorder, Recording
from tfpool.broker.registry import Registry, State
from tfpool.broker.resolve import Resolved, Resolver
from tfpool.errors import ResourceExhausted
from tfpool.scheduler.work import Segment
from tfpool.settings import ModelSettings
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.tensors import take_array

A, B = TensorSpec("a", DType.INT32, (-1, 2)), TensorSpec("b", DType.STRING, (-1,))


def resolved(by_rows: bool, *inputs: Tensor) -> Resolved:
    registry = Registry()
    version = registry.add_version(registry.add_model(ModelSettings("m", "/m")), 3, "/m/3")
    version.on["w"] = State.AVAILABLE
    spec = SignatureSpec("s", "predict", (A, B)[: len(inputs)], (A,), True)
    version.signatures = (spec,)
    key = RequestKey("m", 0, "", "", inputs, by_rows)
    found = Resolver(registry).resolve(pack_request_key(key), key)
    assert isinstance(found, Resolved)
    return found


def arrays(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        name: take_array(dtype, tuple(shape), [data] if payload is None else [data, payload]).tolist()
        for name, dtype, shape, data, payload in sample["inputs"]
    }


def strings(*rows: bytes) -> tuple[bytes, bytes, list[int]]:
    lengths = np.array([len(row) for row in rows], "<u4")
    return lengths.tobytes(), b"".join(rows), np.cumsum(lengths).tolist()


def test_samples_of_a_segment_that_was_cut() -> None:
    found = resolved(True, Tensor("a", DType.INT32, (2,)), Tensor("b", DType.STRING, ()))
    numbers = np.arange(12, dtype=np.int32).reshape(6, 2)
    lengths, text, ends = strings(b"", b"ab", b"c", b"def", b"", b"g")
    segment = Segment(b"c", 10, 3, 2, 1e9, 0.0, [numbers.tobytes(), lengths, text], payload=(ends,))
    segment.take(1)
    recorder, recording = Recorder(), Recording("m", 3, 5, 1e9)
    recorder.begin(recording)
    recorder.note(found, segment)
    assert [arrays(sample) for sample in recording.samples] == [
        {"a": [[4, 5], [6, 7]], "b": [b"c", b"def"]},
        {"a": [[8, 9], [10, 11]], "b": [b"", b"g"]},
    ]
    assert {sample["signature"] for sample in recording.samples} == {"s"}
    assert recording.nbytes == 2 * (16 + 8) + 4 + 1


def test_whole_tensors_and_bare_arrays() -> None:
    found = resolved(False, Tensor("", DType.INT32, (1, 2)))
    segment = Segment(b"c", 10, 1, 1, 1e9, 0.0, [np.int32([[7, 8]]).tobytes()])
    recorder, recording = Recorder(), Recording("m", 3, 5, 1e9)
    recorder.begin(recording)
    recorder.note(found, segment)
    assert [arrays(sample) for sample in recording.samples] == [{"a": [[7, 8]]}]


def test_who_is_noted_and_when_it_ends() -> None:
    found = resolved(True, Tensor("a", DType.INT32, (2,)))
    segment = Segment(b"c", 1, 4, 1, 1e9, 0.0, [bytes(32)])
    recorder = Recorder()
    few, other, elsewhere = Recording("m", 3, 6, 50.0), Recording("m", 2, 6, 50.0), Recording("n", 3, 6, 50.0)
    for one in (few, other, elsewhere):
        recorder.begin(one)
    assert recorder.models() == {"m", "n"}
    recorder.note(found, segment)
    assert not few.done(49.0)
    recorder.note(found, segment)
    assert few.done(49.0)
    assert [len(one.samples) for one in (few, other, elsewhere)] == [6, 0, 0]
    recorder.expire(49.0)
    assert other.done(50.0)
    recorder.expire(50.0)
    assert recorder.models() == set()


def test_only_so_many_at_once() -> None:
    recorder = Recorder()
    for _ in range(MAX_RECORDINGS):
        recorder.begin(Recording("m", 1, 1, 10.0))
    with pytest.raises(ResourceExhausted, match=f"{MAX_RECORDINGS} recordings are under way"):
        recorder.begin(Recording("m", 1, 1, 10.0))
    recorder.expire(10.0)
    recorder.begin(Recording("m", 1, 1, 20.0))


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfpool.broker.recorder.MAX_BYTES", 20)
    found = resolved(True, Tensor("a", DType.INT32, (2,)))
    recorder, recording = Recorder(), Recording("m", 3, 100, 1e9)
    recorder.begin(recording)
    recorder.note(found, Segment(b"c", 1, 50, 1, 1e9, 0.0, [bytes(400)]))
    assert (len(recording.samples), recording.done(0.0)) == (3, True)
