from __future__ import annotations

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
    for name in ("latest", "-1", "1.5", "0", "٣", ".tmp", "1" * 100):
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
