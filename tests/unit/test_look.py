from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tfpool.errors import NotFound
from tfpool.repository.look import look, look_below


def version(base: Path, number: int) -> Path:
    directory = base / str(number)
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_text("graph")
    (directory / "variables" / "variables.data-00000-of-00001").write_text("data")
    return directory


def test_a_mark_changes_with_the_files_of_its_version_only(tmp_path: Path) -> None:
    one, two = version(tmp_path, 1), version(tmp_path, 2)
    first = look(str(tmp_path))
    assert look(str(tmp_path)) == first

    def changed() -> set[int]:
        nonlocal first
        before, first = first, look(str(tmp_path))
        assert (before.told() == first.told()) == (before.marks == first.marks)
        return {number for number in first.marks if first.marks[number] != before.marks[number]}

    (one / "saved_model.pb").write_text("larger graph")
    assert changed() == {1}
    (two / "variables" / "variables.data-00000-of-00001").write_text("other data")
    assert changed() == {2}
    (two / "variables" / "variables.data-00001-of-00002").touch()
    assert changed() == {2}
    (two / "assets").mkdir()
    assert changed() == {2}
    (one / "variables" / "variables.data-00000-of-00001").unlink()
    assert changed() == {1}
    os.utime(one / "saved_model.pb", ns=(0, 1))
    assert changed() == {1}
    (tmp_path / "3").mkdir()
    assert changed() == set()


def test_a_copy_that_keeps_the_times_is_another(tmp_path: Path) -> None:
    one = version(tmp_path / "m", 1)
    before = look(str(tmp_path / "m"))
    shutil.copytree(one, tmp_path / "copy")
    one.rename(tmp_path / "old")
    (tmp_path / "copy").rename(one)
    after = look(str(tmp_path / "m"))
    assert after.versions == before.versions
    assert after.marks != before.marks


def test_all_directories_that_matter(tmp_path: Path) -> None:
    version(tmp_path, 1)
    (tmp_path / "2").mkdir()
    (tmp_path / "unrelated" / "deep").mkdir(parents=True)
    (tmp_path / "3").touch()
    expected = [tmp_path, *(tmp_path / name for name in ("1", "1/variables", "2"))]
    assert set(look(str(tmp_path)).directories) == set(map(str, expected))


def test_a_saved_model_itself(tmp_path: Path) -> None:
    directory = version(tmp_path, 1)
    found = look(str(directory))
    assert found.versions == {1: str(directory)}
    assert set(found.directories) == {str(directory), str(directory / "variables")}


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    found = look(str(tmp_path / "none"))
    assert isinstance(found.error, NotFound)
    assert (found.versions, found.marks, found.directories) == ({}, {}, {})
    assert look(str(tmp_path / "none")).told() == found.told()
    assert look(str(tmp_path)).told() != found.told()


@pytest.mark.parametrize("link", ["base", "base/1", "base/1/variables", "."])
def test_links_are_restless(tmp_path: Path, link: str) -> None:
    home = tmp_path / "home"
    version(home / "base", 1)
    assert not look(str(home / "base")).restless
    (home / link).rename(tmp_path / "elsewhere")
    (home / link).symlink_to(tmp_path / "elsewhere")
    found = look(str(home / "base"))
    assert found.restless
    assert found.versions == {1: str(home / "base" / "1")}


def test_models_of_a_directory(tmp_path: Path) -> None:
    version(tmp_path / "b", 1)
    version(tmp_path / "a", 7)
    found = look_below(str(tmp_path), {})
    assert found.names == {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    assert list(found.names) == ["a", "b"]
    assert not found.restless
    (tmp_path / "c").mkdir()
    assert look_below(str(tmp_path), {}).names == found.names
    assert look_below(str(tmp_path), {}).restless, "it may become a model"
    assert look_below(str(tmp_path), {"c": "", "gone": ""}).names == {**found.names, "c": str(tmp_path / "c")}
    lost = look_below(str(tmp_path / "none"), found.names)
    assert lost.names == found.names
    assert "none: cannot be read: No such file" in str(lost.error)


def test_a_directory_that_cannot_be_read_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version(tmp_path / "secret", 1)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert look_below(str(tmp_path), {}).names == {"secret": str(tmp_path / "secret")}
