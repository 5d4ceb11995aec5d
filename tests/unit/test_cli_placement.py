"""plan, migrate, restart and what is shown of demand, on a fake client: texts at every width, JSON, exit statuses."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tfpool.cli.main import main
from tfpool.cli.placement import bounds
from tfpool.client.aio import AsyncClient
from tfpool.client.sync import Client
from tfpool.client.verbs import LOAD_TIMEOUT, Verbs
from tfpool.errors import FailedPrecondition, NotFound, Unavailable

Row = dict[str, Any]
LONG = "a-model-whose-name-is-longer-than-a-narrow-terminal-is-wide-" + "x" * 40
REASON = "cpu0 is 96 % busy, cpu1 11 %; moving it (31 % of a worker) leaves 65 % and 42 %"
MOVE = {"kind": "migrate", "model": "mnist", "version": 3, "source": "cpu0", "target": "cpu1", "bytes": 31_200_000}
STEP = MOVE | {"gain": 12.5, "cost": 0.5, "seconds": 0.25, "reason": REASON}
RECYCLE = STEP | {"kind": "recycle", "model": "", "version": 0, "target": "", "bytes": 0, "seconds": 0.0}
MIGRATION = MOVE | {
    "id": 7,
    "phase": "LOADING",
    "seconds": 1.2,
    "ago": 187.0,
    "reason": REASON,
    "by": "planner",
    "error": None,
}
WORKERS = [
    {"name": "cpu0", "device": "cpu", "room": 8_000_000_000, "held": 4_880_000_000, "load": 0.96}
    | {"held_after": 3_840_000_000, "load_after": 0.65},
    {"name": "cpu1", "device": "cpu", "room": None, "held": 500_000_000, "load": 0.11}
    | {"held_after": 1_540_000_000, "load_after": 0.42},
]
PLAN = {"policy": "auto", "steps": [STEP], "cost": {"now": 18.2, "after": 1.5}, "workers": WORKERS} | {
    "migrations": [],
    "replacing": [],
    "note": "",
}
NOTHING = PLAN | {"steps": [], "note": "no step gains more than it costs"}
WORKER = {"name": "cpu0", "pid": 7, "state": "READY", "device": "cpu", "cpus": [0], "threads": 1, "busy": 0.5} | {
    "memory": {"rss": 2e9, "unique": 5e8, "pss": 6e8, "base": 1e8, "budget": None, "residue": 0, "gpu": None},
    "deaths": 0,
    "models": ["mnist:3", "ocr:1"],
}
RATE = {"asks": 12.3, "asks_slow": 3.1, "rows": 96.0, "rows_slow": 24.0}
MODEL = {"name": "mnist", "version": 3, "state": "AVAILABLE", "workers": ["cpu1"], "labels": []} | {
    "memory_bytes": 31_200_000,
    "load_seconds": 0.25,
    "error": None,
    "rate": RATE,
    "replicas": [1, 4],
    "row_seconds": {"cpu0": 1.2e-05, "cpu1": 1.4e-05},
    "idle_seconds": 0.1,
    "forms": {"cpu1": "mapped"},
}
QUANTILES = {"count": 4, "mean": 120.0, "p50": 100.0, "p90": 150.0, "p99": 2500.0, "p999": 2500.0, "max": 2500.0}
METER = {"requests": 10, "rows": 10, "batches": 0, "errors": {}} | {
    "queue_us": QUANTILES,
    "run_us": QUANTILES,
    "batch_rows": QUANTILES,
}
BATCHING = {"max_batch_size": 64, "max_wait_ms": 0, "allowed_batch_sizes": [], "max_queue_rows": 100, "pad": True}
DETAILED = (
    MODEL
    | {"signatures": [], "skipped_signatures": {}, "curves": [], "base_path": "/m"}
    | {
        "batching": BATCHING,
        "meters": METER,
    }
)
STATS = {"uptime_seconds": 10.0, "messages": 10, "waiting_rows": 0, "models": {"mnist": METER, "gone": METER}} | {
    "workers": [WORKER, WORKER | {"name": "cpu1", "models": ["mnist:2", "mnist:3"]}],
}


class Fake:
    """A client whose answers a test sets: a value, an error, or a function of the call's arguments."""

    endpoint = "ipc:///nowhere/pool"

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"plan": PLAN, "call": PLAN, "stats": STATS, "status": [DETAILED]}
        self.asked: list[tuple[str, Any]] = []
        self.opened: list[tuple[str | None, str | None]] = []

    def open(self, endpoint: str | None = None, *, admin: str | None = None, keys: str | None = None) -> Fake:
        self.opened.append((endpoint, admin))
        return self

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not hasattr(Verbs, name):
            raise AttributeError(name)

        def ask(*arguments: Any, **named: Any) -> Any:
            self.asked.append((name, (*arguments, named)))
            answer = self.answers[name]
            answer = answer(*arguments, **named) if callable(answer) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr("tfpool.client.sync.Client", made.open)
    monkeypatch.setattr("tfpool.cli.options.listens", lambda endpoint: True)
    monkeypatch.setattr("tfpool.cli.placement._LOOK_SECONDS", 0.001)
    return made


def run(*words: str, status: int = 0, columns: int = 0, color: bool = False, **env: str) -> Result:
    """Types a command; ``columns`` makes it believe in a terminal of that width."""
    if columns:
        env |= {"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm"}
    result = CliRunner(env=env).invoke(main, list(words), color=color)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def lines(text: str) -> list[str]:
    return [line for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).splitlines() if line]


def during(fake: Fake, verb: str, look: str, scenes: list[Any], answer: Any) -> None:
    """While ``verb`` runs, ``look`` is answered by one scene after the other; ``verb`` ends when all were seen."""
    seen, left = threading.Event(), list(scenes)
    first = fake.answers[look]
    began = threading.Event()

    def show(*_: Any, **__: Any) -> Any:
        if not began.is_set():
            return first
        scene = left.pop(0) if len(left) > 1 else left[0]
        if len(left) == 1:
            seen.set()
        return scene

    def work(*_: Any, **__: Any) -> Any:
        began.set()
        assert seen.wait(20)
        return answer

    fake.answers |= {verb: work, look: show}


# -- plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120, 0])
def test_a_plan_shows_every_word_at_every_width(fake: Fake, columns: int) -> None:
    other = STEP | {"kind": "replicate", "model": LONG, "source": "", "reason": "it is asked for"}
    fake.answers["plan"] = PLAN | {"steps": [STEP, other, RECYCLE], "migrations": [MIGRATION]}
    text = run("plan", columns=columns).stdout
    assert not columns or max(map(len, lines(text))) <= columns
    words = re.sub(r"\s+", "", text)
    for said in (
        "the pool takes these steps by itself",
        "move mnist:3 cpu0 -> cpu1",
        REASON,
        f"replicate {LONG}:3 on cpu1",
        "it is asked for",
    ):
        assert said.replace(" ", "") in words
    for said in ("31.2 MB", "0.25 s", "12.5 s", "0.50 s", "recycle cpu0", "LOADING", "planner", "18.2 -> 1.5"):
        assert said in text
    assert "█████▒···· 61 % -> 48 % of 8.0 GB" in text
    assert "██████▒▒▒▒ 96 % -> 65 %" in text
    assert "500.0 MB -> 1.5 GB" in text


def test_nothing_to_do_says_why(fake: Fake) -> None:
    fake.answers["plan"] = NOTHING
    fake.answers["plan"] = NOTHING | {"replacing": [{"worker": "cpu0", "stage": "waits", "moving": 0, "by": "recycle"}]}
    text = run("plan").stdout
    assert lines(text)[0] == "nothing to do: no step gains more than it costs"
    assert lines(text)[-1] == "cpu0 is to be replaced: waits"
    assert "61 % -> 48 %" in run("plan").stdout
    fake.answers["plan"] = NOTHING | {"note": "", "workers": [WORKERS[0] | {"held_after": 4_900_000_000}]}
    text = run("plan", "--dry-run").stdout
    assert lines(text)[0] == "nothing to do"
    assert "██████···· 61 % of 8.0 GB" in text
    fake.answers["plan"] = PLAN | {"policy": "advise", "note": "nothing moves until somebody applies it"}
    assert lines(run("plan").stdout)[0] == "nothing moves until somebody applies it"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("load", "load mnist:3 on cpu1"),
        ("replicate", "replicate mnist:3 on cpu1"),
        ("migrate", "move mnist:3 cpu0 -> cpu1"),
        ("drop", "drop mnist:3 from cpu0"),
        ("evict", "evict mnist:3 from cpu0"),
        ("inline", "inline mnist:3 on cpu1"),
        ("map", "map mnist:3 on cpu0"),
    ],
)
def test_every_kind_of_step_has_its_words(fake: Fake, kind: str, words: str) -> None:
    fake.answers["plan"] = PLAN | {"steps": [STEP | {"kind": kind}]}
    assert f"  {words}\n" in run("plan").stdout


def test_overload_and_no_room_do_not_break_the_bars(fake: Fake) -> None:
    row = {"name": "cpu0", "device": "cpu", "room": 0, "held": 5, "held_after": 5, "load": 3.0, "load_after": 0.0}
    fake.answers["plan"] = PLAN | {"workers": [row, row | {"room": 4}]}
    text = run("plan").stdout
    assert "▒" * 10 + " 300 % -> 0 %" in text
    assert "█" * 10 + " 125 % of 4 B" in text


def test_colours_only_where_they_are_wanted(fake: Fake) -> None:
    coloured = re.compile(r"\x1b\[[\d;]*3\dm")
    assert coloured.search(run("plan", columns=80, color=True).stdout)
    assert not coloured.search(run("plan", columns=80, color=True, NO_COLOR="1").stdout)
    assert "\x1b" not in run("plan", color=True).stdout


def test_terminals_without_unicode(fake: Fake) -> None:
    result = CliRunner(charset="ascii").invoke(main, ["plan"])
    assert result.exit_code == 0, result.exception
    assert "#####=.... 61 % -> 48 %" in result.stdout_bytes.decode("ascii")


def test_plan_as_json_is_what_the_pool_says(fake: Fake) -> None:
    assert json.loads(run("plan", "--json").stdout) == PLAN
    assert [name for name, _ in fake.asked] == ["plan"]


def test_history_is_in_order(fake: Fake) -> None:
    died = "worker cpu1 died while mnist:3 moved there"
    fake.answers["plan"] = PLAN | {"migrations": [MIGRATION, MIGRATION | {"id": 6, "phase": "ABORTED", "error": died}]}
    text = run("plan", "--history", columns=100).stdout
    assert text.index("ABORTED") < text.index(died) < text.index("LOADING")
    assert max(map(len, lines(text))) <= 100
    assert [row["id"] for row in json.loads(run("plan", "--history", "--json").stdout)] == [6, 7]
    fake.answers["plan"] = PLAN
    assert run("plan", "--history").stdout == "nothing has been moved yet\n"
    assert json.loads(run("plan", "--history", "--json").stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        *("plan --apply --dry-run", "plan --apply --history", "plan --timeout 0", "plan mnist"),
        *("migrate mnist", "migrate --to cpu1", "migrate mnist:0 --to cpu1", "migrate mnist --to"),
        *("restart", "restart cpu0 --all", "restart cpu0 cpu1"),
    ],
)
def test_bad_usage_asks_nothing(fake: Fake, words: str) -> None:
    assert run(*words.split(), status=2).stdout == ""
    assert fake.asked == []


# -- plan --apply --------------------------------------------------------------------------------------------------


def test_steps_are_told_as_they_happen(fake: Fake) -> None:
    drop = STEP | {"kind": "drop", "model": "ocr", "target": ""}
    before = MIGRATION | {"id": 6, "by": "plan", "phase": "DONE"}
    others = MIGRATION | {"id": 8, "by": "planner", "model": "other"}
    fake.answers["plan"] = PLAN | {"migrations": [before]}
    scenes = [PLAN | {"migrations": [before, others]}]
    scenes += [
        PLAN | {"migrations": [MIGRATION | {"by": "plan", "phase": phase}, before, others]}
        for phase in ("LOADING", "WARMING", "DONE", "DONE")
    ]
    steps = [STEP, drop, STEP]
    answer = {"steps": [step | {"outcome": "DONE", "error": None, "took": 0.02} for step in steps]}
    during(fake, "apply", "call", scenes, answer)
    told = lines(run("plan", "--apply", "--admin", "ipc:///b").stdout)[-5:]
    assert told == [
        "move mnist:3 cpu0 -> cpu1: LOADING",
        "move mnist:3 cpu0 -> cpu1: DONE after 1.20 s",
        "drop ocr:3 from cpu0: DONE after 20 ms",
        "move mnist:3 cpu0 -> cpu1: DONE after 20 ms",
        "3 steps done",
    ]
    assert fake.opened == [(None, "ipc:///b")]


def test_an_aborted_step_is_status_1(fake: Fake) -> None:
    aborted = STEP | {"outcome": "ABORTED", "error": "worker cpu1 died", "took": 0.5}
    fake.answers["apply"] = {"steps": [aborted, STEP | {"outcome": "DONE", "error": None, "took": 1.0}]}
    text = run("plan", "--apply", "--timeout", "7", status=1).stdout
    assert "move mnist:3 cpu0 -> cpu1: ABORTED after 0.50 s: worker cpu1 died\n" in text
    assert text.endswith("1 step done, 1 aborted\n")
    assert ("apply", ({"timeout": 7.0},)) in fake.asked
    assert json.loads(run("plan", "--apply", "--json", status=1).stdout) == fake.answers["apply"]


def test_nothing_to_do_is_not_applied(fake: Fake) -> None:
    fake.answers["plan"] = NOTHING
    assert lines(run("plan", "--apply").stdout)[0].startswith("nothing to do")
    assert [name for name, _ in fake.asked] == ["plan"]


def test_what_goes_wrong_while_it_is_applied(fake: Fake) -> None:
    fake.answers["apply"] = FailedPrecondition("another plan is carried out")
    result = run("plan", "--apply", status=1)
    assert result.stderr == "error: FAILED_PRECONDITION: another plan is carried out\n"
    # a look that fails does not matter
    during(fake, "apply", "call", [Unavailable("busy")] * 2, {"steps": []})
    assert run("plan", "--apply").stdout.endswith("0 steps done\n")


# -- migrate -------------------------------------------------------------------------------------------------------


def test_migrate(fake: Fake) -> None:
    fake.answers["migrate"] = MODEL
    text = run("migrate", "mnist:3", "--to", "cpu1", "--from", "cpu0", "--timeout", "9").stdout
    assert re.fullmatch(r"mnist:3 serves on cpu1 \(load: 0\.25 s, 31\.2 MB; moved in .+\)\n", text)
    assert fake.asked[-1] == ("migrate", ("mnist", "cpu1", 3, {"source": "cpu0", "timeout": 9.0}))
    document = json.loads(run("migrate", "mnist", "--to", "cpu1", "--json").stdout)
    assert document.pop("seconds") >= 0
    assert document == MODEL
    assert fake.asked[-1] == ("migrate", ("mnist", "cpu1", None, {"source": None, "timeout": LOAD_TIMEOUT}))


def test_a_terminal_sees_how_far_a_migration_is(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextmanager
    def watching(describe: Callable[[], str]) -> Iterator[None]:
        said.append(describe())
        yield

    monkeypatch.setattr("tfpool.cli.placement.watching", watching)
    fake.answers["migrate"] = MODEL
    run("migrate", "mnist", "--to", "cpu1")
    others = [MIGRATION | {"id": 8, "phase": "DONE"}, MIGRATION | {"id": 9, "model": "other"}]
    fake.answers["call"] = PLAN | {"migrations": [*others, MIGRATION]}
    run("migrate", "mnist", "--to", "cpu1")
    assert said == ["waiting", "move mnist:3 cpu0 -> cpu1: LOADING"]


def test_the_pool_says_what_is_wrong_with_a_migration(fake: Fake) -> None:
    fake.answers["migrate"] = NotFound("no worker 'cpu9'; there are cpu0, cpu1")
    result = run("migrate", "mnist", "--to", "cpu9", status=1)
    assert (result.stdout, result.stderr) == ("", "error: NOT_FOUND: no worker 'cpu9'; there are cpu0, cpu1\n")


# -- restart -------------------------------------------------------------------------------------------------------


def test_workers_are_replaced_one_after_the_other(fake: Fake) -> None:
    stages = [("waits", 0), ("moving away", 2), ("restarting", 2), ("restarting", 2), ("coming back", 1)]
    first, second = [
        [{"worker": name, "stage": stage, "moving": moving, "by": "restart"} for stage, moving in stages]
        for name in ("cpu0", "cpu1")
    ]
    second[1]["moving"] = second[4]["moving"] = 0
    scenes = [PLAN | {"replacing": [row, second[0]]} for row in first]
    scenes += [PLAN | {"replacing": [row]} for row in second]
    answer = [WORKER | {"pid": 9}, WORKER | {"name": "cpu1", "pid": 10, "models": ["ocr:2"]}]
    during(fake, "restart_all", "call", [*scenes, PLAN], answer)
    assert lines(run("restart", "--all", "--timeout", "9").stdout) == [
        "cpu0: moving 2 models away",
        "cpu0: restarting",
        "cpu0: moving 1 model back",
        "cpu1: restarting",
        "cpu0 is back with pid 9 and 2 models",
        "cpu1 is back with pid 10 and 1 model",
    ]
    assert ("restart_all", ({"timeout": 9.0},)) in fake.asked
    fake.answers["restart_all"] = answer
    assert json.loads(run("restart", "--all", "--json").stdout) == answer


def test_one_worker_is_replaced(fake: Fake) -> None:
    fake.answers["restart"] = WORKER
    assert run("restart", "cpu0").stdout == "cpu0 is back with pid 7 and 2 models\n"
    assert json.loads(run("restart", "cpu0", "--json").stdout) == WORKER
    assert fake.asked[-1] == ("restart", ("cpu0", {"timeout": LOAD_TIMEOUT}))
    fake.answers["restart"] = FailedPrecondition("worker cpu0 does not come back: it is halted")
    assert "it is halted" in run("restart", "cpu0", status=1).stderr


# -- status, top ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "words"), [((1, 4), "1 to 4"), ((2, 2), "2"), ((0, None), "0 or more"), ((0, 1), "0 to 1")]
)
def test_bounds(replicas: tuple[int, int | None], words: str) -> None:
    assert bounds(replicas) == words


def test_status_tells_demand_and_replicas(fake: Fake) -> None:
    text = run("status", "mnist", columns=80).stdout
    assert max(map(len, lines(text))) <= 80
    assert "  asked for: 12.3 req/s, 96.0 rows/s; slower average: 3.1 req/s, 24.0 rows/s\n" in text
    assert "  replicas: 1, may be 1 to 4\n" in text
    assert "  a row takes 12 us on cpu0, 14 us on cpu1\n" in text
    assert json.loads(run("status", "mnist", "--json").stdout) == [DETAILED]
    quiet = DETAILED | {"rate": dict.fromkeys(RATE, 0.0), "row_seconds": {}, "idle_seconds": 187.0}
    fake.answers["status"] = [quiet]
    text = run("status", "mnist").stdout
    assert "  idle for 3m 07s\n" in text
    assert "a row takes" not in text
    fake.answers["status"] = [quiet | {"idle_seconds": None}]
    assert "  not asked for yet\n" in run("status", "mnist").stdout


@pytest.mark.parametrize("columns", [80, 120, 0])
def test_top_tells_where_models_are_and_what_moves(fake: Fake, columns: int) -> None:
    old, ended = MIGRATION | {"id": 5, "phase": "DONE"}, MIGRATION | {"id": 6, "phase": "DONE"}
    scenes = iter([[old], [old, ended, MIGRATION], [old, ended]])
    fake.answers["call"] = lambda _: PLAN | {"migrations": next(scenes)}
    text = run("top", "--count", "2", "--interval", "0.001", columns=columns).stdout
    found = lines(text)
    assert any(re.match(r"mnist +cpu0, cpu1 +0\.0 ", line) for line in found)
    assert any(re.match(r"gone +- +0\.0 ", line) for line in found)
    phases = [line.split()[2] for line in found if re.search(" (DONE|LOADING) ", line)]
    assert list(dict.fromkeys(phases)) == ["DONE", "LOADING"]
    if not columns:
        assert phases == ["DONE", "LOADING"]
        assert text.count("PHASE") == 1


# -- the client's verbs --------------------------------------------------------------------------------------------


class Recorded(Verbs):
    """Remembers what goes over the wire."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []

    def call(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        self.sent.append(("call", method, arguments | {"timeout": timeout}))

    def admin(self, method: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        self.sent.append(("admin", method, arguments | {"timeout": timeout}))


def test_what_the_verbs_send() -> None:
    client = Recorded()
    client.plan()
    client.apply()
    client.migrate("mnist", to="cpu1")
    client.migrate("mnist", "cpu1", 3, source="cpu0", timeout=5.0)
    client.drain("cpu0")
    client.restart("cpu0", timeout=6.0)
    client.restart_all(timeout=7.0)
    to = {"model": "mnist", "to": "cpu1"}
    assert client.sent == [
        ("call", "plan", {"timeout": None}),
        ("admin", "apply", {"timeout": LOAD_TIMEOUT}),
        ("admin", "migrate", to | {"version": None, "source": None, "timeout": LOAD_TIMEOUT}),
        ("admin", "migrate", to | {"version": 3, "source": "cpu0", "timeout": 5.0}),
        ("admin", "drain", {"worker": "cpu0", "timeout": LOAD_TIMEOUT}),
        ("admin", "restart", {"worker": "cpu0", "timeout": 6.0}),
        ("admin", "restart_all", {"timeout": 7.0}),
    ]


def test_the_asyncio_client_has_every_verb() -> None:
    verbs = [name for name in vars(Verbs) if not name.startswith("_")]
    assert {"plan", "apply", "migrate", "restart_all"} <= set(verbs)
    for name in verbs:
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name)), name
        assert inspect.signature(getattr(AsyncClient, name)) == inspect.signature(getattr(Client, name)), name


def test_the_asyncio_client_passes_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def admin(self: AsyncClient, method: str, **named: Any) -> Any:
        sent.append((method, named))
        return MODEL

    monkeypatch.setattr(AsyncClient, "admin", admin)

    async def ask() -> Any:
        async with AsyncClient("ipc:///nowhere/pool") as client:
            return await client.migrate("mnist", to="cpu1", timeout=5.0)

    assert asyncio.run(ask()) == MODEL
    named = {"model": "mnist", "to": "cpu1", "version": None, "source": None, "timeout": 5.0}
    assert sent == [("migrate", named)]


@pytest.mark.parametrize("columns", [80, 120, 0])
def test_models_tell_demand_and_replicas(fake: Fake, columns: int) -> None:
    bare = {key: value for key, value in MODEL.items() if key not in ("rate", "replicas", "forms")}
    fake.answers["models"] = [MODEL, bare | {"name": "bad", "version": 0, "state": "FAILED", "workers": []}]
    found = lines(run("models", columns=columns).stdout)
    assert max(map(len, found)) <= (columns or 1000)
    form = "" if columns == 80 else " +mapped"
    row = rf"mnist +3 +AVAILABLE +cpu1{form} +1 to 4 +12\.3 +- +31\.2 MB +0\.25 s"
    assert any(re.match(row, line) for line in found)
    assert any(re.match(r"bad +- +FAILED +- +- +- ", line) for line in found)
    assert json.loads(run("models", "--json").stdout) == fake.answers["models"]
