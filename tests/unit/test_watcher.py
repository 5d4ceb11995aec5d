from __future__ import annotations

import os
import select
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfpool.errors import NotFound
from tfpool.repository import notices, watcher
from tfpool.repository.look import Look, look
from tfpool.repository.watcher import Done, Roster, Sighting, Watcher
from tfpool.testing.fake_worker import until

NEVER = 1e9
SOON = 0.02


def version(base: Path, number: int, content: str = "graph") -> Path:
    """A version that appears at once, as ``mv`` does it."""
    draft = base.parent / f".{base.name}-{number}"
    (draft / "variables").mkdir(parents=True)
    (draft / "saved_model.pb").write_text(content)
    (draft / "variables" / "variables.index").write_text(content)
    base.mkdir(exist_ok=True)
    return draft.rename(base / str(number))


class Eyes:
    """A watcher, and what it has told so far."""

    def __init__(self, poll_s: float | None, models_root: Path | None = None) -> None:
        self.watcher = Watcher(poll_s, None if models_root is None else str(models_root))
        self.seen: list[Any] = []

    def next(self, condition: Callable[[Any], Any] = lambda what: True) -> Any:
        """The first of what is told from now on that fulfils ``condition``."""
        while True:
            for place, what in enumerate(self.seen):
                if condition(what):
                    del self.seen[: place + 1]
                    return what
            ready, _, _ = select.select([self.watcher], [], [], 10.0)
            assert ready, f"not seen within 10 s; seen: {self.seen}"
            told = self.watcher.seen()
            assert told, "it rang for nothing"
            self.seen += told

    def quiet(self, model: str) -> bool:
        """Whether another look at ``model`` finds nothing that was not told."""
        ticket = self.watcher.look(model)
        what = self.next()
        return isinstance(what, Sighting) and what.ticket == ticket and not self.seen


@pytest.fixture
def open_eyes() -> Iterator[Callable[..., Eyes]]:
    opened: list[Eyes] = []

    def open_eyes(*args: Any) -> Eyes:
        opened.append(Eyes(*args))
        return opened[-1]

    yield open_eyes
    for eyes in opened:
        eyes.watcher.close()


@pytest.fixture(params=["notices", "polling"])
def poll_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Both ways to hear of changes: what one of them tells, the other tells too."""
    monkeypatch.setattr(watcher, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(notices, "_SETTLED_MS", 50)
    if request.param == "polling":
        monkeypatch.setattr(notices, "_installed", lambda: False)
    else:
        pytest.importorskip("watchfiles")
    return SOON


def settled(eyes: Eyes) -> None:
    """Until the kernel tells of changes and nothing is polled any more; at once where all is polled."""
    told = eyes.watcher._notices
    subjects = eyes.watcher._subjects
    if told is not None and told.works:
        until(lambda: all(1 < s.due - watcher.time.monotonic() < 100 for s in subjects.values()))


def test_told_once_and_then_on_change(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    one = version(tmp_path / "m", 1)
    eyes = open_eyes(poll_s)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    first = eyes.next()
    assert first == Sighting("m", str(tmp_path / "m"), {1: str(one)}, first.marks, None, 0)
    assert eyes.quiet("m")
    settled(eyes)
    two = version(tmp_path / "m", 2)
    second = eyes.next()
    assert second.versions == {1: str(one), 2: str(two)}
    assert second.marks[1] == first.marks[1]
    settled(eyes)
    (two / "variables" / "variables.index").write_text("something else")
    third = eyes.next()
    assert third.versions == second.versions
    assert third.marks[2] != second.marks[2]
    assert third.marks[1] == first.marks[1]
    settled(eyes)
    shutil.rmtree(one)
    assert eyes.next(lambda what: 1 not in what.versions).versions == {2: str(two)}


def test_a_half_copied_version_is_waited_for(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    version(tmp_path / "m", 1)
    eyes = open_eyes(poll_s)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    eyes.next()
    for _ in range(3):  # the inode of the directory is used again
        settled(eyes)
        (tmp_path / "m" / "2").mkdir()
        assert eyes.quiet("m")
        settled(eyes)
        (tmp_path / "m" / "2" / "saved_model.pb").touch()
        assert 2 in eyes.next().versions
        settled(eyes)
        shutil.rmtree(tmp_path / "m" / "2")
        eyes.next(lambda what: 2 not in what.versions)


def test_a_base_path_that_comes_goes_and_is_another(
    tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float
) -> None:
    base = tmp_path / "m"
    eyes = open_eyes(poll_s)
    eyes.watcher.watch("m", str(base))
    assert "no such directory" in str(eyes.next().error)
    version(base, 1)
    assert 1 in eyes.next(lambda what: what.error is None).versions
    settled(eyes)
    base.rename(tmp_path / "old")
    assert eyes.next().error
    version(base, 2)
    assert eyes.next(lambda what: what.error is None).versions == {2: str(base / "2")}
    settled(eyes)
    version(base, 3)
    assert 3 in eyes.next().versions


def test_links_that_are_turned(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    version(tmp_path / "a", 1)
    version(tmp_path / "b", 2)
    base = tmp_path / "base"
    base.symlink_to("a")
    eyes = open_eyes(poll_s)
    eyes.watcher.watch("m", str(base))
    assert eyes.next().versions == {1: str(base / "1")}
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(base)
    assert eyes.next().versions == {2: str(base / "2")}
    version(tmp_path / "b", 3)
    assert 3 in eyes.next().versions


def test_each_model_for_itself(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1").symlink_to("1")
    version(tmp_path / "good", 1)
    eyes = open_eyes(poll_s)
    names = ("loop", "file", "none", "bad", "good", "nul\0")
    for name in names:
        eyes.watcher.watch(name, str(tmp_path / name))
    told = {what.model: what for what in (eyes.next() for _ in names)}
    assert "Too many levels of symbolic links" in str(told["loop"].error)
    assert "got a file" in str(told["file"].error)
    assert "no such directory" in str(told["none"].error)
    assert "Too many levels of symbolic links: 1" in str(told["bad"].error)
    assert "embedded null" in str(told["nul\0"].error)
    assert told["good"].error is None
    assert all(eyes.quiet(name) for name in names)


def test_models_below_a_directory(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    root = tmp_path / "root"
    root.mkdir()
    eyes = open_eyes(poll_s, root)
    assert eyes.next() == Roster({}, None)
    settled(eyes)
    version(root / "a", 1)
    assert eyes.next(lambda what: what.names) == Roster({"a": str(root / "a")}, None)
    for name in ("has space", ".hidden"):
        version(root / name, 1)
    (root / "b" / "1").mkdir(parents=True)
    (root / "b" / "1" / "saved_model.pb").touch()
    assert eyes.next() == Roster({"a": str(root / "a"), "b": str(root / "b")}, None)
    shutil.rmtree(root / "b" / "1")
    shutil.rmtree(root / "a")
    assert eyes.next() == Roster({"b": str(root / "b")}, None), "its own look says that it is empty"
    root.rename(tmp_path / "gone")
    gone = eyes.next()
    assert gone.names == {"b": str(root / "b")}
    assert "cannot be read" in str(gone.error)
    (tmp_path / "gone").rename(root)
    assert eyes.next().error is None


def test_a_look_is_answered_even_if_nothing_changed(tmp_path: Path, open_eyes: Callable[..., Eyes]) -> None:
    version(tmp_path / "m", 1)
    eyes = open_eyes(None)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    first = eyes.watcher.look("m")
    assert eyes.next().ticket == first > 0
    tickets = [eyes.watcher.look("m") for _ in range(3)]
    assert [eyes.next().ticket for _ in tickets] == tickets
    version(tmp_path / "m", 2)
    last = eyes.watcher.look("m")
    assert eyes.next(lambda what: what.ticket == last).versions.keys() == {1, 2}
    with pytest.raises(NotFound, match="'other' is not watched"):
        eyes.watcher.look("other")


def test_looking_once_is_looking_once(tmp_path: Path, open_eyes: Callable[..., Eyes]) -> None:
    version(tmp_path / "m", 1)
    eyes = open_eyes(0.0, tmp_path)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    told = [eyes.next(), eyes.next()]
    assert {type(what) for what in told} == {Sighting, Roster}
    assert all(subject.due == watcher.inf for subject in eyes.watcher._subjects.values())
    assert eyes.watcher._notices is None


def test_a_forgotten_model_is_told_of_no_more(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    version(tmp_path / "m", 1)
    version(tmp_path / "n", 1)
    eyes = open_eyes(poll_s)
    for name in ("m", "n"):
        eyes.watcher.watch(name, str(tmp_path / name))
    for _ in range(2):
        eyes.next()
    eyes.watcher.look("m")
    eyes.watcher.forget("m")
    eyes.watcher.forget("never watched")
    version(tmp_path / "m", 2)
    version(tmp_path / "n", 2)
    assert eyes.next().model == "n"
    eyes.watcher.watch("m", str(tmp_path / "n"))
    assert eyes.next(lambda what: what.model == "m").base_path == str(tmp_path / "n")
    assert not [path for path in eyes.watcher._owners if path.startswith(str(tmp_path / "m"))]


def test_many_models_that_come_one_by_one(tmp_path: Path, open_eyes: Callable[..., Eyes], poll_s: float) -> None:
    """More directories than the small watch takes."""
    eyes = open_eyes(poll_s)
    for number in range(40):
        version(tmp_path / f"m{number}", 1)
        eyes.watcher.watch(f"m{number}", str(tmp_path / f"m{number}"))
        eyes.next()
    settled(eyes)
    for number in (0, 39, 20):
        version(tmp_path / f"m{number}", 2)
        assert eyes.next().model == f"m{number}"


def test_what_watchfiles_cannot_do_is_polled(
    tmp_path: Path, open_eyes: Callable[..., Eyes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watchfiles = pytest.importorskip("watchfiles")

    def full(*paths: str, **options: Any) -> Any:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(watchfiles, "watch", full)
    version(tmp_path / "m", 1)
    eyes = open_eyes(SOON)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    eyes.next()
    until(lambda: [record.getMessage() for record in caplog.records] == ["watcher.polls"])
    version(tmp_path / "m", 2)
    assert 2 in eyes.next().versions


def test_file_systems_that_tell_nothing(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "36 22 0:52 / /models rw,relatime shared:1 master:2 - nfs4 host:/models rw\n"
        "37 22 0:53 / /with\\040blank rw - fuse.sshfs host: rw\n"
        "38 22 0:54 / /var/lib rw - overlay overlay rw\n"
    )
    assert notices.silent_devices(str(mounts)) == {os.makedev(0, 52), os.makedev(0, 53)}
    assert notices.silent_devices(str(tmp_path / "none")) == frozenset()


def test_a_silent_file_system_is_polled(
    tmp_path: Path, open_eyes: Callable[..., Eyes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "silent_devices", lambda: frozenset([os.stat(tmp_path).st_dev]))
    version(tmp_path / "m", 1)
    eyes = open_eyes(SOON)
    eyes.watcher.watch("m", str(tmp_path / "m"))
    eyes.next()
    version(tmp_path / "m", 2)
    assert 2 in eyes.next().versions
    assert "tfpool-notices" not in {thread.name for thread in threading.enumerate()}


def test_looks_that_hang_delay_no_others(
    tmp_path: Path, open_eyes: Callable[..., Eyes], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def slow(base_path: str) -> Look:
        if "dead" in base_path:
            released.wait(30)
        return look(base_path)

    monkeypatch.setattr(watcher, "look", slow)
    monkeypatch.setattr(watcher, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(watcher, "_STUCK_SECONDS", 0.05)
    version(tmp_path / "live", 1)
    eyes = open_eyes(SOON)
    try:
        for number in range(3):
            eyes.watcher.watch(f"dead{number}", str(tmp_path / f"dead{number}"))
        eyes.watcher.watch("live", str(tmp_path / "live"))
        assert eyes.next().model == "live"
        version(tmp_path / "live", 2)
        assert eyes.next().versions.keys() == {1, 2}
        eyes.watcher.close()
        assert any(thread.name == "tfpool-look" for thread in threading.enumerate())
    finally:
        released.set()


def test_a_dead_disk_takes_only_some_of_the_threads(
    tmp_path: Path, open_eyes: Callable[..., Eyes], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, released = threading.Event(), threading.Event()
    hanging: set[str] = set()

    def slow(base_path: str) -> Look:
        if dead.is_set() and "m" in os.path.basename(base_path):
            hanging.add(base_path)
            released.wait(30)
        return look(base_path)

    monkeypatch.setattr(watcher, "look", slow)
    monkeypatch.setattr(watcher, "_STUCK_SECONDS", 0.05)
    monkeypatch.setattr(watcher, "_TICK_SECONDS", 0.01)
    eyes = open_eyes(None)
    for number in range(12):
        version(tmp_path / f"m{number}", 1)
        eyes.watcher.watch(f"m{number}", str(tmp_path / f"m{number}"))
        eyes.watcher.look(f"m{number}")
        eyes.next()
    dead.set()
    try:
        for number in range(12):
            eyes.watcher.look(f"m{number}")
            most = min(number + 1, 4)
            until(lambda most=most: len(hanging) == most)  # type: ignore[misc]
        eyes.watcher.watch("new", str(tmp_path / "new"))
        eyes.watcher.look("new")
        assert eyes.next().model == "new"
        assert len(hanging) == 4
    finally:
        released.set()
    assert {eyes.next().model for _ in range(12)} == {f"m{number}" for number in range(12)}


def test_jobs_are_run_beside(tmp_path: Path, open_eyes: Callable[..., Eyes]) -> None:
    eyes = open_eyes(None)
    caller = threading.get_ident()
    good = eyes.watcher.ask(threading.get_ident)
    assert eyes.next() == Done(good)
    assert good.result() != caller
    bad = eyes.watcher.ask(lambda: 1 // 0)
    assert eyes.next() == Done(bad)
    assert isinstance(bad.exception(), ZeroDivisionError)


def test_closed_it_is_still(tmp_path: Path) -> None:
    version(tmp_path / "m", 1)
    eyes = Watcher(SOON)
    eyes.watch("m", str(tmp_path / "m"))
    assert select.select([eyes], [], [], 10.0)[0]
    eyes.close()
    eyes.close()
    assert [what.model for what in eyes.seen() if isinstance(what, Sighting)] == ["m"]
    eyes.watch("n", str(tmp_path))
    eyes.forget("n")
    assert eyes.seen() == []
