"""Pools without TensorFlow; see tfpool.testing.fake_worker."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfpool.client.sync import Client
from tfpool.testing.fake_worker import FakePool, model
from tfpool.testing.fronts import Web, await_front, free_address

MakePool = Callable[..., FakePool]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A short path: the kernel allows 107 bytes for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="tfp-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[FakePool]:
    """Two workers and one model of each kind."""
    models = [
        model(directory, "double", max_batch_size=8),
        model(directory, "echo"),
        model(directory, "add"),
        model(directory, "text"),
        model(directory, "matrix"),
        model(directory, "slow", max_batch_size=1, replicas=(2, 2)),
        model(directory, "slow", "batched_slow", max_queue_rows=4),
        model(directory, "crash", replicas=(2, 2)),
        model(directory, "poison"),
        model(directory, "wrong"),
        model(directory, "spill"),
        model(directory, "counter"),
        model(directory, "broken"),
    ]
    with FakePool(directory, models) as made:
        yield made


@pytest.fixture(scope="module")
def front(directory: Path) -> Iterator[FakePool]:
    """A pool with a gateway, at ``front.settings.server.http`` and ``.grpc``."""
    place = directory / "front"
    place.mkdir()
    models = [
        model(place, "double", max_batch_size=8),
        model(place, "echo", versions=(1, 2), version_policy="all", labels=(("stable", ((1, 1),)),)),
        model(place, "add"),
        model(place, "text"),
        model(place, "matrix"),
        model(place, "slow"),
        model(place, "broken"),
    ]
    server = {"http": free_address(), "grpc": free_address()}
    with FakePool(place, models, server=server) as made:
        for address in server.values():
            await_front(address)
        yield made


@pytest.fixture
def web(front: FakePool) -> Iterator[Web]:
    made = Web(str(front.settings.server.http))
    yield made
    made.close()


@pytest.fixture
def client(pool: FakePool) -> Iterator[Client]:
    with pool.client(timeout=20.0) as made:
        yield made


@pytest.fixture
def make_pool() -> Iterator[Callable[..., FakePool]]:
    """Pools of a test's own: ``make_pool([(kind, options), ...], workers=1)``."""
    made: list[FakePool] = []
    places: list[Path] = []

    def make(kinds: list[tuple[str, dict[str, Any]]], **options: Any) -> FakePool:
        place = Path(tempfile.mkdtemp(prefix="tfp-"))
        places.append(place)
        made.append(FakePool(place, [model(place, kind, **keys) for kind, keys in kinds], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for place in places:
        shutil.rmtree(place)
