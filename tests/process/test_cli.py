"""The command line without a pool: usage, help, exit statuses, and what is printed of a fake client's answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tfpool.cli.main import main
from tfpool.errors import FailedPrecondition, ResourceExhausted, Unavailable

COMMANDS = sorted(main.commands)
CURVE = {"signature": "serve", "worker": "cpu0", "best_rows": 4, "points": [[1, 0.5], [4, 1.25]]}
ROW = {"name": "half", "version": 1, "state": "AVAILABLE", "workers": ["cpu0"], "labels": ["stable"]} | {
    "memory_bytes": 31_200_000,
    "load_seconds": 0.25,
    "error": None,
}
FAILED = ROW | {"name": "bad[1]", "version": 0, "state": "FAILED", "workers": [], "error": "no such " + "d" * 200}
QUANTILES = {"count": 4, "mean": 120.0, "p50": 100.0, "p90": 150.0, "p99": 2500.0, "p999": 2500.0, "max": 2500.0}
METER = {"requests": 12345, "rows": 4, "batches": 2, "errors": {"NOT_FOUND": 2}, "run_us": QUANTILES} | {
    "queue_us": QUANTILES,
    "batch_rows": QUANTILES,
}
WORKER = {"name": "cpu0", "pid": 7, "state": "READY", "device": "cpu", "cpus": [0, 1, 3], "threads": 3} | {
    "memory": {"rss": 2e9, "unique": 5e8, "pss": 6e8, "gpu": None, "base": 1e8, "budget": None, "residue": 0},
    "busy": 0.5,
    "deaths": 0,
    "models": ["half:1"],
}
STATS = {"uptime_seconds": 3725.0, "messages": 10, "malformed": 0, "unroutable": 0, "waiting_rows": 1} | {
    "broker_cpu_seconds": 0.5,
    "shm": {"budget": 1 << 27, "leased": 0, "quarantined": 0, "client_arenas": 1},
    "models": {"half": METER},
    "workers": [WORKER],
}
TENSOR = {"name": "x", "dtype": "float32", "shape": [-1, 4]}
SIGNATURE = {"name": "serving_default", "method": "", "inputs": [TENSOR], "outputs": [TENSOR | {"name": "y"}]} | {
    "batched": False,
    "stateful": False,
    "reason": "its rows are mixed",
}

BATCHING = {
    "max_batch_size": 64,
    "max_wait_ms": 2.0,
    "allowed_batch_sizes": [1, 8],
    "max_queue_rows": 16384,
    "pad": True,
}


class FakeReply:
    """Has waited 0.5 ms and run for 2 s, in a batch of 4 rows."""

    timing = (500, 2_000_000, 4)

    def __init__(self, outputs: dict[str, Any]) -> None:
        self._outputs = outputs

    def result(self) -> dict[str, Any]:
        return self._outputs


class FakeClient:
    """Answers as a pool would, and remembers what it was asked."""

    endpoint = "ipc:///nowhere/pool"
    asked: ClassVar[list[tuple[str, Any]]] = []
    outputs: ClassVar[dict[str, Any]] = {}

    def __init__(self, endpoint: str | None = None, *, admin: str | None = None, keys: str | None = None) -> None:
        self.asked.append(("client", (endpoint, admin, keys)))

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append(("close", None))

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "models": [ROW, FAILED],
            "workers": [WORKER],
            "queues": [
                {"model": "half", "version": 1, "signature": "s", "shapes": [[4]], "rows": 3}
                | {"oldest_ms": 12.5, "batch_rows_mean": 2.0}
            ],
            "stats": STATS,
            "status": [
                ROW
                | {"signatures": [SIGNATURE], "skipped_signatures": {"train": "it has no inputs"}, "meters": METER}
                | {"curves": [CURVE], "crashes": 2, "isolated": "cpu1"}
                | {"base_path": "/m", "batching": BATCHING}
            ],
            "call": {"migrations": [], "replacing": []},
            "wait_ready": {"models": 2, "failed": [FAILED]},
            "load": ROW,
            "unload": [ROW],
            "drain": WORKER,
            "restart": WORKER,
            "submit": FakeReply(self.outputs),
        }
        if name not in answers:
            raise AttributeError(name)

        def ask(*arguments: Any, **named: Any) -> Any:
            self.asked.append((name, (*arguments, named)))
            answer = answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr("tfpool.client.sync.Client", FakeClient)
    monkeypatch.setattr("tfpool.cli.options.listens", lambda endpoint: True)
    monkeypatch.setattr(FakeClient, "asked", [])
    monkeypatch.setattr(FakeClient, "outputs", {"y": np.array([1.0, np.nan, 0.1], np.float32)})
    return FakeClient


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


# -- usage ---------------------------------------------------------------------------------------------------------


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    script = "import sys, tfpool.cli.main; print(*{'tensorflow', 'numpy', 'zmq', 'rich', 'msgpack'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert found.stdout.strip() == ""


def test_it_runs_as_a_module() -> None:
    found = subprocess.run([sys.executable, "-m", "tfpool", "--version"], capture_output=True, text=True, timeout=20)
    assert found.stdout.startswith("tfpool, version ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = run(command, "--help").output
    assert text.startswith(f"Usage: main {command}")
    assert main.commands[command].get_short_help_str(45).endswith((".", "detail.", "live."))
    assert "..." not in main.commands[command].get_short_help_str(45)


@pytest.mark.parametrize("command", ["models", "status", "workers", "queues", "wait", "predict", "load", "unload"])
def test_reading_commands_have_json(command: str) -> None:
    assert "--json" in run(command, "--help").output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nonsense", "No such command"),
        ("serve", "expected models"),
        ("serve --model half", "expected NAME=PATH"),
        ("serve --model =x", "expected NAME=PATH"),
        ("serve --model a=x --model a=y", "twice"),
        ("serve --model a=x --workers 0", "'auto'"),
        ("serve --model a=x --workers two", "'auto'"),
        ("serve --models-root /nowhere/at/all", "does not exist"),
        ("serve --model a=x --log-level loud", "loud"),
        ("check", "Missing argument"),
        ("load", "Missing argument"),
        ("load half:0", "whole number from 1"),
        ("load half:", "whole number from 1"),
        ("load half:3:4", "whole number from 1"),
        ("load :3", "model name"),
        ("unload a/b", "model name"),
        ("predict half", "expected the inputs"),
        ("predict half -j 1 -i x=x.npy", "expected the inputs"),
        ("predict half -i x.npy", "expected NAME=PATH"),
        ("predict half -j 1 --version 0", "0"),
        ("predict half:2 -j 1 --version 3", "expected one"),
        ("predict half --version 1 --label a -j 1", "expected one"),
        ("predict half -j 1 --timeout 0", "seconds from 0"),
        ("wait --timeout soon", "seconds from 0"),
        ("top --count 0", "0"),
        ("drain", "Missing argument"),
    ],
)
def test_bad_usage_is_status_2(arguments: str, says: str) -> None:
    result = run(*arguments.split(), status=2)
    assert says in result.stderr
    assert result.stdout == ""


def test_errors_are_one_line_and_status_1(fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise FailedPrecondition("half:1 failed to load: why")

    monkeypatch.setattr(FakeClient, "load", refuse, raising=False)
    result = run("load", "half:1", status=1)
    assert result.stderr == "error: FAILED_PRECONDITION: half:1 failed to load: why\n"
    assert fake.asked[-1] == ("close", None)


def test_errors_say_when_to_try_again(fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ResourceExhausted("full", 0.25)

    monkeypatch.setattr(FakeClient, "submit", refuse, raising=False)
    assert run("predict", "half", "-j", "1", status=1).stderr == (
        "error: RESOURCE_EXHAUSTED: full (retry after 0.25 s)\n"
    )


def test_no_pool_is_told_at_once(tmp_path: Path) -> None:
    result = run("models", "--connect", f"ipc://{tmp_path}/pool", status=1)
    assert result.stderr.startswith(f"error: {Unavailable.code.name}: no pool listens on ipc://{tmp_path}/pool")
    assert "no pool listens" in run("models", "--connect", "tcp://127.0.0.1:1", status=1).stderr
    assert "expected ipc://PATH" in run("models", "--connect", "http://x", status=1).stderr


# -- what is printed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "keys"),
    [
        ("models", list, {"name", "version", "state", "workers", "labels", "memory_bytes", "load_seconds", "error"}),
        ("workers", list, {"name", "pid", "state", "device", "cpus", "memory", "models"}),
        ("queues", list, {"model", "version", "signature", "rows", "oldest_ms", "batch_rows_mean"}),
        ("status", dict, {"uptime_seconds", "models", "workers", "shm"}),
        ("status half", list, {"name", "signatures", "batching", "meters"}),
        ("wait", dict, {"ready", "seconds", "models", "failed"}),
        ("load half:1", dict, {"name", "version", "load_seconds"}),
        ("unload half", list, {"name", "version"}),
        ("drain cpu0", dict, {"name", "models"}),
        ("restart cpu0", dict, {"name", "pid"}),
        ("predict half -j [1]", dict, {"model", "outputs", "dtypes", "shapes", "seconds"}),
    ],
)
def test_json_is_one_document(fake: type[FakeClient], arguments: str, kind: type, keys: set[str]) -> None:
    document = json.loads(run(*arguments.split(), "--json").stdout, parse_constant=pytest.fail)
    assert isinstance(document, kind)
    assert keys <= set(document[0] if isinstance(document, list) else document)


def test_tables_show_it_all_where_there_is_no_terminal(fake: type[FakeClient]) -> None:
    text = run("models").stdout
    assert "31.2 MB" in text
    assert "0.25 s" in text
    assert f"bad[1]: {FAILED['error']}" in text
    assert "\x1b" not in text
    assert "0-1,3" in run("workers").stdout
    assert "12.5 ms" in run("queues").stdout


def test_status_of_the_pool_and_of_a_model(fake: type[FakeClient]) -> None:
    text = run("status").stdout
    assert "1h 02m" in text
    assert "12,345" in text
    text = run("status", "half").stdout
    for said in ("[?, 4]", "no: its rows are mixed", "train is not served", "in sizes of 1, 8", "2 ms", "2.5 ms"):
        assert said in text
    assert "1: 500 us, 4: 1.25 ms" in text
    assert "crashed 2 workers of late, and has one to itself" in text
    assert "no version 3" in run("status", "half:3", status=1).stderr


def test_top_without_a_terminal(fake: type[FakeClient]) -> None:
    text = run("top", "--count", "2", "--interval", "0.01").stdout
    assert text.count("REQ/S") == 2
    assert "50%" in text


@pytest.mark.parametrize("arguments", ["load half:3", "unload half:3", "drain cpu0", "restart cpu0"])
def test_changes_go_to_the_admin_endpoint(fake: type[FakeClient], arguments: str) -> None:
    run(*arguments.split(), "--connect", "ipc:///a", "--admin", "ipc:///b")
    assert fake.asked[0] == ("client", ("ipc:///a", "ipc:///b", None))
    assert fake.asked[1][1][0] in ("half", "cpu0")


# -- predict -------------------------------------------------------------------------------------------------------


def test_what_predict_asks(fake: type[FakeClient]) -> None:
    run("predict", "half:3", "-j", '{"x": [[1, 2]]}', "--signature", "s", "--timeout", "2")
    name, (model, inputs, named) = fake.asked[1]
    assert (name, model, inputs) == ("submit", "half", {"x": [[1, 2]]})
    assert named == {"version": 3, "label": "", "signature": "s", "timeout": 2.0, "priority": 0}
    run("predict", "half", "-j", "[1, 2]", "--label", "stable", "--priority", "-3")
    named = {"version": 0, "label": "stable", "signature": "", "timeout": None, "priority": -3}
    assert fake.asked[-2][1][1:] == ([1, 2], named)


def test_inputs_from_files(fake: type[FakeClient], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    run("predict", "half", "-i", f"x={tmp_path}/x.npy")
    assert fake.asked[1][1][1]["x"].tolist() == [0, 1, 2]
    (tmp_path / "r.json").write_text('{"t": [{"b64": "AAE="}, "é"], "u": ["é"]}')
    run("predict", "half", "-j", f"@{tmp_path}/r.json")
    assert fake.asked[-2][1][1] == {"t": [b"\x00\x01", "é".encode()], "u": ["é".encode()]}


def test_object_arrays_are_never_unpickled(fake: type[FakeClient], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    assert "allow_pickle" in run("predict", "half", "-i", f"x={tmp_path}/x.npy", status=1).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1,", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("@/nowhere.json", "cannot be read"),
        ('[{"b64": "!"}]', "b64"),
        ('[{"a": 1}]', "an object with a"),
    ],
)
def test_bad_json_inputs(fake: type[FakeClient], text: str, says: str) -> None:
    result = run("predict", "half", "-j", text, status=1)
    assert result.stderr.startswith("error: INVALID_ARGUMENT")
    assert says in result.stderr


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x04\x00{}{}"])
def test_bad_files(fake: type[FakeClient], tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    assert "INVALID_ARGUMENT" in run("predict", "half", "-i", f"x={tmp_path}/x.npy", status=1).stderr


def test_outputs_into_a_directory(fake: type[FakeClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_dtypes

    outputs = {
        "../up/y": np.array([1.5], np.float16),
        "words": np.array([b"a", b"\xff"], object),
        "brain": np.array([1.5, math.inf], ml_dtypes.bfloat16),
    }
    monkeypatch.setattr(FakeClient, "outputs", outputs)
    document = json.loads(run("predict", "half", "-j", "1", "-o", f"{tmp_path}/out", "--json").stdout)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["..%2Fup%2Fy.npy", "brain.npy", "words.json"]
    assert np.load(document["files"]["../up/y"]).dtype == np.float16
    assert json.loads((tmp_path / "out/words.json").read_text()) == ["a", {"b64": "/w=="}]
    brain = np.load(tmp_path / "out/brain.npy")
    assert brain.dtype == np.float32
    assert brain.tolist() == [1.5, math.inf]
    assert document["dtypes"] == {"../up/y": "float16", "words": "string", "brain": "bfloat16"}


def test_readable_outputs(fake: type[FakeClient]) -> None:
    result = run("predict", "half", "-j", "1")
    assert result.stdout == "y: float32 [3]\n[1.  nan 0.1]\n"
    assert result.stderr.startswith("answered in ")
    assert result.stderr.endswith(": waited 500 us, ran 2.00 s in a batch of 4 rows\n")


def test_how_long_it_waited_and_ran_in_json(fake: type[FakeClient]) -> None:
    document = json.loads(run("predict", "half", "-j", "1", "--json").stdout)
    assert (document["queue_seconds"], document["run_seconds"], document["batch_rows"]) == (0.0005, 2.0, 4)


@pytest.mark.parametrize("command", ["models", "predict half -j 1", "load half", "top --count 1"])
def test_keys_are_for_every_command_that_asks_a_pool(fake: type[FakeClient], command: str) -> None:
    run(*command.split(), "--connect", "tcp://127.0.0.1:5555", "--keys", "me.key")
    assert fake.asked[0] == ("client", ("tcp://127.0.0.1:5555", None, "me.key"))
