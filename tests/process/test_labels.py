"""Labels and splits: exact shares, flips without a gap, versions that labels hold, labels that outlive a broker."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.errors import FailedPrecondition, InvalidArgument, NotFound, TfpoolError
from tfpool.settings import Loading
from tfpool.testing.fake_worker import FakePool, Orders, model, until, version

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((2, 4), np.float32)
SOON = 15.0


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[FakePool]:
    missing = (("stable", ((1, 1),)), ("gone", ((9, 1),)), ("half", ((2, 1), (9, 1))))
    models = [
        model(directory, "numbered", versions=(1, 2, 3), version_policy="all"),
        model(directory, "numbered", "newest", versions=(1, 2)),
        model(directory, "numbered", "missing", versions=(1, 2), labels=missing),
        model(directory, "numbered", "lazy", versions=(1, 2), version_policy="all", preload=Loading.LAZY),
    ]
    with FakePool(directory, models) as made:
        yield made


@pytest.fixture
def client(pool: FakePool) -> Iterator[Client]:
    with pool.client(timeout=SOON) as made:
        yield made


def answers(client: Client, model: str = "numbered", label: str = "") -> int:
    return int(client.predict(model, X, label=label)["y"][0, 0])


def rows(client: Client, model: str) -> dict[int, tuple[str, list[str]]]:
    return {row["version"]: (row["state"], row["labels"]) for row in client.status(model)}


def test_labels_are_set_flipped_and_taken_away(client: Client) -> None:
    changed = client.label("numbered", {"stable": "1", "canary": "3"})
    assert changed == {"name": "numbered", "labels": {"stable": "1", "canary": "3"}}
    assert (answers(client, label="stable"), answers(client, label="canary"), answers(client)) == (1, 3, 3)
    assert client.label("numbered", {"stable": "2", "canary": None})["labels"] == {"stable": "2"}
    assert answers(client, label="stable") == 2
    with pytest.raises(NotFound, match="has no label 'canary'; it has stable"):
        answers(client, label="canary")
    with pytest.raises(NotFound, match="has no label 'canary'; it has stable"):
        client.label("numbered", {"canary": None})
    with pytest.raises(InvalidArgument, match="got both version 1 and label 'stable'"):
        client.predict("numbered", X, label="stable", version=1)
    assert rows(client, "numbered")[2] == ("AVAILABLE", ["stable"])


@pytest.mark.parametrize("value", ["", "x", "0", "1:0", "1:1,1:2", "-1", "1:-1", 7.5, ["1"], {"1": 2}, "9" * 30])
def test_what_is_no_split_changes_nothing(client: Client, value: object) -> None:
    before = client.label("numbered", {"stable": "1"})["labels"]
    with pytest.raises(InvalidArgument):
        client.label("numbered", {"other": "2", "stable": value})  # type: ignore[dict-item]
    assert client.status("numbered")[0]["label_splits"] == before


def test_labels_lead_to_versions_that_serve(client: Client) -> None:
    with pytest.raises(FailedPrecondition, match="'prod': numbered:9 is not there, expected a version that serves"):
        client.label("numbered", {"prod": "1:90,9:10"})
    with pytest.raises(FailedPrecondition, match=r"numbered:9 is not there"):
        client.label("numbered", {"stable": "1", "prod": "9"})
    assert "prod" not in client.status("numbered")[0]["label_splits"]
    assert client.label("numbered", {"prod": "1:90,9:0"})["labels"]["prod"] == "1:90,9:0"
    assert answers(client, label="prod") == 1
    with pytest.raises(FailedPrecondition, match="lazy:2 is UNLOADED"):
        client.label("lazy", {"prod": "2"})
    assert answers(client, "lazy") == 2
    client.label("lazy", {"prod": "2"})
    assert answers(client, "lazy", "prod") == 2


def test_a_split_is_exact(client: Client) -> None:
    """Of submits that travel together, and of others that come one by one, whatever else changes meanwhile."""
    client.label("numbered", {"prod": "1:90,2:10"})
    together = Counter(
        int(reply.result(SOON)["y"][0, 0])
        for _ in range(10)
        for reply in [client.submit("numbered", X, label="prod") for _ in range(100)]
    )
    assert together == {1: 900, 2: 100}
    apart: Counter[int] = Counter()
    for turn in range(100):
        apart[answers(client, label="prod")] += 1
        if turn % 7 == 0:  # what every key means is found out anew
            client.label("newest", {"turn": "2"})
    assert apart == {1: 90, 2: 10}
    client.label("newest", {"turn": None})


def test_a_flip_has_no_gap(client: Client) -> None:
    client.label("numbered", {"live": "1"})
    stop = threading.Event()
    seen: list[int] = []
    failures: list[TfpoolError] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(answers(client, label="live"))
            except TfpoolError as error:
                failures.append(error)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for turn in range(20):
        chosen = ("1", "2", "1:1,3:2")[turn % 3]
        client.label("numbered", {"live": chosen})
        mark = len(seen)
        until(lambda mark=mark: len(seen) > mark + 6)
    stop.set()
    for thread in asking:
        thread.join()
    assert failures == []
    assert set(seen) == {1, 2, 3}


def test_a_version_stays_while_a_label_leads_to_it(client: Client, pool: FakePool) -> None:
    assert answers(client, "newest") == 2
    client.label("newest", {"stable": "2"})
    version(pool.base("newest"), 4)
    until(lambda: rows(client, "newest") == {2: ("AVAILABLE", ["stable"]), 4: ("AVAILABLE", [])}, SOON)
    assert (answers(client, "newest"), answers(client, "newest", "stable")) == (4, 2)
    shutil.rmtree(pool.base("newest") / "2")
    until(lambda: list(rows(client, "newest")) == [4], SOON)
    with pytest.raises(FailedPrecondition, match=r"label 'stable': model 'newest' has no version 2; it has 4"):
        answers(client, "newest", "stable")
    client.label("newest", {"stable": None})


def test_a_label_of_the_configuration_that_leads_nowhere(client: Client) -> None:
    assert rows(client, "missing") == {1: ("AVAILABLE", ["stable"]), 2: ("AVAILABLE", ["half"])}
    assert (answers(client, "missing"), answers(client, "missing", "stable")) == (2, 1)
    assert {answers(client, "missing", "half") for _ in range(4)} == {2}, "the part that serves has it all"
    with pytest.raises(FailedPrecondition, match="label 'gone': model 'missing' has no version 9; it has 1, 2"):
        answers(client, "missing", "gone")


def test_a_split_over_versions_that_must_be_loaded_first(make_pool: MakePool) -> None:
    """Who waits for the one waits for the other next, and whoever finds no place there is told."""
    split = (("both", ((1, 1), (2, 1))),)
    lazy = {"versions": (1, 2), "version_policy": "all", "preload": Loading.LAZY, "labels": split, "hold": ""}
    pool = make_pool([("numbered", {**lazy, "max_queue_rows": 8})], workers=1)
    with pool.client(timeout=SOON) as client:
        both = [client.submit("numbered", X, label="both") for _ in range(3)]
        until(lambda: rows(client, "numbered")[1][0] == "LOADING")
        second = [client.submit("numbered", X, version=2) for _ in range(4)]
        until(lambda: rows(client, "numbered")[2][0] == "NEW")
        Orders(pool.base("numbered") / "1").hold.unlink()
        refused = 0
        for reply in both:
            with pytest.raises(TfpoolError, match="8 rows wait for it; max_queue_rows is 8"):
                reply.result(SOON)
            refused += 1
        assert refused == 3
        Orders(pool.base("numbered") / "2").hold.unlink()
        assert [int(reply.result(SOON)["y"][0, 0]) for reply in second] == [2] * 4
        assert {answers(client, label="both") for _ in range(2)} == {1, 2}


def test_labels_outlive_a_broker(make_pool: MakePool) -> None:
    pool = make_pool([("numbered", {"versions": (1, 2), "labels": (("stable", ((2, 1),)),), "version_policy": "all"})])
    with pool.client(timeout=SOON) as client:
        client.label("numbered", {"stable": "1", "prod": "1:3,2:1"})
    pool.kill_broker("1:3,2:1")
    with pool.client(timeout=SOON) as client:
        assert answers(client, label="stable") == 1
        assert Counter(answers(client, label="prod") for _ in range(8)) == {1: 6, 2: 2}
