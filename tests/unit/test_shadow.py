from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.gather import Outputs
from tfpool.broker.registry import Registry, State
from tfpool.broker.resolve import Resolved, Resolver
from tfpool.broker.shadow import MAX_OUTSTANDING, SHADOW, ShadowMeter, Shadows
from tfpool.scheduler.work import Segment
from tfpool.settings import BatchingSettings, ModelSettings
from tfpool.types import DType, SignatureSpec, TensorSpec, numpy_dtype
from tfpool.wire.keys import OutputKey, RequestKey, Tensor, pack_request_key

X = TensorSpec("x", DType.FLOAT, (-1,))


# -- comparing -----------------------------------------------------------------------------------------------------


def compared(ours: Any, theirs: Any) -> ShadowMeter:
    meter = ShadowMeter()
    meter.compare({"y": np.asarray(ours)}, {"y": np.asarray(theirs)})
    assert meter.compared == 1
    return meter


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.STRING], ids=lambda d: d.label)
def test_every_dtype_is_equal_to_itself_and_differs_from_another(dtype: DType) -> None:
    kind = numpy_dtype(dtype)
    zeros, ones = np.zeros((2, 3), kind), np.ones((2, 3), kind)
    same, other = compared(ones, ones), compared(zeros, ones)
    assert (same.max_abs_difference, same.mismatched) == (0.0, 0)
    assert (other.max_abs_difference, other.mismatched) == (1.0, 0)


def test_differences() -> None:
    nan, inf = np.nan, np.inf
    assert compared([1.0, 2.0], [1.5, 1.0]).max_abs_difference == 1.0
    assert compared(np.uint8([250]), np.uint8([5])).max_abs_difference == 245.0
    assert compared([nan, inf, -inf], [nan, inf, -inf]).max_abs_difference == 0.0
    assert compared([nan], [1.0]).max_abs_difference == inf
    assert compared([inf], [-inf]).max_abs_difference == inf
    assert compared([inf, 1.0], [1.0, 1.0]).max_abs_difference == inf
    assert compared([3 + 4j], [0j]).max_abs_difference == 5.0
    assert compared(np.float16([6e4]), np.float16([-6e4])).max_abs_difference == pytest.approx(1.2e5, rel=1e-3)
    assert compared(np.zeros((0, 4)), np.zeros((0, 4))).max_abs_difference == 0.0
    assert compared(np.float32(2.0), np.float32(5.0)).max_abs_difference == 3.0
    assert compared(np.int64(2**62 + 1), np.int64(2**62 + 1)).max_abs_difference == 0.0


def test_mismatches() -> None:
    words = np.array([b"a", b"b"], object)
    assert compared(words, words.copy()).mismatched == 0
    assert compared(words, np.array([b"a", b"c"], object)).mismatched == 1
    assert compared([1.0], [[1.0]]).mismatched == 1
    assert compared(np.float32([1]), np.float64([1])).mismatched == 1
    assert compared(words, [1.0, 2.0]).mismatched == 1
    meter = ShadowMeter()
    meter.compare({"a": np.ones(1)}, {"b": np.ones(1)})
    assert meter.mismatched == 1


def test_argmax() -> None:
    meter = compared([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]], [[0.2, 0.8], [0.1, 0.9], [0.4, 0.4]])
    assert (meter.argmax_rows, meter.argmax_disagreements) == (3, 1)
    assert compared([[1.0], [2.0]], [[2.0], [1.0]]).argmax_rows == 0, "one class is no choice"
    assert compared(np.float32(1.0), np.float32(1.0)).argmax_rows == 0
    assert compared([True, False], [False, True]).argmax_rows == 0
    assert compared(np.ones((2, 3, 4)), np.ones((2, 3, 4))).argmax_rows == 6


# -- pairs ---------------------------------------------------------------------------------------------------------


class Setting:
    """Two versions that serve, and a shadow on the second."""

    def __init__(self, share: float = 1.0, **batching: Any) -> None:
        self.registry = Registry()
        settings = ModelSettings("m", "/m", shadow=(2, share), batching=BatchingSettings(**batching))
        self.model = self.registry.add_model(settings)
        for number in (1, 2):
            version = self.registry.add_version(self.model, number, f"/m/{number}")
            version.on["w"] = State.AVAILABLE
            version.signatures = (SignatureSpec("serving_default", "predict", (X,), (X,), True),)
        self.resolver = Resolver(self.registry)
        self.shadows = Shadows(self.registry, self.resolver)
        self.shadows.refresh()

    def found(self, number: int = 1) -> Resolved:
        key = RequestKey("m", number, "", "", (Tensor("x", DType.FLOAT, ()),), True)
        packed = pack_request_key(key)
        found = self.resolver.resolve(packed, key)
        assert isinstance(found, Resolved)
        return found

    def double(self, count: int, rows: int = 1, number: int = 1) -> tuple[list[Segment], list[Segment]]:
        """Ours and the shadow's segments of one group."""
        segment = Segment(b"c", 100, count, rows, 1e9, 0.0, [bytes(4 * count * rows)])
        made = [submit.segment for submit in self.shadows.double(self.found(number), segment)]
        return [s for s in made if s.client != SHADOW], [s for s in made if s.client == SHADOW]

    @property
    def meter(self) -> dict[str, Any]:
        found = self.shadows.meter("m")
        assert found is not None
        return found


def outputs(values: list[float]) -> Outputs:
    data = np.float32(values).tobytes()
    return Outputs(b"", OutputKey((Tensor("y", DType.FLOAT, ()),), True), [(0, len(data))], memoryview(data))


@given(st.data())
def test_pairs_meet_in_whatever_order_and_pieces(data: st.DataObject) -> None:
    setting = Setting()
    (mine,), (copy,) = setting.double(6, rows=2)
    assert setting.shadows.outstanding == 6
    pieces: list[Segment] = []
    for whole in (mine, copy):
        while whole.count > 1:
            pieces.append(whole.take(data.draw(st.integers(1, whole.count - 1))))
        pieces.append(whole)
    refused = 0
    lost: set[int] = set()
    for piece in data.draw(st.permutations(pieces)):
        first = piece.first - (100 if piece.client == b"c" else 0)
        if data.draw(st.integers(0, 4)) == 0:
            piece.twin.refused(piece)
            lost.update(range(first, first + piece.count))
        else:
            values = [float(first + i) + (0.5 if piece.client == SHADOW else 0.0) for i in range(piece.count)]
            piece.twin.delivered(piece, 3, outputs([9.0] * 3 + [v for v in values for _ in range(2)]))
    refused = len(lost)
    assert (setting.meter["compared"], setting.meter["failed"]) == (6 - refused, refused)
    assert setting.meter["max_abs_difference"] == (0.5 if refused < 6 else 0.0)
    assert setting.shadows.outstanding == 0


def test_the_half_of_a_client_that_is_gone_makes_room() -> None:
    setting = Setting()
    mine, copies = setting.double(5)
    (copy,) = copies
    copy.twin.delivered(copy, 0, outputs([1.0] * 5))
    assert setting.shadows.outstanding == 5
    mine.clear()
    copies.clear()
    del copy
    gc.collect()
    assert setting.shadows.outstanding == 0


def test_who_is_copied() -> None:
    setting = Setting(share=0.25)
    counts = [len(setting.double(1)[1]) for _ in range(12)]
    assert sum(counts) == 3
    mine, copies = setting.double(8)
    assert [(s.first, s.count) for s in mine] == [(100, 2), (102, 6)]
    assert [(s.count, s.start, s.priority < 0, s.regions, s.reply) for s in copies] == [(2, 0, True, None, None)]
    assert setting.double(4, number=2)[1] == [], "the shadow itself"
    setting.model.versions[2].on.clear()
    assert setting.double(4)[1] == [], "it does not serve"
    assert setting.meter["skipped"] == 1


def test_what_is_too_much_is_skipped() -> None:
    setting = Setting(max_batch_size=8)
    assert setting.double(1, rows=9)[1] == []
    assert setting.double(4, rows=100_000)[1] == []
    held = [setting.double(8) for _ in range(MAX_OUTSTANDING // 8)]
    assert setting.shadows.outstanding == MAX_OUTSTANDING
    assert setting.double(1)[1] == []
    assert setting.meter["skipped"] == 6
    del held
    gc.collect()
    assert len(setting.double(1)[1]) == 1


def test_copies_of_referenced_tensors_are_the_brokers_own() -> None:
    setting = Setting()
    memory = bytearray(4)
    segment = Segment(b"c", 1, 1, 1, 1e9, 0.0, [memoryview(memory)], regions=((0, 4),), reply=(64, 64))
    _, copy = (submit.segment for submit in setting.shadows.double(setting.found(), segment))
    memory[:] = b"\xff" * 4
    assert (bytes(copy.buffers[0]), copy.regions, copy.reply) == (bytes(4), None, None)


def test_another_rule_begins_anew_and_the_same_goes_on() -> None:
    setting = Setting()
    setting.double(3)
    copied = setting.meter["copied"]
    setting.shadows.refresh()
    assert setting.meter["copied"] == copied == 3
    setting.model.settings = ModelSettings("m", "/m", shadow=(2, 0.5))
    setting.shadows.refresh()
    assert setting.meter["copied"] == 0
    setting.model.settings = ModelSettings("m", "/m")
    setting.shadows.refresh()
    assert (setting.shadows.meter("m"), setting.shadows.models()) == (None, set())
    assert len(setting.double(2)[0]) == 1
