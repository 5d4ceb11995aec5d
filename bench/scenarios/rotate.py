"""Popularity that moves from model to model: whether the pool follows it, what that gains, and what is felt of it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import tfpool
from bench import pool
from bench.arrivals import Schedule, poisson
from bench.children import Channel
from bench.errors import BenchError, WrongAnswer
from bench.fleet import sleep_until
from bench.loads import wrong
from bench.open import Roaming, as_requests
from bench.processes import footprint
from bench.scenario import Form, Outcome, Scenario, Settings, Sheet, Target
from bench.senders import START_SECONDS, Sender, Traffic, orders
from bench.steady import ms
from tfpool.wire.tensors import Array

MODELS, QUICK_MODELS = 40, 6
WORKERS = 2
TURN_SECONDS, QUICK_TURN_SECONDS = 20.0, 2.0
TURNS, QUICK_TURNS = 3, 2
EXPONENT = 1.5
STRIDE = 7  # ranks, by which each model's changes from turn to turn
LOAD = 0.7
ROOM = 0.6  # of what all models on all workers would take
IN_FLIGHT = 64
AFTER_SECONDS = 1.0  # that belong to a move when it is over
_MODEL = "patches"
_DRAWN = 4096
_CHECKED = 16
_LOOK_SECONDS = 1.0
_SAFE_SECONDS = 300.0  # a deadline that nobody refuses a request for
_HOUR_SECONDS = 3600.0
_LOADED_SHARE = 0.9  # of a budget, that loads may fill

OURS, STATIC = "ours", "static"
TARGETS = {
    "failed requests": Target(0.0, on="ours"),
    "p99.9 around moves, beside quiet": Target(1.3, aim=1.1),
    "moves that were undone": Target(5.0, on="ours"),
    "answers, closed loop, beside the static pool": Target(1.3),
}


def measure(settings: Settings) -> Outcome:
    """Two pools of two workers with the same models, one client process each; only one is asked at a time. Both get the
    same requests at the same moments."""
    sheet = Sheet(TARGETS)
    turn = QUICK_TURN_SECONDS if settings.quick else TURN_SECONDS
    turns = QUICK_TURNS if settings.quick else TURNS
    models = _copies(settings, QUICK_MODELS if settings.quick else MODELS)
    names = [model["name"] for model in models]
    budget = _budget(settings, models)
    with ExitStack() as stack:
        pools: dict[str, tfpool.Pool] = {}
        askers: dict[str, Asker] = {}
        for name, policy in ((STATIC, "static"), (OURS, "auto")):
            more = {"memory_budget": budget, "policy": policy, "log_level": "info", "log_format": "json"}
            pools[name] = stack.enter_context(pool.configure(settings, models, WORKERS, **more))
            askers[name] = stack.enter_context(Asker(pools[name], names, settings.models.samples[_MODEL]))
        settings.progress.say("what the workers can do")
        even = np.full((1, len(names)), 1 / len(names))
        capacity = askers[STATIC].closed(Ranks(even, turn), 0)[0] / turn
        for number in settings.repeats():
            ranks = Ranks(rotating(len(names), turns, number), turn)
            schedule = Schedule(*ranks.arrivals(LOAD * capacity, number), ranks.seconds)
            seen: dict[str, Traffic] = {}
            answers: dict[str, int] = {}
            failed = 0
            moves = Moves(pools[OURS])
            for name in (STATIC, OURS):
                settings.progress.say(f"{name}, open loop")
                begin = askers[name].roam(schedule)
                moves.watch(askers[name])
                seen[name] = askers[name].collect()
                if name == OURS:
                    made = moves.made(begin)
            for name in (STATIC, OURS):
                settings.progress.say(f"{name}, closed loop")
                answers[name], errors = askers[name].closed(ranks, number)
                failed += errors if name == OURS else 0
            failed += seen[OURS].failed
            if not made and not settings.quick:
                raise BenchError("no model was moved: nothing can be said of moves")
            _add(sheet, ranks, seen, made, failed)
            sheet.rate("answers, closed loop, beside the static pool", "", answers[OURS], answers[STATIC])
            sheet.rate("the most that there is to gain", "x", most_gain(ranks.shares, _held(pools[STATIC], names)))
            sheet.rate("load 1 is", "req/s", capacity)
    return sheet.outcome()


def _copies(settings: Settings, number: int) -> list[dict[str, Any]]:
    """``[[model]]`` tables of models that differ to who looks at their files."""
    found = []
    for index in range(number):
        home = Path(settings.directory, "rotate", f"m{index:02}")
        shutil.copytree(settings.models.paths[_MODEL], home, copy_function=shutil.copy)
        found.append({"name": home.name, "base_path": str(home)})
    return found


def _budget(settings: Settings, models: Sequence[dict[str, Any]]) -> int:
    """Bytes for all workers, so that each has room for a share of the models."""
    room = round(ROOM * len(models))
    with pool.configure(settings, models[:room], 1) as served:
        (row,) = served.client().workers()
        return round(WORKERS * footprint(row["pid"]).unique / _LOADED_SHARE)


def _held(served: tfpool.Pool, names: Sequence[str]) -> list[list[int]]:
    """The numbers of the models that each worker holds."""
    rows = served.client().workers()
    return [[n for n, name in enumerate(names) if f"{name}:1" in row["models"]] for row in rows]


# -- what is asked -------------------------------------------------------------------------------------------------


def rotating(models: int, turns: int, seed: int) -> Array:
    """Shares of the requests, by turn and model: Zipf over ranks that begin at random, and move on turn by turn."""
    first = np.random.default_rng(seed).permutation(models)
    ranks = (first + STRIDE * np.arange(turns)[:, None]) % models
    weights: Array = 1.0 / (1 + ranks) ** EXPONENT
    shares: Array = weights / weights.sum(1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Ranks:
    """``shares`` of the requests, by turn and model; a turn lasts ``turn`` seconds."""

    shares: Array
    turn: float

    @property
    def seconds(self) -> float:
        """Of all turns."""
        return self.turn * len(self.shares)

    def drawn(self, seed: int) -> list[list[int]]:
        """For each turn a long row of models."""
        random = np.random.default_rng(seed)
        return [random.choice(len(shares), _DRAWN, p=shares).tolist() for shares in self.shares]

    def arrivals(self, rate: float, seed: int) -> tuple[Array, Array]:
        """Poisson: moments, increasing, and a model for each."""
        random = np.random.default_rng(seed)
        moments = poisson(rate, self.seconds, random)
        counts = np.bincount((moments // self.turn).astype(int), minlength=len(self.shares))
        picks = [random.choice(len(shares), n, p=shares) for shares, n in zip(self.shares, counts, strict=True)]
        return moments, np.concatenate(picks)


class Asker(Sender):
    """A child with one client, which asks many models with a row a request."""

    def __init__(self, served: tfpool.Pool, models: Sequence[str], samples: str) -> None:
        super().__init__(ask, served.endpoint, list(models), samples)

    def roam(self, schedule: Schedule) -> float:
        """Send it, with no deadlines to speak of; when that begins (monotonic seconds). :meth:`collect` must
        follow."""
        self.load(schedule, _SAFE_SECONDS)
        begin = time.monotonic() + START_SECONDS
        self.go(begin)
        return begin

    def over(self) -> bool:
        """Whether all is answered; waits a while for that."""
        return self._child.spoke(_LOOK_SECONDS)

    def closed(self, ranks: Ranks, seed: int) -> tuple[int, int]:
        """Keep requests under way for all turns: how many were answered, and how many failed. Raises WrongAnswer."""
        told = self._child.ask({"drawn": ranks.drawn(seed), "turn": ranks.turn}, timeout=ranks.seconds + 60.0)
        if told["wrong"]:
            raise WrongAnswer(f"{told['wrong']} answers are wrong")
        return told["answered"], told["failed"]


# -- what is seen --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """Who came to ``target`` and left ``source`` (``-``: none), when, in seconds since the load began."""

    model: str
    source: str
    target: str
    begin: float
    end: float


@dataclass
class Moves:
    """What a pool's log says of moves."""

    served: tfpool.Pool
    _lines: dict[str, None] = field(default_factory=dict)

    def watch(self, asker: Asker) -> None:
        """Look at the log until a load is over."""
        while not asker.over():
            self._lines |= dict.fromkeys(self.served.log().splitlines())
        self._lines |= dict.fromkeys(self.served.log().splitlines())

    def made(self, begin: float) -> list[Move]:
        """Those that have ended since ``begin`` (monotonic seconds), the oldest first."""
        offset = time.time() - time.monotonic() + begin
        return sorted((move for move in self._all(offset) if move.begin >= 0), key=lambda move: move.begin)

    def _all(self, offset: float) -> Iterator[Move]:
        for line in self._lines:
            with suppress(ValueError):  # cut in the middle
                told = json.loads(line)
                if told["event"] == "model.moved":
                    end = datetime.fromisoformat(told["time"].replace("Z", "+00:00")).timestamp() - offset
                    yield Move(told["model"], told["source"], told["target"], end - told["seconds"], end)


def undone(moves: Sequence[Move], turn: float) -> int:
    """Moves that took back, within a turn, what an earlier one of the same model had done."""
    found = 0
    for index, move in enumerate(moves):
        back = (move.model, move.target, move.source, move.begin // turn)
        found += back in {(one.model, one.source, one.target, one.begin // turn) for one in moves[:index]}
    return found


def most_gain(shares: Array, held: Sequence[Sequence[int]]) -> float:
    """How much more a closed loop could get than from workers that hold each model once, if their work were shared out
    evenly: in a turn the busiest of them bounds it."""
    busiest = np.max([shares[:, numbers].sum(1) for numbers in held], axis=0)
    return float(1 / np.mean(1 / (len(held) * busiest)))


def near(due: Array, moves: Iterable[Move]) -> Array:
    """Which moments lie within a move, or shortly after it."""
    found = np.zeros(len(due), bool)
    for move in moves:
        found |= (due >= move.begin) & (due < move.end + AFTER_SECONDS)
    return found


def _add(sheet: Sheet, ranks: Ranks, seen: dict[str, Traffic], moves: list[Move], failed: int) -> None:
    ours, static = seen[OURS], seen[STATIC]
    around = near(ours.due, moves)
    told = {"moves": [vars(move) for move in moves], "ours": ours.told(), "static": static.told()}
    sheet.cost("failed requests", "", failed, detail={"errors": ours.errors})
    sheet.cost("moves an hour", "", len(moves) / ranks.seconds * _HOUR_SECONDS, detail=told)
    sheet.cost("moves that were undone", "%", 100 * undone(moves, ranks.turn) / max(1, len(moves)))
    sheet.rate("requests around moves", "%", 100 * float(around.mean()))
    for q, name in ((0.999, "p99.9"), (0.5, "p50")):
        sheet.cost(f"{name} around moves, beside quiet", "ms", _ms(ours, around, q), _ms(ours, ~around, q))
        sheet.cost(f"{name} around moves, beside the static pool", "ms", _ms(ours, around, q), _ms(static, around, q))
        sheet.cost(f"{name}, beside the static pool", "ms", ours.ms(q), static.ms(q))


def _ms(traffic: Traffic, chosen: Array, q: float) -> float:
    """Of the chosen requests, or of all where there are none."""
    if not chosen.any():
        return traffic.ms(q)
    return ms(np.sort(traffic.seconds[chosen & np.isfinite(traffic.seconds)]), q)


# -- the child's side ----------------------------------------------------------------------------------------------


def ask(channel: Channel, endpoint: str, models: list[str], samples: str) -> None:
    """The child: says when it is connected; told of moments or of turns, asks, and says what came of it."""
    sys.setswitchinterval(0.0002)  # or who sends would wait for who receives
    with np.load(samples) as file:
        x, y = (as_requests(file[name], 1) for name in "xy")
    with tfpool.Client(endpoint) as client:
        for model in models:
            client.predict(model, x[0])
        channel.say("connected")
        for order in orders(channel):
            if "moments" in order:
                roaming = Roaming(client, [models[n] for n in order["picks"]], x, y)
                channel.say(roaming.run(order["begin"], order["moments"], order["timeout"]))
            else:
                channel.say(Lanes(client, models, x, y).run(order["drawn"], order["turn"]))


class Lanes:
    """A closed loop over many models; who receives an answer sends the next request."""

    def __init__(self, client: tfpool.Client, models: Sequence[str], rows: Sequence[Array], answers: Sequence[Array]):
        self._client = client
        self._models = models
        self._rows = rows
        self._answers = answers
        self._running = True
        self._outcomes = self._failed = self._wrong = 0
        self._ended: list[None] = []

    def run(self, drawn: Sequence[Sequence[int]], turn: float) -> dict[str, int]:
        """Ask as each turn has it."""
        begin = time.monotonic()
        for number, picks in enumerate(drawn):
            self._picks = cycle(picks)
            for _ in range(0 if number else IN_FLIGHT):
                self._send()
            sleep_until(begin + turn * (number + 1))
        answered = self._outcomes - self._failed
        self._running = False
        while len(self._ended) < IN_FLIGHT:
            time.sleep(0.01)
        return {"answered": answered, "failed": self._failed, "wrong": self._wrong}

    def _send(self) -> None:
        number = self._outcomes % len(self._rows)
        future = self._client.submit(self._models[next(self._picks)], self._rows[number])
        future.add_done_callback(partial(self._done, number))

    def _done(self, number: int, future: Future[Any]) -> None:
        self._outcomes += 1
        if future.exception() is not None:
            self._failed += 1
        elif self._outcomes % _CHECKED == 0:
            (output,) = future.result().values()
            self._wrong += wrong([(0, output[None])], self._answers[number][None])
        if self._running:
            self._send()
        else:
            self._ended.append(None)


SCENARIO = Scenario(
    "rotate",
    f"{MODELS} models on {WORKERS} workers, Zipf({EXPONENT}), whose ranks move on every {TURN_SECONDS:g} s",
    measure,
    (_MODEL,),
    TARGETS,
    experiment=7,
    repeats=dict.fromkeys(Form, 1),
)
