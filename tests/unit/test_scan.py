from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tfpool.errors import NotFound
from tfpool.repository.scan import scan


def version(base: Path, name: str, graph: str | None = "saved_model.pb") -> str:
    directory = base / name
    directory.mkdir(parents=True)
    if graph:
        (directory / graph).touch()
    return str(directory)


def test_versions_and_their_directories(tmp_path: Path) -> None:
    long, two = version(tmp_path, "00000123"), version(tmp_path, "2", "saved_model.pbtxt")
    for name in ("latest", "-1", "1.5", "0", "٣", ".tmp", "1" * 100, str(1 << 63), str(1 << 64)):
        version(tmp_path, name)
    version(tmp_path, "3", None)
    (tmp_path / "4").touch()
    assert scan(str(tmp_path)) == {2: two, 123: long}
    assert list(scan(str(tmp_path))) == [2, 123]


def test_a_saved_model_itself_is_version_1(tmp_path: Path) -> None:
    directory = version(tmp_path, "export")
    version(tmp_path / "export", "7")
    assert scan(directory) == {1: directory}


def test_one_version_said_in_two_ways(tmp_path: Path) -> None:
    version(tmp_path, "1")
    first = version(tmp_path, "01")
    assert scan(str(tmp_path)) == {1: first}


def test_links_are_followed(tmp_path: Path) -> None:
    directory = version(tmp_path, "elsewhere")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "5").symlink_to(directory)
    (tmp_path / "base" / "6").symlink_to(tmp_path / "nowhere")
    assert scan(str(tmp_path / "base")) == {5: str(tmp_path / "base" / "5")}


def test_errors_say_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such directory"):
        scan(str(tmp_path / "none"))
    with pytest.raises(NotFound, match=r"expected version directories .*; it is empty"):
        scan(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match="got a file"):
        scan(str(tmp_path / "file"))
    for i in range(6):
        version(tmp_path, f"v{i}")
    with pytest.raises(NotFound, match="found file, v0, v1, v2, v3 and 2 more"):
        scan(str(tmp_path))
    version(tmp_path, "8", None)
    with pytest.raises(NotFound, match=r"no saved_model\.pb in 8"):
        scan(str(tmp_path))


def test_links_without_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFound, match=r"loop: cannot be read: Too many levels of symbolic links"):
        scan(str(tmp_path / "loop"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "3").symlink_to("3")
    with pytest.raises(NotFound, match=r"base: Too many levels of symbolic links: 3$"):
        scan(str(tmp_path / "base"))
    two = version(tmp_path / "base", "2")
    assert scan(str(tmp_path / "base")) == {2: two}, "the others are served"


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes would not do: root may read everything."""
    version(tmp_path, "7")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(NotFound, match=r"Permission denied: 7$"):
            scan(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(NotFound, match=f"{tmp_path}: cannot be read: Permission denied"):
            scan(str(tmp_path))


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"cannot be read: .*embedded null"):
        scan(f"{tmp_path}/a\0b")
    with pytest.raises(NotFound, match="cannot be read: File name too long"):
        scan(f"{tmp_path}/{'x' * 300}")
