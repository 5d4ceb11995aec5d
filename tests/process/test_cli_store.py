"""The store commands, with a compiler that only says it has compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.test_store_manifest import manifest, refused
from tests.unit.test_store_shelf import BODIES, put
from tfpool.cli.main import main
from tfpool.settings import STORE_VARIABLE, StoreSettings
from tfpool.store.manifest import GRAPH, MANIFEST
from tfpool.store.shelf import Entry, Shelf

MIB = 1 << 20


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf(str(tmp_path / "store"))
    made.prepare()
    monkeypatch.setenv(STORE_VARIABLE, made.directory)
    return made


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["store", *arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def document(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status).stdout)


def refuse(shelf: Shelf, number: int) -> Entry:
    with shelf.draft() as draft:
        return shelf.publish(draft, refused(content=f"{number:064x}", source="/models/r/1"), f"{number:064x}")


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# -- where ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ls", "verify", "gc", "build"])
def test_every_command_explains_itself(command: str) -> None:
    text = run(command, "--help").output
    assert text.startswith(f"Usage: main store {command}")
    assert "--directory DIR" in text
    assert ("--json" in text) == (command != "build")


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["gc"], ["build", "/m"]])
def test_a_store_that_is_off_is_said_to_be(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, "off")
    result = run(*command, status=1)
    assert "error: INVALID_ARGUMENT: got a store that is off (TFPOOL_STORE=off)" in result.stderr
    assert "say --directory" in result.stderr


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["gc"], ["gc", "--all"]])
def test_a_store_that_is_not_there_is_empty(command: list[str], tmp_path: Path) -> None:
    place = tmp_path / "none"
    assert "0 entries" in run(*command, "--directory", str(place)).stdout
    assert not place.exists()


@pytest.mark.parametrize("command", [["ls"], ["verify", "--remove"], ["gc", "--all"], ["build", "/m"]])
def test_a_store_that_others_can_write_to_is_left_alone(command: list[str], shelf: Shelf) -> None:
    put(shelf)
    Path(shelf.directory).chmod(0o777)
    assert "error: PERMISSION_DENIED:" in run(*command, status=1).stderr
    assert len(shelf.keys()) == 1


def test_looking_takes_no_tensorflow(shelf: Shelf) -> None:
    put(shelf)
    script = (
        "import sys; from click.testing import CliRunner; from tfpool.cli.main import main\n"
        "for command in ('ls', 'verify', 'gc'):\n"
        "    assert CliRunner().invoke(main, ['store', command]).exit_code == 0\n"
        "print('tensorflow' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stdout == "False\n", found.stderr


def test_a_pool_is_told_its_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[StoreSettings] = []
    monkeypatch.setattr("tfpool.supervisor.main.serve", lambda made, *_: started.append(made.store) or 0)
    monkeypatch.chdir(tmp_path)
    for place in ("here", "off"):
        assert CliRunner().invoke(main, ["serve", "--model", "m=/m", "--store", place]).exit_code == 0
    assert started[0] == StoreSettings(str(tmp_path / "here"))
    assert not started[1].enabled


# -- ls ------------------------------------------------------------------------------------------------------------


def test_entries_are_listed(shelf: Shelf) -> None:
    entry = put(shelf, 1)
    hours_ago = time.time() - 7230
    os.utime(os.path.join(entry.path, MANIFEST), (hours_ago, hours_ago))
    lines = cells(run("ls").stdout)
    assert " ".join(lines[0]) == "KEY MODEL MiB SHARED MiB PLAIN ms MAPPED ms INLINED ms GAIN TF STATE USED"
    key, model, _, shared, *rest = lines[2]
    assert (key, model, shared) == (entry.key[:12], "/models/m/1", "0.0")
    assert rest == ["850", "24", "50", "1.17", entry.manifest.tensorflow, "compiled", "2h", "00m", "ago"]
    assert lines[-1] == ["1", "entry,", "0.0", "MiB", "in", shelf.directory]


def test_sizes_are_in_mebibytes(shelf: Shelf) -> None:
    put(shelf, 1, BODIES | {GRAPH: bytes(3 * MIB)})
    assert cells(run("ls").stdout)[2][2] == "3.0"


def test_states_say_why(shelf: Shelf) -> None:
    good, bad = put(shelf, 1), put(shelf, 2)
    no = refuse(shelf, 3)
    old = put(shelf, 4, tensorflow="1.15.0", cpu="c0ffee")
    gone = put(shelf, 5)
    Path(bad.path, MANIFEST).write_bytes(b"{")
    os.unlink(gone.graph)
    told = {row["key"]: row for row in document("ls")["entries"]}
    assert {key: row["state"] for key, row in told.items()} == {
        good.key: "compiled",
        bad.key: "corrupt",
        no.key: "refused",
        old.key: "stale",
        gone.key: "corrupt",
    }
    assert told[no.key]["reason"] == "it assigns variables"
    assert told[old.key]["reason"] == "made with another TensorFlow and processor"
    assert "corrupt manifest" in told[bad.key]["reason"]
    assert told[gone.key]["reason"].endswith("graph.pb: no such file")
    shown = run("ls").stdout
    assert "refused: it assigns variables" in shown
    assert "stale: made with another TensorFlow and processor" in shown
    assert "corrupt: " in shown


def test_the_document_has_what_the_table_has(shelf: Shelf) -> None:
    entry = put(shelf, 1)
    told = document("ls")
    (row,) = told["entries"]
    assert told["directory"] == shelf.directory
    assert told["bytes"] == row["bytes"] == shelf.size(entry.key)
    assert row | {"bytes": 0, "used": 0} == {
        "key": entry.key,
        "state": "compiled",
        "reason": "",
        "source": "/models/m/1",
        "tensorflow": entry.manifest.tensorflow,
        "bytes": 0,
        "shared_bytes": 10248,
        "load_seconds": {"plain": 0.85, "mapped": 0.024, "inlined": 0.05},
        "gain": 1.17,
        "difference": 1e-6,
        "created": 1.7e9,
        "used": 0,
    }


def test_the_one_used_last_comes_first(shelf: Shelf) -> None:
    entries = [put(shelf, number) for number in range(3)]
    for entry, when in zip(entries, (2e9, 1e9, 3e9), strict=True):
        os.utime(os.path.join(entry.path, MANIFEST), (when, when))
    order = [row["key"] for row in document("ls")["entries"]]
    assert order == [entries[2].key, entries[0].key, entries[1].key]


def test_a_path_that_is_no_text_is_shown(shelf: Shelf) -> None:
    put(shelf, 1, source=os.fsdecode(b"/models/\xff/1"))
    assert "/models/\ufffd/1" in run("ls").stdout
    assert document("ls")["entries"][0]["source"] == os.fsdecode(b"/models/\xff/1")


# -- verify --------------------------------------------------------------------------------------------------------


def test_what_is_sound_is_said_to_be(shelf: Shelf) -> None:
    put(shelf, 1)
    refuse(shelf, 2)
    assert run("verify").stdout == "2 entries checked, 0 corrupt\n"
    assert document("verify") == {"directory": shelf.directory, "checked": 2, "corrupt": []}


def test_what_is_corrupt_is_named(shelf: Shelf) -> None:
    good, bad, worse = put(shelf, 1), put(shelf, 2), put(shelf, 3)
    Path(bad.weights).write_bytes(b"\1" + bytes(10247))
    os.unlink(os.path.join(worse.path, MANIFEST))
    lines = run("verify", status=1).stdout.splitlines()
    assert sorted(line.split(":")[0] for line in lines[:2]) == sorted([bad.key, worse.key])
    assert any(f"{bad.key}: corrupt: {bad.weights}: corrupt: got SHA-256" in line for line in lines)
    assert lines[2] == "3 entries checked, 2 corrupt"
    assert run("verify", good.key[:8]).stdout == "1 entry checked, 0 corrupt\n"
    assert run("verify", good.key, bad.key, good.key, status=1).stdout.endswith("2 entries checked, 1 corrupt\n")
    assert len(shelf.keys()) == 3


def test_what_is_corrupt_can_be_removed(shelf: Shelf) -> None:
    good, bad = put(shelf, 1), put(shelf, 2)
    Path(bad.graph).write_bytes(b"")
    told = document("verify", "--remove", status=1)
    assert [(row["key"], row["removed"]) for row in told["corrupt"]] == [(bad.key, True)]
    assert shelf.keys() == [good.key]
    run("verify")


def test_a_terminal_is_shown_how_far_it_is(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    put(shelf, 1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("verify")
    assert "checking" in result.stderr
    assert result.stdout == "1 entry checked, 0 corrupt\n"


def test_keys_are_those_of_entries(shelf: Shelf) -> None:
    for number in range(17):
        put(shelf, number)
    assert "error: NOT_FOUND: no entry '../../x'" in run("verify", "../../x", status=1).stderr
    assert "which begins 17 entries; expected more of the key" in run("verify", "", status=1).stderr


# -- gc ------------------------------------------------------------------------------------------------------------


def test_gc_keeps_to_a_budget(shelf: Shelf) -> None:
    old, new = (put(shelf, number, BODIES | {GRAPH: bytes(MIB)}) for number in (1, 2))
    os.utime(os.path.join(old.path, MANIFEST), (1e9, 1e9))
    Path(shelf.directory, "drafts", "draft-left").mkdir()
    assert "removed 0 entries (0.0 MiB) and 1 draft; 2.0 MiB left" in run("gc").stdout
    lines = run("gc", "--budget", "1.5MiB").stdout.splitlines()
    assert lines == [old.key, f"removed 1 entry (1.0 MiB) and 0 drafts; 1.0 MiB left in {shelf.directory}"]
    told = document("gc", "--all")
    assert told | {"bytes": 0} == {
        "directory": shelf.directory,
        "removed": [new.key],
        "bytes": 0,
        "drafts": 0,
        "kept_bytes": 0,
    }
    assert shelf.keys() == []


def test_a_budget_is_a_size(shelf: Shelf) -> None:
    assert "expected a size such as '512MiB'" in run("gc", "--budget", "much", status=2).stderr


# -- build ---------------------------------------------------------------------------------------------------------

FAKE = """
import json, os, sys
print(*sys.argv[1:], file=open(sys.argv[0] + ".asked", "a"))
name = sys.argv[-1].split("/")[-2]
for stage in ("load", "freeze"):
    print(json.dumps({"stage": stage}))
print("not a line of ours\\n[1]")
if name == "dies":
    print("a word\\nbad graph\\n", file=sys.stderr)
    os._exit(3)
if name == "silent":
    os._exit(4)
outcomes = {"bad": "refused", "known": "known", "locked": "busy"}
outcome = outcomes.get(name, "compiled")
reason = {"bad": "it assigns variables", "locked": "another process compiles it"}.get(name, "")
print(json.dumps({"outcome": outcome, "key": "0123456789abcdef", "reason": reason, "seconds": 1.5}))
sys.exit(outcome not in ("compiled", "known"))
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the compiler is asked, a line each."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr("tfpool.cli.store.COMPILER", (sys.executable, str(script)))
    return tmp_path / "fake.py.asked"


def make(base: Path, *versions: str) -> str:
    for version in versions:
        (base / version).mkdir(parents=True)
        (base / version / "saved_model.pb").touch()
    return str(base)


def test_all_versions_are_compiled(shelf: Shelf, asked: Path, tmp_path: Path) -> None:
    model = make(tmp_path / "good", "2", "10")
    result = run("build", model, os.path.join(model, "2"))
    done = [f"{model}/{version}: compiled in 1.50 s (0123456789ab)" for version in ("2", "10", "2")]
    assert result.stdout.splitlines() == done
    assert result.stderr.splitlines()[:2] == [f"{model}/2: load", f"{model}/2: freeze"]
    words = asked.read_text().splitlines()[0].split()
    assert words[:3] == ["--store", shelf.directory, "--threads"]
    assert words[-1] == f"{model}/2"
    assert "--force" not in words


def test_force_is_passed_on(shelf: Shelf, asked: Path, tmp_path: Path) -> None:
    run("build", "--force", make(tmp_path / "good", "1"))
    assert "--force" in asked.read_text().split()


@pytest.mark.parametrize(
    ("name", "said", "status"),
    [
        ("known", "known in 1.50 s (0123456789ab)", 0),
        ("bad", "refused: it assigns variables", 1),
        ("locked", "busy: another process compiles it", 1),
        ("dies", "failed: the compiler ended with status 3: bad graph", 1),
        ("silent", "failed: the compiler ended with status 4: it said nothing", 1),
    ],
)
def test_what_came_of_it_is_said(shelf: Shelf, asked: Path, tmp_path: Path, name: str, said: str, status: int) -> None:
    bad, good = make(tmp_path / name, "1"), make(tmp_path / "good", "1")
    lines = run("build", bad, good, status=status).stdout.splitlines()
    assert lines == [f"{bad}/1: {said}", f"{good}/1: compiled in 1.50 s (0123456789ab)"]


def test_what_is_no_model_is_said_before_any_is_compiled(shelf: Shelf, asked: Path, tmp_path: Path) -> None:
    good = make(tmp_path / "good", "1")
    assert "error: NOT_FOUND:" in run("build", good, str(tmp_path / "none"), status=1).stderr
    assert not asked.exists()


def test_a_store_is_made_where_there_is_none(asked: Path, tmp_path: Path) -> None:
    run("build", make(tmp_path / "good", "1"), "--directory", str(tmp_path / "new" / "store"))
    assert (tmp_path / "new" / "store" / "entries").is_dir()


def test_a_manifest_is_all_that_ls_reads(shelf: Shelf) -> None:
    entry = put(shelf, 1)
    Path(entry.weights).write_bytes(b"")
    assert replace(manifest(), content=entry.manifest.content, digests=entry.manifest.digests) == entry.manifest
    assert document("ls")["entries"][0]["state"] == "compiled"
