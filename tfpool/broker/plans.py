"""What the control plane shows of plans and migrations: plain rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tfpool.broker.migrations import Migration
from tfpool.broker.planning import Applying, Outcome
from tfpool.broker.reforms import Reform
from tfpool.broker.registry import Version
from tfpool.broker.rolling import Replacement
from tfpool.broker.survey import Survey
from tfpool.placement.board import Board, Facts
from tfpool.placement.migration import Phase
from tfpool.placement.planner import after
from tfpool.placement.snapshot import NOTHING, Kind, Snapshot, Step
from tfpool.settings import Form, PlacementPolicy

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

Row = dict[str, Any]
_NOTES = {
    PlacementPolicy.AUTO: "",
    PlacementPolicy.ADVISE: 'the policy is "advise": nothing moves until somebody applies it',
    PlacementPolicy.STATIC: 'the policy is "static": nothing moves until somebody applies it',
}


def proposal(broker: Broker) -> Row | None:
    """What the planner would do, and why, with the pool before and after; None while it thinks."""
    found = broker.planning.proposal(time.monotonic())
    if found is None:
        return None
    begin, steps, complete = found
    end = begin
    for step in steps:
        end = after(end, step)
    idle = broker.planning.rules.idle
    now, then = Board(Facts(begin, idle)), Board(Facts(end, idle))
    policy = broker.planning.policy
    note = _NOTES[policy] if steps else "nothing that could be moved gains more than moving it costs"
    if not complete:
        note = "; ".join(filter(None, (note, "these are the first steps: more may follow")))
    return {
        "policy": policy.value,
        "steps": [step_row(step, begin) for step in steps],
        "cost": {"now": round(now.cost()[0], 6), "after": round(then.cost()[0], 6)},
        "workers": _workers(now, then),
        "migrations": changes(broker),
        "replacing": [replacement_row(one) for one in broker.rolling.under_way()],
        "note": note,
    }


def _workers(now: Board, then: Board) -> list[Row]:
    return [
        {
            "name": before.name,
            "device": before.device,
            "room": before.room,
            "held": before.held,
            "load": round(now.load[0][at], 4),
            "held_after": last.held,
            "load_after": round(then.load[0][at], 4),
        }
        for at, (before, last) in enumerate(zip(now.facts.workers, then.facts.workers, strict=True))
    ]


def step_row(step: Step, snapshot: Snapshot) -> Row:
    """A step of a plan made from ``snapshot``; times in seconds."""
    model, _, version = step.name.rpartition(":")
    view = next((s for s in snapshot.servables if s.handle == step.handle and step.target), None)
    loaded = view.inlined if view is not None and step.kind is Kind.INLINE else view
    seconds = loaded.load_seconds if loaded is not None else 0.0
    return {
        "kind": step.kind.value,
        "model": model,
        "version": int(version or 0),
        "source": step.source,
        "target": step.target,
        "bytes": step.nbytes,
        "gain": round(step.gain, 4),
        "cost": round(step.cost, 4),
        "seconds": round(seconds, 4),
        "reason": step.reason,
    }


def demand(version: Version, survey: Survey) -> Row:
    """What is asked of a version a second, fast and slow averages; worker seconds a row, by worker."""
    rates = survey.rates(version)
    fast, slow = (rates.fast, rates.slow) if rates is not None else (NOTHING, NOTHING)
    quiet = rates is None or rates.quiet
    return {
        "rate": {
            "asks": round(fast.asks, 3),
            "asks_slow": round(slow.asks, 3),
            "rows": round(fast.rows, 3),
            "rows_slow": round(slow.rows, 3),
        },
        "replicas": list(survey.replicas(version)),
        "row_seconds": {} if quiet else {w: round(s, 9) for w, s in survey.row_seconds(version).items()},
        "idle_seconds": None if rates is None else round(time.monotonic() - rates.asked_at, 3),
    }


def migration_row(migration: Migration) -> Row:
    until = migration.ended if migration.ended is not None else time.monotonic()
    return {
        "id": migration.number,
        "model": migration.version.key.name,
        "version": migration.version.key.version,
        "source": migration.source,
        "target": migration.target,
        "kind": migration.kind.value,
        "phase": migration.phase.value,
        "bytes": migration.nbytes,
        "seconds": round(until - migration.begun, 4),
        "ago": round(time.monotonic() - migration.begun, 3),
        "reason": migration.reason,
        "by": migration.by,
        "error": migration.error.message if migration.error is not None else None,
    }


def reform_row(reform: Reform) -> Row:
    """A change of form, as a migration that goes nowhere."""
    inlines = reform.form is Form.INLINED
    until = reform.ended if reform.ended is not None else time.monotonic()
    phase = Phase.LOADING if not reform.over else Phase.DONE if reform.error is None else Phase.ABORTED
    return {
        "id": reform.number,
        "model": reform.version.key.name,
        "version": reform.version.key.version,
        "source": "" if inlines else reform.worker,
        "target": reform.worker if inlines else "",
        "kind": (Kind.INLINE if inlines else Kind.MAP).value,
        "phase": phase.value,
        "bytes": reform.nbytes,
        "seconds": round(until - reform.begun, 4),
        "ago": round(time.monotonic() - reform.begun, 3),
        "reason": reform.reason,
        "by": reform.by,
        "error": reform.error.message if reform.error is not None else None,
    }


def changes(broker: Broker) -> list[Row]:
    """Migrations and changes of form, those under way and the last that ended, in the order of their beginnings."""
    rows = [migration_row(one) for one in broker.migrations.all()] + [reform_row(one) for one in broker.reforms.all()]
    return sorted(rows, key=lambda row: int(row["id"]))


def replacement_row(one: Replacement) -> Row:
    return {"worker": one.link.name, "stage": one.stage.value, "moving": len(one.moves), "by": one.by}


def applied(applying: Applying) -> Row:
    """What has become of a plan that somebody had carried out."""
    return {"steps": [_outcome(outcome) for outcome in applying.outcomes]}


def _outcome(outcome: Outcome) -> Row:
    work = outcome.work
    error = outcome.error if work is None else work.error
    took = 0.0 if work is None else (work.ended or work.begun) - work.begun
    phase = work.phase if isinstance(work, Migration) else Phase.DONE if error is None else Phase.ABORTED
    return {
        **step_row(outcome.step, outcome.seen),
        "outcome": phase.value,
        "error": error.message if error is not None else None,
        "took": round(took, 4),
    }
