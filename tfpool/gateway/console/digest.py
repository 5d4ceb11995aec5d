"""What the page shows, made from what the pool tells: rows, and rates over the last few seconds. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tfpool.gateway.console.spread import Spread

Row = dict[str, Any]

WINDOW_SECONDS = 5.0
STORY_SECONDS = 300.0
_PLAIN = "plain"
_TIMES = {"wait": "queue_us", "run": "run_us"}


@dataclass(frozen=True, slots=True)
class Polled:
    """The pool at a moment (seconds of the epoch): what its reading verbs gave."""

    at: float
    stats: Row
    models: list[Row]
    queues: list[Row]
    progress: Row


class Digest:
    """Remembers the polls of the last seconds for the rates, and a point a poll for the charts.

    ``head`` is the pool as a whole, ``sections`` the rows of models, workers, queues and changes by key, ``story`` the
    points of the last minutes: ``at``, ``requests`` and ``errors`` a second, ``wait`` and ``run``.
    """

    def __init__(self) -> None:
        self.head: Row = {}
        self.sections: dict[str, dict[str, Row]] = {}
        self.story: deque[Row] = deque()
        self._recent: deque[Polled] = deque()
        self._begun: dict[str, float] = {}

    def add(self, polled: Polled) -> None:
        """The pool looks like this now."""
        recent = self._recent
        if recent and polled.stats["uptime_seconds"] < recent[-1].stats["uptime_seconds"]:
            recent.clear()  # another broker, whose counters began anew
        while len(recent) > 1 and recent[1].at <= polled.at - WINDOW_SECONDS:
            recent.popleft()
        before, last = (recent[0], recent[-1]) if recent else (polled, polled)
        recent.append(polled)
        rates, times = _rates(before, polled)
        self._tell(polled, last, times)
        self.sections = {
            "models": {_key(row): _model(row, rates.get(row["name"], {})) for row in polled.models},
            "workers": {row["name"]: row for row in polled.stats["workers"]},
            "queues": {_queue_key(row): row for row in polled.queues if row["rows"]},
            "changes": self._changes(polled),
        }

    def _tell(self, polled: Polled, last: Polled, times: Row) -> None:
        stats, span = polled.stats, polled.at - last.at
        errors = _errors(polled.stats)
        now = _growth(last.stats, stats)
        point = {
            "at": round(polled.at, 2),
            "requests": _per_second(now["requests"], span),
            "errors": _per_second(errors.total() - _errors(last.stats).total(), span),
            **times,
        }
        if span:
            self.story.append(point)
        while self.story and self.story[0]["at"] < polled.at - STORY_SECONDS:
            self.story.popleft()
        self.head = {
            **point,
            "rows": _per_second(now["rows"], span),
            "uptime": stats["uptime_seconds"],
            "settled": polled.progress["settled"],
            "waiting": stats["waiting_rows"],
            "codes": dict(errors.most_common()),
            "loads": stats["loads"],
            "evictions": stats["evictions"],
            "shm": stats["shm"],
            "broker": _per_second(stats["broker_cpu_seconds"] - last.stats["broker_cpu_seconds"], span),
            "replacing": polled.progress["replacing"],
            "reload": polled.progress["reload"],
        }

    def _changes(self, polled: Polled) -> dict[str, Row]:
        """Migrations and changes of form; ``begun`` is the moment (seconds of the epoch), told once and for all."""
        rows = {str(row["id"]): row for row in polled.progress["migrations"]}
        self._begun = {key: self._begun.get(key, round(polled.at - row["ago"], 1)) for key, row in rows.items()}
        return {
            key: {**{name: value for name, value in row.items() if name != "ago"}, "begun": self._begun[key]}
            for key, row in rows.items()
        }


def _key(row: Row) -> str:
    return f"{row['name']}:{row['version']}"


def _queue_key(row: Row) -> str:
    return f"{row['model']}:{row['version']}/{row['signature']}/{row['shapes']}"


def _model(row: Row, rates: Row) -> Row:
    """A version's row, with what was asked of its model in the last seconds; ``load`` is the share of a worker's time
    that it takes."""
    demand, seconds, store = row.get("rate") or {}, row.get("row_seconds") or {}, row.get("store") or {}
    asks, rows = demand.get("asks", 0.0), demand.get("rows", 0.0)
    return {
        "name": row["name"],
        "version": row["version"],
        "state": row["state"],
        "goal": row.get("loaded", ""),
        "labels": row["labels"],
        "workers": row["workers"],
        "memory": row["memory_bytes"],
        "seconds": row["load_seconds"],
        "error": row["error"],
        "crashes": row.get("crashes", 0),
        "isolated": row.get("isolated", False),
        "forms": {worker: form for worker, form in row["forms"].items() if form != _PLAIN},
        "store": store.get("state", ""),
        "asks": asks,
        "load": round(rows * sum(seconds.values()) / len(seconds), 4) if seconds else 0.0,
        **{name: value for name, value in rates.items() if asks or name not in _TIMES},
    }


def _rates(before: Polled, now: Polled) -> tuple[dict[str, Row], Row]:
    """What each model did between two polls, by its name, and all of them: how long requests waited (``wait``) and
    batches ran (``run``), as quantiles. What did nothing is left out."""
    found: dict[str, Row] = {}
    everything = {"wait": Spread(), "run": Spread()}
    for name, meter in now.stats["models"].items():
        row: Row = {}
        earlier = before.stats["models"].get(name)
        for what, key in _TIMES.items():
            known, spread = earlier[key] if earlier else None, Spread()
            if now is not before and spread.add(known, meter[key]):
                row[what] = spread.row()
                everything[what].add(known, meter[key])
        if meter["errors"]:
            row["errors"] = meter["errors"]
        if row:
            found[name] = row
    return found, {what: spread.row() for what, spread in everything.items()}


def _growth(before: Mapping[str, Any], now: Mapping[str, Any]) -> Counter[str]:
    """How many requests and rows there were between two polls."""
    found: Counter[str] = Counter()
    for name, meter in now["models"].items():
        earlier = before["models"].get(name)
        for key in ("requests", "rows"):
            found[key] += meter[key] - (earlier[key] if earlier else 0)
    return found


def _errors(stats: Mapping[str, Any]) -> Counter[str]:
    """Errors since the start, by code."""
    meters: Iterable[Row] = stats["models"].values()
    return sum((Counter(meter["errors"]) for meter in meters), Counter())


def _per_second(count: float, span: float) -> float:
    return round(max(0.0, count) / span, 3) if span else 0.0
