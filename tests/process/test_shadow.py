"""Shadow traffic and recordings: what is copied, compared and kept, and that nobody's answer suffers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tfpool.testing.fake_worker import POISON_VALUE, FakePool, model, until
from tfpool.wire.tensors import take_array

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.float32([[1, 2, 3, 9]])
SOON = 15.0


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[FakePool]:
    models = [
        model(directory, "numbered", versions=(1, 2, 3, 4, 5), version_policy="all"),
        model(directory, "add"),
        model(directory, "matrix"),
        model(directory, "double", versions=(1, 2), version_policy="all"),
    ]
    with FakePool(directory, models) as made:
        yield made


@pytest.fixture
def client(pool: FakePool) -> Iterator[Client]:
    with pool.client(timeout=SOON) as made:
        yield made
        for name in ("numbered", "double"):
            made.shadow(name, None)


def meter(client: Client, compared: int, model: str = "numbered") -> dict[str, Any]:
    """What a shadow has found, once so many have been compared, or had no answer."""

    def enough() -> dict[str, Any] | None:
        found = client.status(model)[0]["shadow"]
        return found if found["compared"] + found["failed"] + found["skipped"] >= compared else None

    found: dict[str, Any] = until(enough)
    return found


# -- shadows -------------------------------------------------------------------------------------------------------


def test_a_shadow_is_compared_and_dropped(client: Client) -> None:
    client.predict("numbered", X)
    assert client.shadow("numbered", "2:100")["shadow"]["version"] == 2
    before = client.stats()
    for i in range(10):
        x = X + 10 * i
        assert client.predict("numbered", x, version=1)["y"].tolist() == x.tolist()
    found = meter(client, 10)
    assert (found["copied"], found["compared"], found["failed"], found["mismatched"]) == (10, 10, 0, 0)
    assert found["max_abs_difference"] == 99.0, "y is x here, and 2 x there"
    assert (found["argmax_rows"], found["argmax_disagreements"]) == (20, 10), "of y it is the same, of turned never"
    after = client.stats()
    assert after["models"]["numbered"]["requests"] - before["models"]["numbered"]["requests"] == 10
    assert after["unroutable"] == before["unroutable"], "nobody is sent a shadow's answer"


def test_a_share_is_exact(client: Client) -> None:
    client.shadow("numbered", "2:10")
    replies = [client.submit("numbered", X, version=1) for _ in range(500)]
    replies += [client.submit("numbered", X, version=1) for _ in range(500)]
    for reply in replies:
        assert reply.result(SOON)["y"].tolist() == X.tolist()
    found = meter(client, 100)
    assert found["copied"] + found["skipped"] == 100
    assert found["compared"] == found["copied"]
    client.shadow("numbered", "2:10")
    assert meter(client, 100)["copied"] == found["copied"], "the same rule goes on"
    client.shadow("numbered", "2:11")
    assert client.status("numbered")[0]["shadow"]["copied"] == 0, "another one begins anew"


def test_the_shadow_itself_is_not_shadowed(client: Client) -> None:
    client.shadow("numbered", "2:100")
    client.predict("numbered", X, version=2)
    assert client.status("numbered")[0]["shadow"]["copied"] == 0
    client.predict("numbered", X)
    assert meter(client, 1)["max_abs_difference"] == 27.0


def test_a_shadow_that_fails_or_differs(client: Client) -> None:
    client.shadow("numbered", "2:100")
    poison = np.full((1, 4), POISON_VALUE, np.float32)
    assert client.predict("numbered", poison, version=1)["y"].tolist() == poison.tolist()
    assert meter(client, 1)["failed"] == 1
    with pytest.raises(InvalidArgument, match="a row of 7"):
        client.predict("numbered", poison, version=2)
    client.shadow("numbered", "3:100")  # which has no "turned"
    client.predict("numbered", X, version=1)
    assert meter(client, 1)["mismatched"] == 1
    client.shadow("numbered", "4:100")  # whose signature has another place, and this one's name
    client.predict("numbered", X, version=1)
    assert meter(client, 1)["max_abs_difference"] == 27.0
    client.predict("numbered", X, version=4, signature="other")
    client.shadow("numbered", "5:100")
    client.predict("numbered", X, version=4, signature="other")  # 5 has none of that name
    found = meter(client, 1)
    assert (found["copied"], found["skipped"]) == (0, 1)


def test_what_is_large_and_what_is_very_large(client: Client) -> None:
    client.shadow("double", "1:100")
    large, huge = np.ones((2, 50_000), np.float32), np.ones((2, 200_000), np.float32)
    for _ in range(3):
        assert client.predict("double", large)["y"].tolist() == (2 * large).tolist()
    assert client.predict("double", huge)["y"].tolist() == (2 * huge).tolist()
    assert client.predict("double", np.ones((1000, 2), np.float32))["y"].shape == (1000, 2)
    found = meter(client, 5, "double")
    assert (found["compared"], found["skipped"], found["max_abs_difference"]) == (3, 2, 0.0)


def test_nan_and_infinity_are_equal_to_themselves(client: Client) -> None:
    client.shadow("double", "1:100")
    odd = np.float32([[np.nan, np.inf, -np.inf, 1e38, 0.0]])
    client.predict("double", odd)
    assert meter(client, 1, "double")["max_abs_difference"] == 0.0


def test_clients_that_leave_in_the_middle(client: Client, pool: FakePool) -> None:
    """Whatever becomes of the one half of a pair, room for the next is there."""
    client.shadow("numbered", "2:100")
    for _ in range(30):
        with pool.client(timeout=SOON) as leaving:
            replies = [leaving.submit("numbered", X, version=1) for _ in range(200)]
            replies[0].cancel()
    until(lambda: not client.stats()["waiting_rows"])
    before = client.status("numbered")[0]["shadow"]["compared"]
    for i in range(1000):
        client.submit("numbered", X, version=1).add_done_callback(lambda reply: None)
        if i % 100 == 99:
            client.predict("numbered", X, version=1)
    until(lambda: client.status("numbered")[0]["shadow"]["compared"] >= before + 500)


def test_rules_that_make_no_sense(client: Client) -> None:
    for wrong in ("", "2", "2:0", "2:101", "x:1", "2:-1", "2:1:1"):
        with pytest.raises(InvalidArgument):
            client.shadow("numbered", wrong)
    with pytest.raises(FailedPrecondition, match="numbered:9 does not serve"):
        client.shadow("numbered", "9:10")
    with pytest.raises(NotFound):
        client.shadow("nothing", "1:10")
    assert client.shadow("numbered", None)["shadow"] is None


# -- recordings ----------------------------------------------------------------------------------------------------


def record(pool: FakePool, ask: Callable[[Client], object], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a recording that runs while ``ask`` asks has kept."""
    found: list[Any] = []

    def run() -> None:
        with pool.client(timeout=SOON) as recording:
            try:
                found.append(recording.record(*arguments, **options))
            except Exception as error:
                found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with pool.client(timeout=SOON) as client:
        while thread.is_alive():
            ask(client)
    if isinstance(found[0], Exception):
        raise found[0]
    kept: dict[str, Any] = found[0]
    return kept


def inputs(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        name: take_array(dtype, tuple(shape), [data] if payload is None else [data, payload])
        for name, dtype, shape, data, payload in sample["inputs"]
    }


def test_samples_are_what_was_sent(pool: FakePool) -> None:
    sent = [
        {
            "a": np.float32([[i, 1, 2], [i, 4, 5]]),
            "b": np.float32([[i], [7]]),
            "s": np.array([b"x" * (i % 3), f"text {i}".encode()], object),
        }
        for i in range(8)
    ]

    def ask(client: Client) -> None:
        for reply in [client.submit("add", one) for one in sent]:
            reply.result(SOON)

    kept = record(pool, ask, "add", 40)
    assert len(kept["samples"]) == 40
    assert (kept["version"], kept["path"]) == (1, str(pool.base("add") / "1"))
    texts = {tuple(one["s"].tolist()): one for one in sent}
    for sample in kept["samples"]:
        assert sample["signature"] == "serving_default"
        got = inputs(sample)
        meant = texts[tuple(got["s"].tolist())]
        assert got.keys() == meant.keys()
        for name, array in got.items():
            assert array.dtype == meant[name].dtype
            assert array.tolist() == meant[name].tolist()


@pytest.mark.parametrize("rows", [1, 3, 16_000, 200])
def test_bare_arrays_by_value_and_by_reference(pool: FakePool, rows: int) -> None:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    kept = record(pool, lambda client: client.predict("numbered", x, version=4), "numbered", 3, version=4)
    assert kept["version"] == 4
    assert [inputs(sample)["x"].tolist() for sample in kept["samples"]] == [x.tolist()] * 3


def test_whole_tensors(pool: FakePool) -> None:
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    kept = record(pool, lambda client: client.predict("matrix", x), "matrix", 2)
    assert [inputs(sample)["x"].tolist() for sample in kept["samples"]] == [x.tolist()] * 2


def test_only_what_reaches_the_version_is_kept_until_time_is_up(pool: FakePool) -> None:
    began = time.monotonic()
    kept = record(pool, lambda client: client.predict("numbered", X, version=1), "numbered", 5, 0.3, version=2)
    assert kept["samples"] == []
    assert 0.3 <= time.monotonic() - began < 3.0


def test_recordings_that_make_no_sense(pool: FakePool, client: Client) -> None:
    for options in ({"count": 0}, {"count": 1001}, {"seconds": 0.0}, {"seconds": 1e6}, {"seconds": float("nan")}):
        with pytest.raises(InvalidArgument):
            client.admin("record", model="numbered", **options)
    with pytest.raises(NotFound, match="has no version 9"):
        client.record("numbered", version=9)


def test_only_so_many_recordings_at_once(pool: FakePool, client: Client) -> None:
    kept: list[int] = []
    threads = [threading.Thread(target=lambda: kept.append(_recorded(pool))) for _ in range(10)]
    for thread in threads:
        thread.start()
    until(lambda: kept.count(-1) == 2)
    client.predict("numbered", X)
    for thread in threads:
        thread.join()
    assert sorted(kept) == [-1, -1, *[1] * 8]
    with pytest.raises(DeadlineExceeded):
        client.admin("record", model="numbered", timeout=0.05)  # there is room again


def _recorded(pool: FakePool) -> int:
    """How many requests a recording of one has kept; -1 where it was refused."""
    with pool.client() as client:
        try:
            return len(client.record("numbered", 1, 20.0)["samples"])
        except ResourceExhausted:
            return -1
