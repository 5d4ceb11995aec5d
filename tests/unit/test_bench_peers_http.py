"""What LitServe, BentoML and MLServer are asked and answer, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.peers.bentoml import BentoMl
from bench.peers.litserve import LitServe
from bench.peers.mlserver import MlServer
from bench.peers.peer import Batching, Environment, Peer, Task

ROW = np.array([[1.0, -2.0]], np.float32)
RAW = bytes.fromhex("0000803f 000000c0")
BASE64 = "AACAPwAAAMA="
THREE = np.array([[1.0, -2.0, 0.5]], np.float32)
THREE_RAW = bytes.fromhex("0000803f 000000c0 0000003f")
THREE_BASE64 = "AACAPwAAAMAAAAA/"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task("toy", "/models/toy/1", "x", "y", (2,), (3,), Batching(4, 1.5), 2, 4711, str(tmp_path))


def test_litserve_takes_raw_rows(task: Task) -> None:
    post = LitServe().post(task, ROW)
    assert (post.address, post.path, post.body) == ("127.0.0.1:4711", "/predict", RAW)
    assert post.headers == {"Content-Type": "application/octet-stream"}
    np.testing.assert_array_equal(LitServe().answer(task, THREE_RAW), THREE)


def test_bentoml_takes_base64_in_json(task: Task) -> None:
    post = BentoMl().post(task, ROW)
    assert (post.address, post.path, post.headers) == ("127.0.0.1:4711", "/infer", JSON)
    assert post.body == b'{"rows": ["%s"]}' % BASE64.encode()
    np.testing.assert_array_equal(BentoMl().answer(task, b'["%s"]' % THREE_BASE64.encode()), THREE)


def test_mlserver_takes_base64_tensors(task: Task) -> None:
    post = MlServer().post(task, ROW)
    assert (post.address, post.path, post.headers) == ("127.0.0.1:4711", "/v2/models/toy/infer", JSON)
    tensor = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    assert json.loads(post.body) == {"inputs": [{**tensor, "data": [BASE64]}]}
    told = {"model_name": "toy", "id": "7", "outputs": [{**tensor, "name": "y", "data": [THREE_BASE64]}]}
    np.testing.assert_array_equal(MlServer().answer(task, json.dumps(told).encode()), THREE)


@pytest.mark.parametrize("content", [b"", THREE_RAW[:-1], THREE_RAW[:-4], THREE_RAW + RAW])
def test_raw_answers_of_another_size_are_refused(task: Task, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"buffer size must be|cannot reshape"):
        LitServe().answer(task, content)


@pytest.mark.parametrize(
    "row", [7, None, [], "AAAA", "AACAPwAAAMA=", "AACA", "AACAPwAAAMAAAAA", "AACAPw*AAMAAAAA/", "ÄACA"]
)
@pytest.mark.parametrize("peer", [BentoMl(), MlServer()])
def test_json_answers_without_the_row_are_refused(task: Task, peer: Peer, row: object) -> None:
    document = [row] if isinstance(peer, BentoMl) else {"outputs": [{"name": "y", "data": [row]}]}
    with pytest.raises(ValueError):  # noqa: PT011 - JSON, base64 and numpy say it in their own words
        peer.answer(task, json.dumps(document).encode())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"null", b"{}", b"[]", b'["AACA", "AACA"]', b'{"outputs": []}']
)
@pytest.mark.parametrize("peer", [BentoMl(), MlServer()])
def test_other_json_is_refused(task: Task, peer: Peer, content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON, base64 and numpy say it in their own words
        peer.answer(task, content)


def test_mlserver_is_told_processes_ports_and_batches(task: Task, tmp_path: Path) -> None:
    command = MlServer().command(task, Environment(tmp_path / "venv"))
    assert command.words[-2:] == ["start", str(tmp_path)]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["parallel_workers"] == 2
    assert (settings["host"], settings["http_port"], settings["grpc_port"]) == ("127.0.0.1", 4711, 4712)
    model = json.loads((tmp_path / "model-settings.json").read_text())
    assert (model["name"], model["max_batch_size"], model["max_batch_time"]) == ("toy", 4, 0.0015)


@pytest.mark.parametrize("peer", [LitServe(), BentoMl(), MlServer()])
def test_all_keep_to_their_directory_and_what_was_tried(task: Task, peer: Peer, tmp_path: Path) -> None:
    assert peer.command(task, Environment(tmp_path / "venv")).environ["TMPDIR"] == task.directory
    assert set(peer.tuned.values()) <= set(peer.batchings)
    assert all("==" in requirement for requirement in peer.requirements)
