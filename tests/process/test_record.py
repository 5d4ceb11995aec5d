"""``tfpool record``: live requests become a warm-up file, which a worker then replays."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tfpool.cli.main import main
from tfpool.client.sync import Client
from tfpool.errors import InvalidArgument
from tfpool.repository import warmup_file
from tfpool.repository.warmup_file import Sample
from tfpool.testing.fake_worker import FakePool

pytestmark = pytest.mark.process
X = np.arange(8, dtype=np.float32).reshape(2, 4)
LARGE = np.arange(600_000, dtype=np.float32).reshape(2, -1)


@pytest.fixture
def file(pool: FakePool) -> Iterator[Path]:
    """Where the default file of model ``double`` goes."""
    path = Path(warmup_file.path_in(str(pool.directory / "double" / "1")))
    yield path
    path.unlink(missing_ok=True)


def tfpool(pool: FakePool, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--connect", pool.endpoint, "--admin", pool.admin])


def while_asked(pool: FakePool, inputs: Any, *words: str) -> Result:
    """The command's outcome, the model ``double`` being asked all the while."""
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(tfpool(pool, *words)))
    thread.start()
    with pool.client(timeout=20.0) as client:
        while thread.is_alive():
            client.predict("double", inputs)
    return found[0]


def test_into_the_version_directory(pool: FakePool, file: Path) -> None:
    done = while_asked(pool, X, "record", "double", "--count", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"wrote 3 requests of double:1 to {file}\n"
    samples = [sample for (sample,) in warmup_file.read(str(file))]
    assert [sample.signature for sample in samples] == ["serving_default"] * 3
    assert all(sample.inputs["x"].tolist() == X.tolist() for sample in samples)


def test_what_is_there_is_kept(pool: FakePool, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    done = while_asked(pool, X, "record", "double:1", "--count", "1")
    assert done.exit_code == 1
    assert f"FAILED_PRECONDITION: {file} is there already; write over it with --force" in done.stderr
    assert file.read_text() == "mine"
    done = while_asked(pool, X, "record", "double:1", "--count", "1", "--force", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"model": "double", "version": 1, "file": str(file), "records": 1}
    assert len(list(warmup_file.read(str(file)))) == 1


def test_into_a_file_of_ones_own(pool: FakePool, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "requests"
    done = while_asked(pool, LARGE, "record", "double", "--count", "4", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert not file.exists()
    for (sample,) in warmup_file.read(str(target)):
        assert np.array_equal(sample.inputs["x"], LARGE)
    again = tfpool(pool, "record", "double", "-o", str(target))
    assert again.exit_code == 1
    assert "is there already" in again.stderr


def test_nothing_to_record(pool: FakePool, file: Path) -> None:
    done = tfpool(pool, "record", "double", "--seconds", "0.1")
    assert done.exit_code == 1
    assert "double:1 answered no request in 0.1 s: nothing written" in done.stderr
    assert not file.exists()


@pytest.mark.parametrize("words", [["--count", "0"], ["--count", "1001"], ["--seconds", "no"]])
def test_bad_usage(pool: FakePool, words: list[str]) -> None:
    assert tfpool(pool, "record", "double", *words).exit_code == 2


# -- replayed when it loads ----------------------------------------------------------------------------------------


def reloaded(client: Client) -> None:
    client.unload("counter")
    client.load("counter")


def test_each_record_is_run_once(pool: FakePool, client: Client) -> None:
    path = Path(warmup_file.path_in(str(pool.directory / "counter" / "1")))
    warmup_file.write(str(path), "counter", 1, [Sample("", {"x": np.float32([1])})] * 5)
    try:
        reloaded(client)
        assert client.predict("counter", np.float32([0]))["total"].tolist() == [6.0]
    finally:
        path.unlink()
    reloaded(client)
    assert client.predict("counter", np.float32([0]))["total"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        (Sample("other", {"x": X}), "got signature 'other', expected one of serving_default"),
        (Sample("", {"y": X[0]}), "got inputs y, expected x"),
        (Sample("", {}), "got inputs none, expected x"),
        (Sample("", {"x": X.astype(np.int64)}), "got int64 for input x: float32"),
    ],
)
def test_a_bad_record_fails_the_load(pool: FakePool, client: Client, sample: Sample, match: str) -> None:
    path = Path(warmup_file.path_in(str(pool.directory / "counter" / "1")))
    warmup_file.write(str(path), "counter", 1, [Sample("", {"x": np.float32([1])}), sample])
    try:
        with pytest.raises(InvalidArgument) as caught:
            reloaded(client)
    finally:
        path.unlink()
    assert f"{path}, record 2: " in caught.value.message
    assert match in caught.value.message
    client.load("counter")
    assert client.predict("counter", np.float32([0]))["total"].tolist() == [1.0]
