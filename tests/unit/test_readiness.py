from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from tfpool.errors import DeadlineExceeded, NotFound, TfpoolError
from tfpool.gateway import readiness
from tfpool.gateway.readiness import FRESH_SECONDS, Kept, Readiness, Report

T = TypeVar("T")


def row(name: str = "m", version: int = 1, state: str = "AVAILABLE", **more: Any) -> dict[str, Any]:
    proven = None if state in ("NEW", "LOADING", "FAILED") else 0.1
    basics = {"name": name, "version": version, "state": state, "labels": [], "error": None, "load_seconds": proven}
    return {**basics, "loaded": "serve", **more}


class Pool:
    """A broker that knows ``rows``, or raises ``error``; ``asked`` counts its answers by verb."""

    def __init__(self, *rows: dict[str, Any], settled: bool = True, workers_ready: int = 1) -> None:
        self.rows = list(rows)
        self.progress = {"settled": settled, "workers_ready": workers_ready}
        self.error: TfpoolError | None = None
        self.asked: dict[str, int] = {}
        self.gateway: Any = SimpleNamespace(client=self, draining=False)

    async def call(self, verb: str, timeout: float) -> Any:
        self.asked[verb] = self.asked.get(verb, 0) + 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return {"models": self.rows, "progress": self.progress}[verb]

    def report(self) -> Report:
        return asyncio.run(Readiness(self.gateway).report())

    def ready(self, *target: Any) -> bool:
        return asyncio.run(Readiness(self.gateway).model(*target))

    def why_not(self, *target: Any) -> str:
        return asyncio.run(Readiness(self.gateway).why_not(*target))


@pytest.mark.parametrize("state", ["NEW", "LOADING", "WARMING", "DRAINING", "UNLOADED", "FAILED"])
def test_a_model_is_ready_only_while_a_worker_serves_it(state: str) -> None:
    assert Pool(row()).ready("m")
    assert not Pool(row(state=state)).ready("m")
    assert Pool(row(state=state, error="no room")).why_not("m") == f"m:1 is {state}: no room"


def test_a_model_that_is_not_there_is_not_ready() -> None:
    pool = Pool(row(labels=["stable"]))
    for target in (("other",), ("m", 2), ("m", 0, "canary")):
        assert not pool.ready(*target)
        with pytest.raises(NotFound):
            pool.why_not(*target)


def test_a_version_and_a_label_are_ready_by_themselves() -> None:
    pool = Pool(row(version=1, labels=["stable"]), row(version=2, state="LOADING", labels=["canary"]))
    assert [pool.ready("m", n) for n in (1, 2)] == [True, False]
    assert [pool.ready("m", 0, label) for label in ("stable", "canary")] == [True, False]


def test_the_newest_that_has_served_counts() -> None:
    assert Pool(row(version=1), row(version=2, state="LOADING")).ready("m"), "requests still go to 1"
    assert Pool(row(version=1), row(version=2, state="FAILED")).ready("m")
    assert Pool(row(version=1), row(version=2, state="UNLOADED", loaded="off")).ready("m")
    died = row(version=2, state="NEW", load_seconds=0.1)
    assert not Pool(row(version=1), died).ready("m"), "requests wait for 2"


def test_a_label_that_is_split_passes_over_what_failed() -> None:
    one = row(version=1, labels=["split"])
    assert Pool(one, row(version=2, state="FAILED", labels=["split"])).ready("m", 0, "split")
    assert not Pool(one, row(version=2, state="NEW", labels=["split"])).ready("m", 0, "split")
    assert not Pool(row(version=1, state="FAILED", labels=["split"])).ready("m", 0, "split")


def test_nothing_is_ready_while_the_pool_ends() -> None:
    pool = Pool(row())
    pool.gateway.draining = True
    assert pool.report() == Report("the pool is about to end")
    assert not pool.ready("m")


def test_nothing_is_ready_without_a_broker() -> None:
    pool = Pool(row())
    pool.error = DeadlineExceeded("too late")
    assert pool.report() == Report("the broker does not answer: too late")
    assert not pool.ready("m")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], Report()),
        ([row("a"), row("b")], Report()),
        ([row("a"), row("b", state="FAILED", error="bad")], Report(failed={"b": "bad"})),
        ([row("a"), row("b", state="UNLOADED", loaded="on demand")], Report()),
        ([row("a", state="LOADING", loaded="on demand")], Report()),
        ([row("a"), row("b", state="NEW")], Report("these do not serve: b", {"b": "NEW"})),
        ([row("a", 1), row("a", 2, "LOADING")], Report()),
    ],
    ids=["none", "all", "failed", "lazy", "lazy-loading", "died", "new-version"],
)
def test_the_pool_is_ready_when_what_shall_serve_does_or_has_failed(
    rows: list[dict[str, Any]], expected: Report
) -> None:
    found = Pool(*rows).report()
    assert found == expected
    assert found.ready == (not expected.reason)


def test_the_pool_is_not_ready_before_it_has_settled_once() -> None:
    pool = Pool(settled=False)
    probed = Readiness(pool.gateway)

    async def reports() -> list[str]:
        found = []
        for settled in (False, True, False):
            pool.progress = {"settled": settled, "workers_ready": 1}
            probed._progress._until = 0.0
            found.append((await probed.report()).reason)
        return found

    assert asyncio.run(reports()) == ["the pool is starting", "", ""]


def test_the_pool_is_not_ready_without_workers() -> None:
    lazy = row(state="UNLOADED", loaded="on demand")
    assert Pool(lazy, workers_ready=0).report() == Report("no worker is ready")


# -- how often the broker is asked -------------------------------------------------------------------------------------


def test_many_probes_ask_once() -> None:
    pool = Pool(row())

    async def probe() -> list[bool]:
        probed = Readiness(pool.gateway)
        found = await asyncio.gather(*(probed.model("m") for _ in range(50)))
        return [*found, await probed.model("m")]

    assert all(asyncio.run(probe()))
    assert pool.asked == {"models": 1}


def asked_at(moments: list[float], monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Awaitable[T]]) -> list[Any]:
    now = [0.0]
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def go() -> list[Any]:
        kept = Kept(ask)
        found: list[Any] = []
        for now[0] in moments:
            found += await asyncio.gather(kept.get(), return_exceptions=True)
        return found

    return asyncio.run(go())


def test_an_answer_is_kept_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter("abc")

    async def ask() -> str:
        return next(answers)

    later = 10 + FRESH_SECONDS
    assert asked_at([10.0, later - 0.01, later, later + 0.01], monkeypatch, ask) == ["a", "a", "b", "b"]


def test_so_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([NotFound("a"), NotFound("b")])

    async def ask() -> str:
        raise next(errors)

    found = asked_at([10.0, 10.1, 11.0], monkeypatch, ask)
    assert [str(error) for error in found] == ["a", "a", "b"]


def test_who_gives_up_does_not_take_the_answer_from_others() -> None:
    async def go() -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def ask() -> str:
            return await answer

        kept = Kept(ask)
        impatient, patient = asyncio.create_task(kept.get()), asyncio.create_task(kept.get())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        answer.set_result("here")
        return await patient

    assert asyncio.run(go()) == "here"
