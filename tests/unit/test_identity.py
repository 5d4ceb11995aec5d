"""What tells models apart that look the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tfpool.errors import FailedPrecondition, NotFound
from tfpool.store import identity
from tfpool.store.identity import content, digest, mark


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    (made / "variables").mkdir(parents=True)
    (made / "saved_model.pb").write_bytes(b"graph")
    (made / "variables" / "data").write_bytes(b"12345")
    return made


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough at once: tests change them long after, by the kernel's clock."""
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 0.0)


def test_the_mark_stays_while_nothing_changes(model: Path) -> None:
    found = mark(str(model))
    assert found == mark(str(model))
    assert found.nbytes == 10
    assert found.newest == max(os.stat(path).st_ctime for path in model.rglob("*") if path.is_file())


def test_other_content_of_the_same_size_and_time_is_another(model: Path) -> None:
    """As an image of a container has it, or ``cp -p``, or who sets times by hand."""
    path = model / "variables" / "data"
    before, told = content(str(model))
    times = os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns
    path.write_bytes(b"54321")
    os.utime(path, ns=times)
    assert os.stat(path).st_mtime_ns == times[1]
    after, now = content(str(model))
    assert now != told
    assert after.stamp != before.stamp
    assert after.nbytes == before.nbytes


def test_a_file_that_takes_the_place_of_another_is_another(model: Path) -> None:
    path, other = model / "saved_model.pb", model.parent / "other"
    before = mark(str(model))
    other.write_bytes(b"GRAPH")
    found = os.stat(path)
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(other, path)
    assert mark(str(model)).stamp != before.stamp


def test_the_content_is_that_of_names_and_bytes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    told = content(str(model))[1]
    copy = tmp_path / "copy"
    (copy / "variables").mkdir(parents=True)
    (copy / "saved_model.pb").symlink_to(model / "saved_model.pb")
    (copy / "variables" / "data").write_bytes(b"12345")
    assert content(str(copy))[1] == told
    (copy / "variables" / "data").rename(copy / "variables" / "index")
    assert content(str(copy))[1] != told


def test_empty_directories_and_links_to_nothing_do_not_count(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    told = content(str(model))[1]
    (model / "assets").mkdir()
    (model / "dangling").symlink_to("nowhere")
    os.mkfifo(model / "pipe")
    assert content(str(model))[1] == told


def test_fresh_files_are_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then two changes could bear the same time."""
    now = mark(str(model)).newest + 0.01
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.sleep", sleep)
    content(str(model))
    assert slept == [identity.SETTLED_SECONDS]


def test_files_that_go_on_changing_are_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    read = identity.digest

    def change(path: str) -> str:
        (model / "saved_model.pb").write_bytes(os.urandom(5))
        os.utime(model / "saved_model.pb", ns=(0, os.stat(model / "saved_model.pb").st_mtime_ns + 1))
        return read(path)

    monkeypatch.setattr(identity, "digest", change)
    with pytest.raises(FailedPrecondition, match="its files go on changing"):
        content(str(model))


def test_links_that_lead_in_circles_are_refused(model: Path) -> None:
    (model / "variables" / "again").symlink_to("..")
    with pytest.raises(FailedPrecondition, match="leads back to itself"):
        mark(str(model))


def test_a_directory_without_end_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_MOST_FILES", 2)
    with pytest.raises(FailedPrecondition, match="got more than 2 files and directories"):
        mark(str(model))


def test_what_is_gone_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such directory"):
        mark(str(tmp_path / "gone"))


def test_names_of_any_bytes_will_do(model: Path) -> None:
    (model / os.fsdecode(b"\xff\n")).write_bytes(b"x")
    assert mark(str(model)).nbytes == 11


def test_a_descriptor_is_digested_as_a_path_is(model: Path) -> None:
    path = model / "saved_model.pb"
    with open(path, "rb") as file:
        assert digest(file.fileno()) == digest(str(path))
        assert not file.closed
        assert file.read() == b""  # it was read to its end, and is still open
