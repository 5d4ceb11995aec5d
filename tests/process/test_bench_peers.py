"""Wardens and the processes that they guard; peers that are a few lines of the standard library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.errors import PeerAbsent, WrongAnswer
from bench.peers import environments, serving
from bench.peers.peer import Array, Batching, Command, Environment, Peer, Task
from bench.post import Post
from bench.warden import Guarded
from tfpool.testing.fronts import free_address

pytestmark = pytest.mark.process
PATIENCE_SECONDS = 20.0

ORPHANS = """
import os, pathlib, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
time.sleep(1000)
"""
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("")
time.sleep(1000)
"""
IMPATIENT = "from bench import warden; warden._TERM_SECONDS = 0.1; warden.main()"
BENCH = """
import sys
from bench.warden import Guarded
with Guarded([sys.executable, "-c", sys.argv[1], sys.argv[2]], {}) as guarded:
    print("guards", flush=True)
    guarded.status(1000)
"""
SERVER = """
import http.server, struct, sys
port, mode = int(sys.argv[1]), sys.argv[2]

class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self):
        x, = struct.unpack("f", self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked += 1
        late = mode == "late" and Handler.asked < 3
        wrong = mode == "wrong" or mode == "worse" and Handler.asked > 2
        answer = b"junk!" if mode == "junk" else struct.pack("f", x / 2 + (3 if wrong else 2))
        self.send_response(503 if late else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

if mode == "ends":
    sys.exit("no such model")
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
ROWS = np.float32([[1], [2], [5]])
ANSWERS = ROWS / 2 + 2


class Half(Peer):
    """half_plus_two, or what ``mode`` makes of it."""

    name, title, speaks = "half", "Half", "float32"
    requirements, batchings, tuned = (), (), {}

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def command(self, task: Task, environment: Environment) -> Command:
        return Command([sys.executable, "-c", SERVER, str(task.port), self.mode])

    def post(self, task: Task, row: Array) -> Post:
        return Post(task.address, "/", row.tobytes(), {})

    def answer(self, task: Task, content: bytes) -> Array:
        return np.frombuffer(content, np.float32).reshape(1, *task.answer_shape)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(environments, "find", lambda peer: Environment(tmp_path))
    port = int(free_address().rpartition(":")[2])
    return Task("half", "", "x", "y", (1,), (1,), Batching(1, 0), 1, port, str(tmp_path))


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "not in time"
        time.sleep(0.01)


def written(file: Path) -> int:
    """The pid that a process of its own session has written, once it has."""
    until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


# -- wardens -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_processes_that_hide(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with Guarded([sys.executable, "-c", ORPHANS, str(file)], {}) as guarded:
        pid = written(file)
        assert pid in guarded.pids()
    assert not psutil.pid_exists(pid)


def test_what_outlives_its_command_goes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)"
    )
    with Guarded([sys.executable, "-c", f"{script}; sys.exit(3)", str(file)], {}) as guarded:
        assert guarded.status(PATIENCE_SECONDS) == 3
        assert not psutil.pid_exists(int(guarded.written()))


def test_nothing_is_left_when_the_bench_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    bench = subprocess.Popen([sys.executable, "-c", BENCH, ORPHANS, str(file)], stdout=subprocess.PIPE)
    try:
        pid = written(file)
        family = [one.pid for one in psutil.Process(bench.pid).children(recursive=True)]
        assert pid in family
    finally:
        bench.kill()
        bench.communicate()
    until(lambda: not any(map(psutil.pid_exists, family)))


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "deaf"
    words = [sys.executable, "-c", IMPATIENT, "[]", sys.executable, "-c", STUBBORN, str(file)]
    warden = subprocess.Popen(words, stdin=subprocess.PIPE)
    until(file.exists)
    children = psutil.Process(warden.pid).children()
    warden.communicate(timeout=PATIENCE_SECONDS)
    assert children
    assert not any(psutil.pid_exists(child.pid) for child in children)


def test_what_a_command_may_leave_is_removed(tmp_path: Path) -> None:
    for name in ("left.1", "left.2"):
        (tmp_path / name).write_text("")
    (tmp_path / "left.3").mkdir()
    (tmp_path / "left.3" / "deep").write_text("")
    (tmp_path / "kept").write_text("")
    with Guarded(["true"], {}, leaves=[str(tmp_path / "left.*"), str(tmp_path / "never")]) as guarded:
        assert guarded.status(PATIENCE_SECONDS) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_command_gets_its_environment_and_not_the_bench_s_path(tmp_path: Path) -> None:
    script = "import os; print(os.environ.get('PYTHONPATH'), os.environ['MINE'], os.getcwd())"
    with Guarded([sys.executable, "-c", script], {"MINE": "a b"}, str(tmp_path)) as guarded:
        assert guarded.status(PATIENCE_SECONDS) == 0
        assert guarded.written() == f"None a b {os.path.realpath(tmp_path)}"


def test_a_command_that_does_not_exist_ends_with_a_status(tmp_path: Path) -> None:
    with Guarded([str(tmp_path / "no-such-program")], {}) as guarded:
        assert guarded.status(PATIENCE_SECONDS) == 127
        assert "no-such-program" in guarded.written()


# -- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["right", "late"])
def test_a_peer_is_ready_when_it_answers_and_gone_afterwards(task: Task, mode: str) -> None:
    with serving.serving(Half(mode), task, ROWS, ANSWERS) as served:
        pids = served.pids()
        served.compare(served.ask(ROWS[:1]), ANSWERS[:1])
        with pytest.raises(WrongAnswer):
            served.compare(served.ask(ROWS[:1]), ANSWERS[1:2])
        spent = served.cpu_seconds()
        assert spent > 0
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not served.pids())
        assert served.cpu_seconds() >= spent
    assert pids
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("wrong", WrongAnswer, "not TensorFlow's"),
        ("worse", WrongAnswer, "not TensorFlow's"),
        ("junk", WrongAnswer, "got b'junk!', expected a row"),
        ("ends", PeerAbsent, "it ended with status 1; it wrote:\nno such model"),
    ],
)
def test_a_peer_that_cannot_serve_says_why(task: Task, mode: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said), serving.serving(Half(mode), task, ROWS, ANSWERS):
        pass


def test_nobody_waits_for_ever_for_a_peer(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READY_SECONDS", 0.2)
    monkeypatch.setattr(Half, "command", lambda *_: Command(["sleep", "1000"]))
    with (
        pytest.raises(PeerAbsent, match=r"no answer within 0\.2 s: .*refused"),
        serving.serving(Half("deaf"), task, ROWS, ANSWERS),
    ):
        pass
