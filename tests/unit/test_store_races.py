"""Several processes at one store: each does at random whatever may be done, and looks whether what it finds is whole.

``python -m tests.unit.test_store_races DIRECTORY SEED ROUNDS`` is one of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.unit.test_store_shelf import put
from tfpool.errors import FailedPrecondition, NotFound
from tfpool.store.manifest import GRAPH, WEIGHTS
from tfpool.store.shelf import Shelf
from tfpool.store.sweep import sweep

CONTENTS = 4
PROCESSES = 4
ROUNDS = 150


def bodies(rng: random.Random) -> dict[str, bytes]:
    """Files of one draft, which say that they belong together."""
    sign = rng.randbytes(16)
    return {GRAPH: sign * rng.randrange(1, 100), WEIGHTS: sign * rng.randrange(641, 2000)}


def run(directory: str, seed: int, rounds: int) -> None:
    shelf, rng = Shelf(directory), random.Random(seed)
    shelf.prepare()
    found = 0
    for _ in range(rounds):
        number = rng.randrange(CONTENTS)
        what = rng.choices(("put", "look", "sweep", "remove", "lock"), (4, 8, 1, 1, 1))[0]
        entries = [entry for entry in map(shelf.entry, shelf.keys()) if entry is not None]
        if what == "put":
            entry = put(shelf, number, bodies(rng))
            assert entry.manifest.content == f"{number:064x}"
        elif what == "sweep":
            sweep(shelf, rng.choice((-1, 20_000, 1 << 30)))
        elif what == "lock":
            with shelf.lock(f"{number:032x}") as mine:
                if mine:
                    alone(os.path.join(directory, f"holder-{number}"))
        elif entries and what == "remove":
            shelf.remove(rng.choice(entries).key)
        elif entries:
            entry = rng.choice(entries)
            shelf.touch(entry.key)
            try:
                with shelf.open(entry) as files:
                    assert files.weights is not None
                    graph, weights = os.read(files.graph, 16), os.read(files.weights, 16)
                    assert graph == weights
                    found += 1
            except NotFound:
                pass  # it was removed
            except FailedPrecondition:
                if shelf.entry(entry.key) == entry:  # it was not replaced
                    raise
    print(found)


def alone(path: str) -> None:
    """Raises FileExistsError where another is here too."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def test_many_at_a_time_find_only_what_is_whole(tmp_path: Path) -> None:
    directory = str(tmp_path / "store")
    command = [sys.executable, "-m", "tests.unit.test_store_races", directory]
    started = [
        subprocess.Popen([*command, str(seed), str(ROUNDS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(PROCESSES)
    ]
    ended = [(*one.communicate(timeout=100), one.returncode) for one in started]
    assert [error for _, error, status in ended if status] == []
    assert sum(int(found) for found, _, _ in ended) > ROUNDS / 10
    shelf = Shelf(directory)
    for entry in map(shelf.read, shelf.keys()):
        shelf.verify(entry)
    sweep(shelf, 1 << 30)
    assert os.listdir(os.path.join(directory, "drafts")) == []
    assert {len(name) for name in os.listdir(os.path.join(directory, "index"))} <= {64}


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
