"""Versions that come, go, break and are repaired while requests are served; no request fails that need not."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import FailedPrecondition, NotFound
from tfpool.settings import Transition
from tfpool.testing.fake_worker import FakePool, Orders, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((2, 4), np.float32)
SOON = 15.0


def states(client: Client, model: str = "numbered") -> dict[int, str]:
    """Of the versions that are not on their way out."""
    return {row["version"]: row["state"] for row in client.status(model) if row["state"] != "DRAINING"}


def answers(client: Client, model: str = "numbered", **options: Any) -> float:
    """The version that answers: what the model multiplies with."""
    return float(client.predict(model, X, timeout=SOON, **options)["y"][0, 0])


@contextmanager
def under_load(client: Client, threads: int = 4, **options: Any) -> Iterator[list[float]]:
    """Requests from several threads all the while; which versions answered, in order. None may fail."""
    stop = threading.Event()
    seen: list[float] = []
    failures: list[BaseException] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(answers(client, **options))
            except BaseException as error:
                failures.append(error)
                return

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    try:
        until(lambda: len(seen) > 20 or failures)
        yield seen
        mark = len(seen)
        until(lambda: len(seen) > mark + 20 or failures)
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert failures == []


def test_a_new_version_takes_over_under_load(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"replicas": (2, 2)})])
    base = pool.base("numbered")
    with pool.client() as client:
        with under_load(client) as seen:
            for number in (2, 3, 4):
                version(base, number)
                until(lambda number=number: states(client) == {number: "AVAILABLE"}, SOON)
                until(lambda number=number: number in seen)
        assert not [(a, b) for a, b in pairwise(seen) if a > b + 1], "nobody goes back"
        assert set(seen) == {1.0, 2.0, 3.0, 4.0}
        assert answers(client) == 4.0
        with pytest.raises(NotFound, match="has no version 1; it has 4"):
            answers(client, version=1)
        assert client.stats()["models"]["numbered"]["errors"] == {"NOT_FOUND": 1}


def test_a_version_is_waited_for_while_it_is_copied(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {})])
    base = pool.base("numbered")
    (base / "2" / "variables").mkdir(parents=True)
    (base / "2" / "variables" / "variables.index").write_text("half")
    with pool.client() as client:
        version(base, 3)
        until(lambda: states(client) == {3: "AVAILABLE"}, SOON)
        shutil.rmtree(base / "3")
        (base / "3").mkdir()  # there again, without a graph
        with under_load(client) as seen:
            (base / "2" / "saved_model.pb").touch()
            until(lambda: states(client) == {2: "AVAILABLE"}, SOON)
        assert set(seen) == {3.0, 2.0}


def test_policies(make_pool: MakePool) -> None:
    three = {"versions": (1, 2, 3)}
    pool = make_pool(
        [
            ("numbered", {"name": "two", **three, "version_policy": "latest:2"}),
            ("numbered", {"name": "all", **three, "version_policy": "all"}),
            ("numbered", {"name": "some", **three, "version_policy": (1, 3, 5)}),
        ]
    )
    with pool.client() as client:
        assert states(client, "two") == dict.fromkeys((2, 3), "AVAILABLE")
        assert states(client, "all") == dict.fromkeys((1, 2, 3), "AVAILABLE")
        assert states(client, "some") == dict.fromkeys((1, 3), "AVAILABLE")
        assert answers(client, "all", version=2) == 2.0
        assert answers(client, "some") == 3.0
        with pytest.raises(NotFound, match="has no version 2; it has 1, 3"):
            answers(client, "some", version=2)
        for name in ("two", "all", "some"):
            version(pool.base(name), 4)
            version(pool.base(name), 5)
        until(lambda: states(client, "two") == dict.fromkeys((4, 5), "AVAILABLE"), SOON)
        until(lambda: states(client, "all") == dict.fromkeys((1, 2, 3, 4, 5), "AVAILABLE"), SOON)
        until(lambda: states(client, "some") == dict.fromkeys((1, 3, 5), "AVAILABLE"), SOON)
        shutil.rmtree(pool.base("all") / "5")
        shutil.rmtree(pool.base("all") / "2")
        until(lambda: states(client, "all") == dict.fromkeys((1, 3, 4), "AVAILABLE"), SOON)
        assert answers(client, "all") == 4.0


def test_a_broken_version_leaves_the_old_one_and_serves_when_it_is_repaired(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {}), ("double", {})])
    with pool.client() as client:
        with under_load(client) as seen:
            made = version(pool.base("numbered"), 2, fail="torn")
            until(lambda: states(client) == {1: "AVAILABLE", 2: "FAILED"}, SOON)
            row = client.status("numbered")[1]
            assert row["error"] == f"{made}: torn"
            assert row["workers"] == []
            with pytest.raises(FailedPrecondition, match=r"numbered:2 failed to load: .*torn"):
                answers(client, version=2)
            assert set(seen) == {1.0}
            Orders(made).fail.unlink()
            (made / "saved_model.pb").write_text("repaired")
            until(lambda: states(client) == {2: "AVAILABLE"}, SOON)
        assert set(seen) == {1.0, 2.0}
        until(lambda: len(client.status("numbered")) == 1, SOON, "version 1 has left")
        (row,) = client.status("numbered")
        assert row["error"] is None
        assert len(row["workers"]) == 1, "one that it failed on does not hold it"


def test_a_graph_that_cannot_be_read_is_repaired_or_loaded_by_hand(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {})], load_retries=0)
    with pool.client() as client:
        made = version(pool.base("numbered"), 2, garbled="no graph")
        until(lambda: states(client) == {1: "AVAILABLE", 2: "FAILED"}, SOON)
        with pytest.raises(FailedPrecondition, match="no graph"):
            client.load("numbered", 2, timeout=SOON)
        Orders(made).garbled.unlink()
        assert client.load("numbered", 2, timeout=SOON)["state"] == "AVAILABLE"
        until(lambda: states(client) == {2: "AVAILABLE"}, SOON)


def test_a_failed_load_is_tried_again(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"fail": "not yet"})])
    with pool.client() as client:
        assert states(client, "double") == {1: "FAILED"}
        Orders(pool.base("double") / "1").fail.unlink()  # no mark of the graph changes
        until(lambda: states(client, "double") == {1: "AVAILABLE"}, SOON)


def test_a_directory_that_appears_later(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": ()}), ("double", {})])
    with pool.client() as client:
        (row,) = client.status("numbered")
        assert (row["version"], row["state"]) == (0, "FAILED")
        assert row["error"].endswith("/numbered: no such directory")
        with pytest.raises(NotFound, match="no such directory"):
            answers(client)
        assert client.predict("double", X)["y"].shape == (2, 4), "one that is missing does not hold others up"
        version(pool.base("numbered"), 3)
        until(lambda: states(client) == {3: "AVAILABLE"}, SOON)
        os.rename(pool.base("numbered"), pool.directory / "away")
        version(pool.base("double"), 2)
        until(lambda: states(client, "double") == {2: "AVAILABLE"}, SOON)
        assert answers(client) == 3.0, "what is loaded serves on while its directory is away"


def test_the_old_one_goes_first_where_memory_matters_more(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"transition": Transition.RESOURCE})])
    with pool.client() as client:
        most = [0]

        def swapped() -> bool:
            rows = [row for row in client.status("numbered") if row["version"]]
            held = [row for row in rows if row["state"] in ("LOADING", "WARMING", "AVAILABLE", "DRAINING")]
            most[0] = max(most[0], len(held))
            return [(row["version"], row["state"]) for row in rows] == [(2, "AVAILABLE")]

        version(pool.base("numbered"), 2)
        until(swapped, SOON)
        assert most[0] == 1
        assert answers(client) == 2.0


def test_a_slow_load_is_shown_and_does_not_hold_up_others(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {}), ("double", {})], load_concurrency=2)
    with pool.client() as client:
        made = version(pool.base("numbered"), 2, hold="")
        until(lambda: states(client) == {1: "AVAILABLE", 2: "LOADING"}, SOON)
        version(pool.base("double"), 2)
        until(lambda: states(client, "double") == {2: "AVAILABLE"}, SOON)
        assert answers(client) == 1.0
        version(pool.base("numbered"), 3)
        until(lambda: states(client) == {3: "AVAILABLE"}, SOON)  # 2 is no longer wanted, and goes as it comes
        Orders(made).hold.unlink()
        until(lambda: [row["version"] for row in client.status("numbered")] == [3], SOON)


def test_workers_killed_in_a_swap_cost_no_request(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"replicas": (2, 2)})])
    with pool.client() as client, under_load(client) as seen:
        for number in (2, 3):
            made = version(pool.base("numbered"), number, hold="")
            until(lambda number=number: states(client).get(number) == "LOADING", SOON)
            (victim, *_) = [worker["pid"] for worker in client.workers()]
            os.kill(victim, 9)
            Orders(made).hold.unlink()
            until(lambda number=number: states(client) == {number: "AVAILABLE"}, SOON)
            until(lambda number=number: number in seen)


def test_names_of_versions(make_pool: MakePool) -> None:
    """Leading zeros, other names, links, a directory that is a model itself."""
    pool = make_pool([("numbered", {"versions": ()}), ("double", {"versions": ()})])
    base, other = pool.base("numbered"), pool.base("double")
    with pool.client() as client:
        base.mkdir()
        (base / "latest").symlink_to(base)  # an endless one
        version(other, 7)
        os.rename(other / "7", base / "0002")
        (base / "notes").mkdir()
        until(lambda: states(client) == {2: "AVAILABLE"}, SOON)
        (base / "9").symlink_to(base / "nowhere")
        (base / "8").symlink_to(base / "8")
        (other / "saved_model.pb").touch()
        until(lambda: states(client, "double") == {1: "AVAILABLE"}, SOON)
        assert states(client) == {2: "AVAILABLE"}


def test_looking_once_or_never(make_pool: MakePool) -> None:
    for poll_s in (0.0, None):
        pool = make_pool([("numbered", {})], poll_s=poll_s, workers=1)
        with pool.client() as client:
            if poll_s is None:
                (row,) = client.status("numbered")
                assert (row["version"], row["state"]) == (0, "NEW")
                assert client.load("numbered", timeout=SOON)["version"] == 1
            assert answers(client) == 1.0
            version(pool.base("numbered"), 2)
            assert client.load("numbered", timeout=SOON)["version"] == 2, "a load looks"
            assert answers(client) == 2.0
            until(lambda: states(client) == {2: "AVAILABLE"}, SOON)
