from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_store_shelf import put
from tfpool.errors import FailedPrecondition, PermissionDenied
from tfpool.store.manifest import GRAPH, MANIFEST
from tfpool.store.shelf import Entry, Shelf
from tfpool.store.sweep import Swept, sweep

DAY = 86_400.0


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(str(tmp_path / "store"))
    made.prepare()
    return made


def used(entry: Entry, when: float) -> None:
    os.utime(os.path.join(entry.path, MANIFEST), (when, when))


def some(shelf: Shelf, ages: list[int], sizes: list[int] | None = None) -> list[Entry]:
    """Entries by number, used at those times."""
    made = []
    for number, (age, size) in enumerate(zip(ages, sizes or [1000] * len(ages), strict=True)):
        made.append(put(shelf, number, {GRAPH: bytes(size)}, weights=()))
        used(made[-1], 1e9 + age)
    return made


def test_what_was_used_longest_ago_goes_first(shelf: Shelf) -> None:
    a, b, c, d = some(shelf, [3, 1, 4, 2])
    each = shelf.size(a.key)
    swept = sweep(shelf, 2 * each + 10)
    assert swept == Swept((b.key, d.key), 2 * each, 0, 2 * each)
    assert shelf.keys() == sorted([a.key, c.key])


def test_what_is_to_be_kept_stays(shelf: Shelf) -> None:
    a, b = some(shelf, [1, 2])
    swept = sweep(shelf, 0, keep=a.key)
    assert swept.entries == (b.key,)
    assert swept.kept == shelf.size(a.key)


def test_within_the_budget_nothing_goes(shelf: Shelf) -> None:
    (a,) = some(shelf, [1])
    assert sweep(shelf, shelf.size(a.key)) == Swept((), 0, 0, shelf.size(a.key))


def test_what_cannot_be_read_goes_before_all_else(shelf: Shelf) -> None:
    a, b = some(shelf, [1, 2])
    os.unlink(os.path.join(b.path, MANIFEST))
    assert sweep(shelf, shelf.size(a.key)).entries == (b.key,)


def test_there_need_be_no_store(tmp_path: Path) -> None:
    assert sweep(Shelf(str(tmp_path / "store")), 0) == Swept((), 0, 0, 0)
    assert not (tmp_path / "store").exists()


@settings(max_examples=30)
@given(entries=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5000)), max_size=6), budget=st.integers(-1, 40_000))
def test_no_more_goes_than_must(entries: list[tuple[int, int]], budget: int, tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "store"))
    shelf.prepare()
    sweep(shelf, -1)
    made = some(shelf, [age for age, _ in entries], [size for _, size in entries])
    sizes = {entry.key: shelf.size(entry.key) for entry in made}
    ages = {entry.key: shelf.used(entry.key) for entry in made}
    swept = sweep(shelf, budget)
    stay = set(shelf.keys())
    assert stay | set(swept.entries) == set(sizes)
    assert swept.kept == sum(sizes[key] for key in stay)
    assert swept.nbytes == sum(sizes[key] for key in swept.entries)
    assert swept.kept <= max(budget, 0)
    assert not swept.entries or swept.kept + sizes[swept.entries[-1]] > budget
    assert all(ages[gone] <= ages[key] for gone in swept.entries for key in stay)


def test_what_another_removed_counts_as_gone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two that sweep at a time would remove twice as much as they must."""
    a, b, c, d = some(shelf, [1, 2, 3, 4])
    remove = Shelf.remove

    def beaten(self: Shelf, key: str) -> bool:
        remove(self, key)
        return False

    monkeypatch.setattr(Shelf, "remove", beaten)
    swept = sweep(shelf, 2 * shelf.size(a.key))
    assert swept.entries == ()
    assert shelf.keys() == sorted([c.key, d.key])
    assert not shelf.has(b.key)


def test_what_is_used_meanwhile_stays(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = some(shelf, [1, 2])
    size = Shelf.size

    def late(self: Shelf, key: str) -> int:
        if key == a.key:
            self.touch(key)
        return size(self, key)

    monkeypatch.setattr(Shelf, "size", late)
    assert sweep(shelf, 0).entries == (b.key,)
    assert shelf.keys() == [a.key]


def test_drafts_of_writers_that_are_gone_go(shelf: Shelf) -> None:
    drafts = Path(shelf.directory, "drafts")
    with shelf.draft() as held:
        Path(held, GRAPH).touch()
        (drafts / "draft-left" / "inner").mkdir(parents=True)
        (drafts / "gone-left").mkdir()
        (drafts / "Letter to Ann").mkdir()
        assert sweep(shelf, 0).drafts == 2
        assert sorted(os.listdir(drafts)) == sorted(["Letter to Ann", os.path.basename(held)])
        assert os.path.exists(os.path.join(held, GRAPH))


def test_links_among_drafts_are_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    Path(shelf.directory, "drafts", "draft-link").symlink_to(tmp_path / "precious")
    assert sweep(shelf, 0).drafts == 0
    assert (tmp_path / "precious").exists()


def test_old_notes_and_locks_go(shelf: Shelf) -> None:
    now = time.time()
    old, young, names = now - 31 * DAY, now - 29 * DAY, {}
    for place, name, when in (
        ("index", "a" * 64, old),
        ("index", "b" * 64, young),
        ("index", "c" * 64 + ".7.7", now - 7200),
        ("index", "d" * 64 + ".7.7", now),
        ("index", "notes.txt", old),
        ("locks", "a" * 32, old),
        ("locks", "b" * 32, young),
        ("locks", "c" * 32, old),
    ):
        path = Path(shelf.directory, place, name)
        path.touch(0o600)
        os.utime(path, (when, when))
        names[name] = path
    with shelf.lock("c" * 32) as mine:
        assert mine
        sweep(shelf, 0)
        gone = {name for name, path in names.items() if not path.exists()}
    assert gone == {"a" * 64, "c" * 64 + ".7.7", "a" * 32}


def test_a_store_of_others_is_left_alone(shelf: Shelf) -> None:
    (a,) = some(shelf, [1])
    Path(shelf.directory).chmod(0o777)
    with pytest.raises(PermissionDenied):
        sweep(shelf, 0)
    assert shelf.has(a.key)


def test_what_cannot_be_removed_is_said(shelf: Shelf) -> None:
    some(shelf, [1])
    os.rmdir(os.path.join(shelf.directory, "drafts"))
    with pytest.raises(FailedPrecondition, match="cannot be removed"):
        sweep(shelf, 0)
