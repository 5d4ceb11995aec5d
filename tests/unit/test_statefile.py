from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfpool.errors import InvalidArgument
from tfpool.repository import statefile
from tfpool.repository.memo import Footprint, Memo
from tfpool.repository.statefile import StateFile
from tfpool.testing.fake_worker import until

FULL = Memo(
    labels={"mnist": {"prod": "3:90,4:10"}},
    shadows={"mnist": "4:10"},
    models={"neu-ä": {"base_path": "/models/new"}},
    removed=["old"],
    unloaded=[("mnist", 2)],
    footprints={"00ff": Footprint(1000, 3000, 0.5), "01": Footprint(1, 1, 2.0)},
)
BY_HAND = r"""{
  "version": 1,
  "labels": {
    "mnist": {"prod": "3:90,4:10"}
  },
  "shadows": {
    "mnist": "4:10"
  },
  "models": {
    "neu-\u00e4": {"base_path": "/models/new"}
  },
  "removed": [
    "old"
  ],
  "unloaded": [
    ["mnist", 2]
  ],
  "footprints": {
    "00ff": {"nbytes": 1000, "peak": 3000, "load_seconds": 0.5, "shared": 0},
    "01": {"nbytes": 1, "peak": 1, "load_seconds": 2.0, "shared": 0}
  }
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@pytest.fixture
def state(path: Path) -> Iterator[StateFile]:
    state = StateFile(str(path))
    yield state
    state.close()


def removed(*names: str) -> Memo:
    return Memo(removed=list(names))


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tfpool.state"]


def test_nothing_is_remembered_at_first(path: Path, state: StateFile) -> None:
    assert state.load() == Memo()
    assert not path.exists()


def test_what_is_saved_is_read_by_people_and_by_us(path: Path, state: StateFile) -> None:
    state.save(FULL)
    state.close()
    assert path.read_text() == BY_HAND
    assert StateFile(str(path)).load() == FULL
    assert os.listdir(path.parent) == ["state.json"]


def test_an_empty_memo_is_json_too(path: Path, state: StateFile) -> None:
    state.save(Memo())
    state.close()
    assert json.loads(path.read_text())["version"] == 1
    assert state.load() == Memo()


def test_later_changes_to_a_saved_memo_are_not_written(path: Path, state: StateFile) -> None:
    memo = removed("a")
    state.save(memo)
    memo.removed.append("b")
    state.close()
    assert state.load() == removed("a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b"[" * 100_000,
        b'{"version": 2}',
        b'{"version": 1, "removed": 7}',
        BY_HAND.encode()[:-40],
    ],
)
def test_a_corrupt_file_is_set_aside(
    path: Path, state: StateFile, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "tfpool"):
        assert state.load() == Memo()
    assert events(caplog) == ["state.corrupt"]
    assert Path(f"{path}.corrupt").read_bytes() == data
    assert not path.exists()
    state.save(removed("a"))
    state.close()
    assert state.load() == removed("a")


def test_a_file_that_cannot_be_read_is_left_alone(path: Path, state: StateFile) -> None:
    path.mkdir()
    with pytest.raises(InvalidArgument, match=r"state\.json: cannot be read: Is a directory"):
        state.load()
    assert path.is_dir()


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real" / "file.json")
    state = StateFile(str(path))
    state.save(removed("a"))
    state.close()
    assert path.is_symlink()
    assert StateFile(str(path)).load() == removed("a")


def test_a_directory_that_vanishes_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "later" / "state.json"
    state = StateFile(str(path))
    state.save(removed("a"))
    until(lambda: events(caplog))
    state.save(removed("b"))
    until(lambda: state._waiting is None)
    path.parent.mkdir()
    state.save(removed("c"))
    until(path.exists)
    assert state.load() == removed("c")
    state.close()
    assert events(caplog) == ["state.unsaved"], "it is said once"


def test_a_full_disk_keeps_the_old_file(
    path: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = StateFile(str(path))
    before.save(removed("a"))
    before.close()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(statefile.os, "fsync", full)
        state.save(removed("b"))
        until(lambda: events(caplog))
    assert state.load() == removed("a")
    assert os.listdir(path.parent) == ["state.json"]
    state.save(removed("c"))
    state.close()
    assert state.load() == removed("c")
    assert events(caplog) == ["state.unsaved"]


def test_a_disk_that_hangs_delays_nobody_and_the_latest_wins(
    path: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, released = threading.Event(), threading.Event()

    def fsync(fd: int) -> None:
        hangs.set()
        released.wait(30)

    monkeypatch.setattr(statefile.os, "fsync", fsync)
    monkeypatch.setattr(statefile, "_FLUSH_SECONDS", 0.05)
    state.save(removed("a"))
    assert hangs.wait(10)
    for number in range(100):
        state.save(removed(str(number)))
    state.close()
    assert not path.exists(), "it came back although nothing could be written"
    released.set()
    until(lambda: path.exists() and state.load() == removed("99"))
    monkeypatch.setattr(statefile, "_FLUSH_SECONDS", 10.0)
    state.close()
