"""The store's directory: what is believed, what is checked, and what becomes of half of a thing."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_store_manifest import manifest, refused
from tfpool.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TfpoolError,
)
from tfpool.store import checking, files, identity
from tfpool.store.machine import toolchain
from tfpool.store.manifest import GRAPH, MANIFEST, WEIGHTS, Manifest
from tfpool.store.shelf import Entry, Shelf, key_of

STAMP = "5" * 64
BODIES = {GRAPH: b"a graph", WEIGHTS: bytes(10248)}
OTHERS = 54321


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(str(tmp_path / "store"))
    made.prepare()
    return made


def put(shelf: Shelf, number: int = 0, bodies: dict[str, bytes] = BODIES, **changes: Any) -> Entry:
    """Publish an entry; its number is its content, and says which."""
    with shelf.draft() as draft:
        for name, body in bodies.items():
            Path(draft, name).write_bytes(body)
        digests = {name: identity.digest(os.path.join(draft, name)) for name in bodies}
        made = manifest(content=f"{number:064x}", digests=digests, **changes)
        return shelf.publish(draft, made, f"{number:064x}")


def left(shelf: Shelf) -> list[str]:
    return os.listdir(os.path.join(shelf.directory, "drafts"))


def fail(code: int) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "somewhere")

    return failing


# -- what is put in is found -------------------------------------------------------------------------------------------


def test_what_is_published_is_there(shelf: Shelf) -> None:
    entry = put(shelf, 7)
    assert shelf.entry(entry.key) == entry == shelf.read(entry.key)
    assert shelf.keys() == [entry.key]
    assert shelf.has(entry.key)
    assert shelf.size(entry.key) == sum(path.stat().st_size for path in Path(entry.path).iterdir())
    assert Path(entry.graph).read_bytes() == BODIES[GRAPH]
    assert Path(entry.weights).read_bytes() == BODIES[WEIGHTS]
    assert left(shelf) == []


def test_everything_is_this_users_alone(shelf: Shelf) -> None:
    before = os.umask(0)
    try:
        put(shelf)
    finally:
        os.umask(before)
    with shelf.lock("0" * 32):
        for path in Path(shelf.directory).rglob("*"):
            assert not path.stat().st_mode & 0o022, path


def test_files_are_found_by_what_they_are(shelf: Shelf, tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "saved_model.pb").write_bytes(b"1")
    assert shelf.find(str(model)) is None
    mark, content = identity.content(str(model))
    with shelf.draft() as draft:
        made = shelf.publish(draft, refused(content=content), mark.stamp)
    assert shelf.find(str(model)) == made
    (model / "saved_model.pb").write_bytes(b"2")
    assert shelf.find(str(model)) is None
    shelf.note(identity.mark(str(model)).stamp, content)
    assert shelf.find(str(model)) == made


@pytest.mark.parametrize("noted", [b"", b"../../x", b"a" * 63, b"a" * 65, b"a" * 200, b"\xff" * 64])
def test_a_note_that_is_none_leads_nowhere(shelf: Shelf, tmp_path: Path, noted: bytes) -> None:
    model = tmp_path / "m"
    model.mkdir()
    Path(shelf.directory, "index", identity.mark(str(model)).stamp).write_bytes(noted)
    assert shelf.find(str(model)) is None


def test_notes_that_are_read_stay_young(shelf: Shelf, tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    stamp = identity.mark(str(model)).stamp
    shelf.note(stamp, "a" * 64)
    path = os.path.join(shelf.directory, "index", stamp)
    os.utime(path, (1e9, 1e9))
    shelf.find(str(model))
    assert os.stat(path).st_mtime > 1.1e9


def test_a_model_that_is_gone_is_said_to_be(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        shelf.find(str(tmp_path / "gone"))


def test_an_entry_takes_the_place_of_another(shelf: Shelf) -> None:
    first = put(shelf, gain=1.0)
    second = put(shelf, gain=2.0)
    assert first.key == second.key
    assert shelf.read(first.key).manifest.gain == 2.0
    assert left(shelf) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_whatever_stands_in_its_place_gives_way(shelf: Shelf, kind: str, tmp_path: Path) -> None:
    place = Path(put(shelf).path)
    shutil.rmtree(place)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    if kind == "file":
        place.touch()
    elif kind == "directory":
        (place / "full").mkdir(parents=True)
    else:
        place.symlink_to(tmp_path / "precious")
    assert shelf.entry(place.name) is None
    assert shelf.entry(put(shelf).key) is not None
    assert (tmp_path / "precious" / "file").exists()
    assert left(shelf) == []


def test_use_is_remembered(shelf: Shelf) -> None:
    entry = put(shelf)
    os.utime(os.path.join(entry.path, MANIFEST), (1e9, 1e9))
    assert shelf.used(entry.key) == 1e9
    shelf.touch(entry.key)
    assert shelf.used(entry.key) > 1e9
    assert shelf.used("0" * 32) == 0.0
    shelf.touch("0" * 32)


def test_what_is_removed_is_gone(shelf: Shelf) -> None:
    entry = put(shelf)
    assert shelf.remove(entry.key)
    assert not shelf.remove(entry.key)
    assert shelf.entry(entry.key) is None
    assert (shelf.keys(), left(shelf), shelf.size(entry.key)) == ([], [], 0)


@pytest.mark.parametrize("key", ["", "..", "../../x", "A" * 32, "0" * 31, "0" * 33])
def test_keys_are_no_paths(shelf: Shelf, key: str) -> None:
    for use in (shelf.read, shelf.remove, shelf.size, shelf.used, shelf.touch):
        with pytest.raises(InvalidArgument, match="expected 32 hexadecimal digits"):
            use(key)
    assert shelf.entry(key) is None
    with pytest.raises(InvalidArgument), shelf.lock(key):
        pass


def test_names_that_are_no_keys_are_not_entries(shelf: Shelf) -> None:
    Path(shelf.directory, "entries", "lost+found").mkdir()
    assert shelf.keys() == []


# -- who is believed ---------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "not" / "yet"))
    shelf.check()
    assert shelf.keys() == []
    assert shelf.find(str(tmp_path)) is None
    assert not shelf.remove("0" * 32)
    assert not os.path.exists(tmp_path / "not")


def test_what_is_made_is_private_also_above(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Shelf(str(tmp_path / "a" / "b" / "store")).prepare()
    finally:
        os.umask(before)
    for place in ("a", "a/b", "a/b/store", "a/b/store/entries"):
        assert stat.S_IMODE((tmp_path / place).stat().st_mode) == 0o700


def test_an_empty_directory_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    shelf = Shelf(str(tmp_path / "store"))
    with pytest.raises(PermissionDenied):
        shelf.check()
    shelf.prepare()
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "entries", "index", "locks", "drafts"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_can_write_to_is_not_trusted(shelf: Shelf, name: str, mode: int, tmp_path: Path) -> None:
    put(shelf)
    Path(shelf.directory, name, "something").touch()
    os.chmod(os.path.join(shelf.directory, name), mode)
    for use in (shelf.check, shelf.prepare, lambda: shelf.find(str(tmp_path))):
        with pytest.raises(PermissionDenied, match=r"others may write to it \(mode .*not trusted"):
            use()


def test_what_belongs_to_another_is_not_trusted(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = put(shelf)
    mine = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: OTHERS)
    assert shelf.entry(entry.key) is None
    for use in (lambda: shelf.read(entry.key), lambda: shelf.verify(entry), lambda: shelf.trust(entry)):
        with pytest.raises(PermissionDenied, match=f"belongs to user {mine}, expected {OTHERS}: it is not trusted"):
            use()
    with pytest.raises(PermissionDenied, match="not trusted"):
        shelf.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS, ""])
def test_each_file_must_be_ones_own(shelf: Shelf, name: str) -> None:
    entry = put(shelf)
    os.chown(os.path.join(entry.path, name), OTHERS, OTHERS)
    with pytest.raises(PermissionDenied, match=f"belongs to user {OTHERS}"):
        shelf.look(shelf.read(entry.key))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_parents_of_others_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHERS, OTHERS)
    with pytest.raises(PermissionDenied, match=f"theirs belongs to user {OTHERS}, so .*store is not trusted"):
        Shelf(str(tmp_path / "theirs" / "store")).prepare()
    assert os.listdir(tmp_path / "theirs") == []


def test_parents_that_others_can_write_to_are_not_trusted(tmp_path: Path) -> None:
    above = tmp_path / "above"
    shelf = Shelf(str(above / "store"))
    shelf.prepare()
    (tmp_path / "link").symlink_to(above)
    for mode in (0o707, 0o777):
        above.chmod(mode)
        for one in (shelf, Shelf(str(tmp_path / "link" / "store"))):
            with pytest.raises(PermissionDenied, match=r"above: others may write to it \(mode .*not trusted"):
                one.check()
    above.chmod(0o1777)  # as /tmp is
    shelf.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_a_group_of_others_counts(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o770)
    Shelf(str(above / "store")).check()  # root's own group
    os.chown(above, 0, OTHERS)
    with pytest.raises(PermissionDenied, match="others may write"):
        Shelf(str(above / "store")).check()


@pytest.mark.parametrize("name", ["", "entries", "index", "locks", "drafts"])
def test_links_are_not_followed(shelf: Shelf, name: str, tmp_path: Path) -> None:
    put(shelf)
    path = Path(shelf.directory, name)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    for use in (shelf.check, shelf.prepare):
        with pytest.raises(FailedPrecondition, match="got a symbolic link, expected the store's own"):
            use()


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS, ""])
def test_links_in_an_entry_make_it_corrupt(shelf: Shelf, name: str, tmp_path: Path) -> None:
    path = Path(put(shelf).path, name)
    key = put(shelf).key
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        shelf.trust(shelf.read(key))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [MANIFEST, GRAPH])
def test_what_is_no_file_makes_it_corrupt(shelf: Shelf, name: str, make: Callable[[str, int], None]) -> None:
    entry = put(shelf)
    path = os.path.join(entry.path, name)
    os.unlink(path)
    make(path, 0o600)
    with pytest.raises(FailedPrecondition, match="got something else, expected a file"):
        shelf.trust(shelf.read(entry.key))


def test_a_file_in_the_stores_place_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "store").touch(0o600)
    shelf = Shelf(str(tmp_path / "store"))
    with pytest.raises(FailedPrecondition, match="got a file, expected a directory"):
        shelf.check()
    with pytest.raises(FailedPrecondition, match=r"Not a directory|got a file"):
        shelf.prepare()


def test_an_entry_under_anothers_key_is_corrupt(shelf: Shelf) -> None:
    entry = put(shelf)
    wrong = "0" * 32
    os.rename(entry.path, os.path.join(os.path.dirname(entry.path), wrong))
    with pytest.raises(InvalidArgument, match=f"got the manifest of {entry.key}, expected its own"):
        shelf.read(wrong)


# -- what is checked ---------------------------------------------------------------------------------------------------


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is digested, one after the other; files are old enough at once."""
    done: list[int] = []
    digest = identity.digest
    monkeypatch.setattr(identity, "digest", lambda file: done.append(1) or digest(file))
    monkeypatch.setattr(identity, "SETTLED_SECONDS", -60.0)
    return done


def test_files_are_checked_once_while_the_machine_runs(
    shelf: Shelf, digested: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = put(shelf)
    digested.clear()
    shelf.trust(entry)
    assert len(digested) == 2
    shelf.trust(entry)
    Shelf(shelf.directory).trust(entry)
    shelf.touch(entry.key)
    shelf.trust(entry)
    assert len(digested) == 2
    shelf.verify(entry)
    assert len(digested) == 4
    mark = checking.mark
    monkeypatch.setattr(checking, "mark", lambda *both: (mark(*both)[0] + "another boot", mark(*both)[1]))
    shelf.trust(entry)
    assert len(digested) == 6


def test_fresh_files_are_checked_again(shelf: Shelf, digested: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A change within the same tick of the kernel's clock would not be told."""
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 3600.0)
    entry = put(shelf)
    digested.clear()
    for _ in range(2):
        shelf.trust(entry)
    assert len(digested) == 4


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_change_is_noticed_whatever_the_times_say(shelf: Shelf, digested: list[int], name: str) -> None:
    entry = put(shelf)
    shelf.trust(entry)
    path = Path(entry.path, name)
    changed = path.stat()

    def write() -> None:
        body = bytearray(BODIES[name])
        body[3] ^= 1
        with open(path, "r+b") as file:
            file.write(body)
        os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns))

    write()
    while path.stat().st_ctime_ns == changed.st_ctime_ns:  # a tick of the kernel's clock
        write()
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (changed.st_size, changed.st_mtime_ns)
    for use in (shelf.trust, shelf.verify):
        with pytest.raises(FailedPrecondition, match=f"{name}: corrupt: got SHA-256 [0-9a-f]{{16}}, expected"):
            use(entry)
    shelf.look(entry)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_files_that_are_gone_or_cut_off_are_noticed(shelf: Shelf, name: str) -> None:
    entry = put(shelf)
    path = Path(entry.path, name)
    os.truncate(path, 3)
    with pytest.raises(FailedPrecondition, match="corrupt"):
        shelf.trust(entry)
    path.unlink()
    for use in (shelf.trust, shelf.verify, shelf.look):
        with pytest.raises(NotFound, match=f"{entry.path}/{name}: no such file"):
            use(entry)


def test_open_files_stay_what_they_were(shelf: Shelf) -> None:
    """Whatever becomes of the entry meanwhile."""
    entry = put(shelf)
    for change in (lambda: put(shelf, bodies=BODIES | {GRAPH: b"another"}), lambda: shelf.remove(entry.key)):
        with shelf.open(shelf.read(entry.key)) as found:
            before = os.pread(found.graph, 100, 0)
            change()
            assert os.read(found.graph, 100) == before
            assert found.weights is not None
            assert os.fstat(found.weights).st_size == len(BODIES[WEIGHTS])


def test_the_stamp_of_another_entry_is_not_believed(shelf: Shelf, digested: list[int]) -> None:
    """Who has read a manifest and then finds another's files is told."""
    old = put(shelf)
    new = put(shelf, bodies=BODIES | {GRAPH: b"another"})
    shelf.trust(new)
    with pytest.raises(FailedPrecondition, match="corrupt"):
        shelf.trust(old)


def test_an_entry_without_weights_has_one_file(shelf: Shelf) -> None:
    entry = put(shelf, bodies={GRAPH: b"small"}, weights=())
    with shelf.open(entry) as found:
        assert found.weights is None
        assert os.read(found.graph, 100) == b"small"


def test_what_is_refused_cannot_be_opened(shelf: Shelf) -> None:
    with shelf.draft() as draft:
        entry = shelf.publish(draft, refused(), STAMP)
    shelf.verify(entry)
    shelf.look(entry)
    with pytest.raises(FailedPrecondition, match="not compiled: it assigns variables"):
        shelf.trust(entry)


def test_the_reason_why_an_entry_is_none_can_be_had(shelf: Shelf) -> None:
    entry = put(shelf)
    with pytest.raises(NotFound):
        shelf.read("0" * 32)
    Path(entry.path, MANIFEST).write_bytes(b"{}")
    assert shelf.entry(entry.key) is None
    with pytest.raises(InvalidArgument, match="corrupt manifest"):
        shelf.read(entry.key)


def test_a_huge_manifest_is_not_read(shelf: Shelf) -> None:
    entry = put(shelf)
    os.truncate(os.path.join(entry.path, MANIFEST), 1 << 40)
    with pytest.raises(InvalidArgument, match="more than"):
        shelf.read(entry.key)


# -- disks that are full, or read-only ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["write", "settle", "rename"])
def test_a_full_disk_leaves_nothing_half_made(shelf: Shelf, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = "os.rename" if at == "rename" else f"tfpool.store.files.{at}"
    monkeypatch.setattr(where, fail(errno.ENOSPC))
    with pytest.raises(ResourceExhausted, match="store: cannot be written to: No space left"):
        put(shelf)
    assert (shelf.keys(), left(shelf)) == ([], [])


def test_a_disk_that_is_full_half_way_keeps_what_was_there(shelf: Shelf) -> None:
    before = put(shelf, gain=1.0)

    def half() -> None:
        with shelf.draft() as draft:
            Path(draft, GRAPH).write_bytes(b"half")
            fail(errno.EDQUOT)()

    with pytest.raises(ResourceExhausted, match="store: cannot be written to"):
        half()
    assert shelf.read(before.key).manifest.gain == 1.0
    shelf.verify(before)
    assert left(shelf) == []


def test_what_is_removed_takes_no_room(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = put(shelf)
    monkeypatch.setattr("os.mkdir", fail(errno.ENOSPC))
    assert shelf.remove(entry.key)


def test_other_errors_of_who_writes_are_its_own(shelf: Shelf) -> None:
    with pytest.raises(FileNotFoundError), shelf.draft():
        os.stat("/no/such/file")
    assert left(shelf) == []


def test_a_read_only_disk_is_read_from(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m"
    model.mkdir()
    mark, content = identity.content(str(model))
    entry = put(shelf, int(content, 16))
    shelf.note(mark.stamp, content)
    for name in ("mkdir", "rename", "replace", "unlink", "utime"):
        monkeypatch.setattr(f"os.{name}", fail(errno.EROFS))
    monkeypatch.setattr("tfpool.store.files.write", fail(errno.EROFS))
    monkeypatch.setattr("tfpool.store.files.take", fail(errno.EROFS))
    found = shelf.find(str(model))
    assert found == entry
    shelf.touch(entry.key)
    with shelf.open(entry) as opened:
        assert os.read(opened.graph, 100) == BODIES[GRAPH]
    with pytest.raises(FailedPrecondition, match="cannot be written to: Read-only file system"):
        shelf.prepare()
    with pytest.raises(FailedPrecondition, match="cannot be written to: Read-only"), shelf.lock(entry.key):
        pass
    with pytest.raises(FailedPrecondition, match="cannot be removed: Read-only"):
        shelf.remove(entry.key)


def test_a_place_where_nothing_can_be_made_is_said_to_be() -> None:
    with pytest.raises(FailedPrecondition, match=r"^/proc/.*cannot be written to"):
        Shelf("/proc/self/store").prepare()


# -- drafts and locks --------------------------------------------------------------------------------------------------


def test_one_at_a_time_holds_a_lock(shelf: Shelf) -> None:
    key = "0" * 32
    with shelf.lock(key) as first, Shelf(shelf.directory).lock(key) as second, shelf.lock("1" * 32) as other:
        assert (first, second, other) == (True, False, True)
    with shelf.lock(key) as again:
        assert again


def test_a_lock_takes_a_store(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be written to"), Shelf(str(tmp_path)).lock("0" * 32):
        pass


def test_a_draft_that_is_taken_away_before_it_is_locked_is_made_anew(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cleans up at that moment takes it for one that was left behind."""
    take, taken = files.take, []

    def late(path: str, flags: int) -> int | None:
        taken.append(path)
        if len(taken) == 1:
            shutil.rmtree(path)
        if len(taken) == 2:  # it is locked, and gone when that one lets go
            held = take(path, flags)
            assert held is not None
            try:
                return take(path, flags)
            finally:
                shutil.rmtree(path)
                os.close(held)
        return take(path, flags)

    monkeypatch.setattr(files, "take", late)
    with shelf.draft() as draft:
        assert len(set(taken)) == 3
        assert draft == taken[2]
        assert os.path.isdir(draft)


def test_a_lock_of_what_was_replaced_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    flock = files.fcntl.flock

    def replaced(fd: int, how: int) -> None:
        flock(fd, how)
        path.unlink()
        path.touch()

    monkeypatch.setattr(files.fcntl, "flock", replaced)
    assert files.take(str(path), os.O_RDWR | os.O_CREAT) is None


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (manifest(), []),
        (manifest(), [GRAPH]),
        (manifest(), [GRAPH, WEIGHTS, "more"]),
        (refused(), [GRAPH]),
        (refused(gain=math.nan), []),
        (refused(content="x"), []),
    ],
)
def test_a_draft_that_is_not_what_its_manifest_says_is_refused(shelf: Shelf, made: Manifest, names: list[str]) -> None:
    with shelf.draft() as draft:
        for name in names:
            Path(draft, name).touch()
        with pytest.raises(InvalidArgument):
            shelf.publish(draft, made, STAMP)
    assert (shelf.keys(), left(shelf)) == ([], [])


def test_entries_of_another_toolchain_lie_beside(shelf: Shelf, tmp_path: Path) -> None:
    mine, other = put(shelf), put(shelf, tensorflow="1.0")
    assert sorted([mine.key, other.key]) == shelf.keys()
    assert mine.key == key_of(mine.manifest.content, toolchain())


def test_errors_of_a_store_are_the_pools(shelf: Shelf) -> None:
    """Nobody has to expect others from looking."""
    entry = put(shelf)
    for body in (b"", b"x", Manifest.to_bytes(refused())):
        Path(entry.path, MANIFEST).write_bytes(body)
        with pytest.raises(TfpoolError):
            shelf.read(entry.key)
