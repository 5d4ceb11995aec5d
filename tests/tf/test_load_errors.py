"""What a broken model says: one line that names the path and the cause, and nothing of TensorFlow's own stack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError
from tfpool.worker import loader, restore

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of half_plus_two."""
    directory = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "tfpool.testing.models", "half_plus_two", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory / "half_plus_two" / "1"


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(scope="module")
def config() -> Any:
    return loader.session_config(1, None)


def error_of(path: Path, config: Any, **options: Any) -> TfpoolError:
    with pytest.raises(TfpoolError) as caught:
        loader.load(str(path), config, **options)
    message = caught.value.message
    assert "\n" not in message
    assert not any(noise in message for noise in ("[[", "{{node", "Traceback", ".cc:", "Original stack"))
    return caught.value


def test_the_good_one(path: Path, config: Any) -> None:
    loaded = loader.load(str(path), config)
    (signature,) = loaded.signatures
    assert signature.call(np.float32([2, 4]))[0].tolist() == [3.0, 4.0]
    loaded.close()
    assert loaded.session is None


def test_no_directory(path: Path, config: Any) -> None:
    error = error_of(path / "nowhere", config)
    assert type(error) is NotFound
    assert error.message == f"{path / 'nowhere'}: no such directory"


def test_no_graph(path: Path, config: Any) -> None:
    (path / "saved_model.pb").unlink()
    error = error_of(path, config)
    assert type(error) is NotFound
    assert error.message.startswith(f"{path}: no saved_model.pb in it; found ")
    assert "variables" in error.message


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_graph(path: Path, config: Any, keep: float) -> None:
    graph = path / "saved_model.pb"
    left = int(graph.stat().st_size * keep)
    os.truncate(graph, left)
    error = error_of(path, config)
    assert type(error) is InvalidArgument
    assert error.message == f"{graph}: got {left} bytes that are no SavedModel: truncated or corrupt"


def test_an_empty_graph(path: Path, config: Any) -> None:
    (path / "saved_model.pb").write_bytes(b"")
    error = error_of(path, config)
    assert type(error) is InvalidArgument
    assert error.message == f"{path}/saved_model.pb: got graphs tagged no graph at all, expected serve"


def test_wrong_tags(path: Path, config: Any) -> None:
    error = error_of(path, config, tags=("serve", "gpu"))
    assert type(error) is InvalidArgument
    assert error.message == f"{path}/saved_model.pb: got graphs tagged serve, expected serve, gpu"


def test_a_graph_that_cannot_be_read(path: Path, config: Any) -> None:
    (path / "saved_model.pb").unlink()
    (path / "saved_model.pb").symlink_to("/proc/self/mem")  # a file that even root cannot read from its start
    error = error_of(path, config)
    assert isinstance(error, FailedPrecondition | NotFound)
    assert str(path) in error.message


def test_no_variables(path: Path, config: Any) -> None:
    shutil.rmtree(path / "variables")
    error = error_of(path, config)
    assert type(error) is NotFound
    assert error.message == f"{path}: its variables are missing: no file variables/variables.index"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    file.write_bytes(bytes(len(file.read_bytes())))


@pytest.mark.parametrize("harm", [Path.unlink, cut, scribble])
@pytest.mark.parametrize("end", ["index", "data-00000-of-00001"])
def test_broken_variables(path: Path, config: Any, end: str, harm: Callable[[Path], None]) -> None:
    harm(path / "variables" / f"variables.{end}")
    error = error_of(path, config)
    if end == "index" and harm is Path.unlink:
        assert type(error) is NotFound
    else:
        assert type(error) is FailedPrecondition
        assert error.message.startswith(f"{path}/variables/variables: cannot be restored: ")


def test_removed_while_it_loads(path: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = restore.fill

    def remove_first(*arguments: Any) -> None:
        shutil.rmtree(path)
        fill(*arguments)

    monkeypatch.setattr(restore, "fill", remove_first)
    error = error_of(path, config)
    assert type(error) is NotFound
    assert error.message == f"{path}: it was removed while it was loading"


def test_an_unknown_operation(path: Path, config: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    graph = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    saved.meta_graphs[0].graph_def.node[0].op = "NoSuchOperation"
    graph.write_bytes(saved.SerializeToString())
    error = error_of(path, config)
    assert error.message.startswith(f"{path}: ")
    assert "NoSuchOperation" in error.message


def test_a_text_graph_loads(path: Path, config: Any) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (path / "saved_model.pb").unlink()
    (path / "saved_model.pbtxt").write_text(text_format.MessageToString(saved))
    loader.load(str(path), config).close()
    (path / "saved_model.pbtxt").write_text("meta_graphs { oh }")
    assert "no SavedModel" in error_of(path, config).message
