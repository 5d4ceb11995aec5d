"""Models are compiled in the background; what serves goes on serving, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.settings import Form, Loading
from tfpool.store.shelf import DRAFTS, Shelf
from tfpool.testing.fake_compiler import STAGES
from tfpool.testing.fake_worker import FakePool, loads, until, version
from tfpool.testing.moving import Crowd, patiently

pytestmark = pytest.mark.process
MakePool = Callable[..., FakePool]
X = np.ones((1, 4), np.float32)
MIB = 1 << 20
SOON = 30.0
LANES = 4
STORE: dict[str, Any] = {"store": {}}


def forms(client: Client, model: str = "double") -> list[str]:
    """In which forms a model is held, by worker."""
    return [form for row in client.status(model) for _, form in sorted(row["forms"].items())]


def store(client: Client, model: str = "double") -> dict[str, Any]:
    """How the newest version of a model stands with the store."""
    found: dict[str, Any] = client.status(model)[-1]["store"]
    return found


def stands(client: Client, state: str, model: str = "double") -> Callable[[], bool]:
    return lambda: store(client, model)["state"] == state


def drafts(pool: FakePool) -> list[str]:
    return os.listdir(os.path.join(pool.settings.store.directory, DRAFTS))


def keys(pool: FakePool) -> list[str]:
    return Shelf(pool.settings.store.directory).keys()


def compiling(pool: FakePool, model: str = "double") -> int:
    """The process that compiles, once it waits."""
    (pid,) = until(pool.compilers, SOON)
    return int(pid)


def held_compiler(make_pool: MakePool, stage: str = "freeze", kind: str = "double", **options: Any) -> FakePool:
    """A pool whose compiler waits in a stage."""
    pool = make_pool([(kind, {"waits": stage})], **{"workers": 1, **STORE, **options})
    with pool.client(timeout=SOON) as client:
        until(lambda: store(client, kind) == {"state": "compiling", "reason": stage}, SOON)
    return pool


# -- it ends well --------------------------------------------------------------------------------------------------


def test_a_first_start_serves_at_once_and_changes_by_itself(make_pool: MakePool) -> None:
    pool = held_compiler(make_pool, workers=2)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        assert forms(client) == ["plain"]
        crowd.served(20)
        pool.recipe("double").waits.unlink()
        until(lambda: forms(client) == ["mapped"], SOON)
        crowd.served(20)
        assert store(client) == {"state": "compiled", "reason": "", "gain": 1.0, "shared_bytes": MIB}
        assert pool.compilers() == []
        assert drafts(pool) == []
        assert pool.recipe("double").forms() == ["1 mapped"]
    pool.close()
    pool.start()
    with pool.client(timeout=SOON) as client:
        assert forms(client) == ["mapped"]
        assert client.predict("double", X)["y"].tolist() == (2 * X).tolist()
        assert loads(pool.base("double")) == [1], "of the second start there is none"
        assert pool.recipe("double").runs() == 1


def test_all_models_are_compiled_one_after_the_other(make_pool: MakePool) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [("double", {"name": f"d{i}", "replicas": (2, 2)}) for i in range(3)]
    kinds.append(("echo", {"preload": Loading.LAZY}))
    pool = make_pool(kinds, **STORE)
    with pool.client(timeout=SOON) as client:
        until(lambda: all(row["store"]["state"] == "compiled" for row in client.models()), SOON)
        until(lambda: all(forms(client, f"d{i}") == ["mapped", "mapped"] for i in range(3)), SOON)
        assert forms(client, "echo") == []
        client.predict("echo", X, signature="float32")
        assert forms(client, "echo") == ["mapped"]
        assert not (pool.base("echo") / "loads").exists()
        assert [pool.recipe(f"d{i}").runs() for i in range(3)] == [1, 1, 1]


def test_two_pools_share_what_one_has_compiled(make_pool: MakePool) -> None:
    first = make_pool([("double", {})], workers=1, **STORE)
    with first.client(timeout=SOON) as client:
        until(lambda: forms(client) == ["mapped"], SOON)
    second = make_pool([], workers=1, store={"directory": first.settings.store.directory})
    base = str(first.base("double"))
    with second.client(timeout=SOON) as client:
        client.add({"name": "twin", "base_path": base})
        assert forms(client, "twin") == ["mapped"]
        assert client.predict("twin", X)["y"].tolist() == (2 * X).tolist()
    assert first.recipe("double").runs() == 1


def test_two_pools_that_want_the_same_compile_it_once(make_pool: MakePool) -> None:
    first = held_compiler(make_pool)
    second = make_pool([], workers=1, store={"directory": first.settings.store.directory})
    with first.client(timeout=SOON) as one, second.client(timeout=SOON) as two:
        two.add({"name": "twin", "base_path": str(first.base("double"))})
        until(lambda: store(two, "twin")["reason"] == "another process compiles it", SOON)
        assert forms(two, "twin") == ["plain"]
        first.recipe("double").waits.unlink()
        until(lambda: forms(one) == forms(two, "twin") == ["mapped"], SOON)
    assert first.recipe("double").runs() == 1


# -- it does not ---------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_and_not_tried_again(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"refuse": "it is stateful"}), ("echo", {})], workers=1, **STORE)
    for _ in range(2):
        with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
            until(stands(client, "refused"), SOON)
            assert store(client)["reason"] == "it is stateful"
            until(lambda: forms(client, "echo") == ["mapped"], SOON)
            crowd.served(20)
            assert forms(client) == ["plain"]
            assert pool.recipe("double").runs() == 1
            (row,) = (row for row in client.models() if row["name"] == "double")
            assert row["store"] == client.status("double")[0]["store"]
            assert row["forms"] == {"cpu0": "plain"}
        pool.close()
        pool.start()


@pytest.mark.parametrize("stage", STAGES)
def test_a_compiler_that_dies_is_tried_again_after_the_others(make_pool: MakePool, stage: str) -> None:
    pool = make_pool([("double", {"dies": stage}), ("echo", {})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES):
        until(lambda: store(client)["reason"] == f"the compiler died at stage {stage!r}", SOON)
        assert store(client)["state"] == "waiting"
        assert forms(client) == ["plain"]
        until(lambda: forms(client, "echo") == ["mapped"], SOON)
        assert [row["deaths"] for row in client.workers()] == [0]


def test_a_compiler_that_fails_says_why(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"crash": "no such op"})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES):
        until(lambda: store(client)["reason"] == "ValueError: no such op", SOON)
        assert (store(client)["state"], forms(client)) == ("waiting", ["plain"])
        assert keys(pool) == []


# -- others die, or go ---------------------------------------------------------------------------------------------


def test_the_broker_dies_meanwhile(make_pool: MakePool) -> None:
    """The compiler goes on; the next broker waits for it, and uses what came of it."""
    pool = held_compiler(make_pool)
    pid = compiling(pool)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        pool.kill_broker()
        until(lambda: patiently(lambda: store(client))["reason"] == "another process compiles it", SOON)
        assert pid in pool.compilers()
        crowd.served(20)
        pool.recipe("double").waits.unlink()
        until(lambda: forms(client) == ["mapped"], SOON)
        crowd.served(20)
    assert pool.recipe("double").runs() == 1
    assert loads(pool.base("double")) == [1]


def test_the_zygote_dies_meanwhile(make_pool: MakePool) -> None:
    pool = held_compiler(make_pool)
    pid = compiling(pool)
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        os.kill(pool.zygote_pid(), signal.SIGKILL)
        until(lambda: store(client)["reason"].startswith("the compiler died at stage"), SOON)
        until(lambda: not os.path.exists(f"/proc/{pid}"), SOON, "it dies with the zygote")
        crowd.served(20)
        pool.recipe("double").waits.unlink()
        until(lambda: forms(client) == ["mapped"], 2 * SOON, "the worker that came after it, or another try")


def test_the_pool_is_stopped_meanwhile(make_pool: MakePool) -> None:
    pool = held_compiler(make_pool)
    pid = compiling(pool)
    assert pool.close() == 0
    assert not os.path.exists(f"/proc/{pid}")
    assert keys(pool) == []
    pool.recipe("double").waits.unlink()
    pool.start()
    with pool.client(timeout=SOON) as client:
        until(lambda: forms(client) == ["mapped"], SOON)
        assert drafts(pool) == [], "what the first one left is swept away"


def test_the_supervisor_is_killed_meanwhile(make_pool: MakePool) -> None:
    pool = held_compiler(make_pool)
    pid = compiling(pool)
    pool.process.kill()
    until(lambda: not os.path.exists(f"/proc/{pid}"), SOON, "the compiler has gone with it")
    pool.process.wait()
    pool.start()


@pytest.mark.parametrize("how", ["unload", "remove", "version"])
def test_the_model_goes_meanwhile(make_pool: MakePool, how: str) -> None:
    pool = held_compiler(make_pool, kind="numbered")
    with pool.client(timeout=SOON) as client:
        if how == "unload":
            client.unload("numbered")
        elif how == "remove":
            client.remove("numbered")
        else:
            version(pool.base("numbered"), 2)
            until(lambda: [row["version"] for row in client.status("numbered")] == [2], SOON)
        pool.recipe("numbered").waits.unlink()
        until(lambda: not pool.compilers(), SOON)
        until(lambda: keys(pool), SOON, "what was compiled is there for who comes back")
        if how == "version":
            until(lambda: forms(client, "numbered") == ["mapped"], SOON)
            assert client.predict("numbered", X)["y"].tolist() == (2 * X).tolist()
            return
        if how == "unload":
            client.load("numbered")
        else:
            client.add({"name": "numbered", "base_path": str(pool.base("numbered"))})
        assert client.predict("numbered", X)["y"].tolist() == X.tolist()
        until(lambda: forms(client, "numbered") == ["mapped"], SOON)
        assert pool.recipe("numbered").runs() == 1


# -- files that change ---------------------------------------------------------------------------------------------


def fixed(dice: np.random.Generator) -> Any:
    return dice.random((1, 4), np.float32)


def test_files_change_while_they_are_compiled(make_pool: MakePool) -> None:
    """No entry claims to be the new files."""
    pool = held_compiler(make_pool, "measure", "written")
    graph, recipe = pool.base("written") / "1" / "saved_model.pb", pool.recipe("written")
    with pool.client(timeout=SOON) as client:
        with Crowd(client, "written", 1, fixed, LANES) as crowd:
            graph.write_text("5")
            recipe.waits.unlink()
            until(lambda: store(client, "written")["reason"].startswith("its files"), SOON)
            crowd.served(20)
        client.unload("written")
        client.load("written")
        assert client.predict("written", X)["y"].tolist() == (5 * X).tolist()
        assert forms(client, "written") == ["plain"]


@pytest.mark.parametrize("number", [5, -1])
def test_files_change_before_they_are_compiled(make_pool: MakePool, number: int) -> None:
    """What is loaded stays what it is, with the signatures that it has."""
    pool = make_pool([("double", {"waits": "freeze"}), ("written", {"preload": Loading.LAZY})], workers=1, **STORE)
    graph = pool.base("written") / "1" / "saved_model.pb"
    with pool.client(timeout=SOON) as client, Crowd(client, "written", 1, fixed, LANES) as crowd:
        crowd.served(20)
        until(lambda: store(client)["reason"] == "freeze", SOON)
        assert forms(client, "written") == ["plain"]
        graph.write_text(str(number))
        pool.recipe("double").waits.unlink()
        until(lambda: store(client, "written")["reason"] == "its files have changed since it was loaded", SOON)
        assert forms(client, "written") == ["plain"]
        crowd.served(20)


# -- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["others may write to it", "it is a file", "its parent is gone"])
def test_a_store_that_cannot_be_used_is_told_and_plain_serves(make_pool: MakePool, how: str, tmp_path: Path) -> None:
    place = tmp_path / "store"
    if how == "others may write to it":
        place.mkdir()
        (place / "x").touch()
        place.chmod(0o777)
    elif how == "it is a file":
        place.touch()
    else:
        (tmp_path / "parent").touch()
        place = tmp_path / "parent" / "store"
    pool = make_pool([("double", {})], workers=1, store={"directory": str(place)})
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES) as crowd:
        until(lambda: str(place.parent) in store(client)["reason"], SOON)
        assert (store(client)["state"], forms(client)) == ("waiting", ["plain"])
        crowd.served(20)


def test_a_store_that_is_switched_off(make_pool: MakePool) -> None:
    pool = make_pool([("double", {})], workers=1)
    with pool.client(timeout=SOON) as client:
        assert (store(client), forms(client)) == ({"state": "off", "reason": "there is no store"}, ["plain"])
    assert not os.path.exists(pool.settings.store.directory)


@pytest.mark.parametrize("form", [*Form, None])
def test_the_form_that_settings_ask_for(make_pool: MakePool, form: Form | None) -> None:
    pool = make_pool([("double", {"form": form}), ("echo", {})], workers=1, **STORE)
    wanted = "mapped" if form is None else form.value
    with pool.client(timeout=SOON) as client, Crowd(client, lanes=LANES):
        until(lambda: forms(client, "echo") == ["mapped"], SOON)
        until(lambda: forms(client) == [wanted], SOON)
        if form is Form.PLAIN:
            assert store(client) == {"state": "off", "reason": "its form is set to plain"}
    pool.close()
    pool.start()
    with pool.client(timeout=SOON) as client:
        assert forms(client) == [wanted]
    assert pool.recipe("double").runs() == (form is not Form.PLAIN)


def test_what_is_stateful_is_never_compiled(make_pool: MakePool) -> None:
    pool = make_pool([("double", {"stateful": ("serving_default",)}), ("echo", {})], workers=1, **STORE)
    with pool.client(timeout=SOON) as client:
        until(lambda: forms(client, "echo") == ["mapped"], SOON)
        assert store(client) == {"state": "off", "reason": "it is declared stateful"}
        assert pool.recipe("double").runs() == 0
