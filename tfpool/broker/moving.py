"""The verbs that move models and replace workers: migrate, apply, drain, restart, restart_all.

What they begin goes on in the background, also when the caller has left; the answer comes when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfpool.broker import plans, rows
from tfpool.broker.fleet import Link, WorkerState
from tfpool.broker.later import soon
from tfpool.broker.registry import Version, some_names, usable
from tfpool.broker.rolling import Replacement
from tfpool.errors import FailedPrecondition, NotFound
from tfpool.placement.snapshot import Kind
from tfpool.repository.states import State

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

Row = dict[str, Any]


def migrate(broker: Broker, model: str, to: str, version: int | None = None, source: str | None = None) -> Row:
    """Move a version (the one that a request would reach) to a worker; answers when it serves there, and has left the
    ``source`` (the busiest worker that serves it)."""
    link = find(broker, to)
    moving = broker.registry.route(model, version or 0, "")[0][0]
    origin = _source(broker, usable(moving), to, source)
    if any(signature.mutates for signature in moving.signatures):
        raise FailedPrecondition(f"{moving.key} keeps a state in its variables, which would be lost on the way")
    under_way = broker.migrations.of(moving)
    if under_way is not None:
        raise FailedPrecondition(f"{moving.key} is on its way to {under_way.target or 'nowhere'} already")
    broker.planning.room.check(moving, link)
    migration = broker.migrations.begin(moving, Kind.MIGRATE, origin, to, "hand")

    def question() -> Row | None:
        if not migration.over:
            return None
        if migration.error is not None:
            raise migration.error
        return rows.version_row(broker.registry.model(model), moving)

    answer: Row = soon(question)
    return answer


def _source(broker: Broker, version: Version, to: str, source: str | None) -> str:
    """Which worker lets go. Raises FailedPrecondition."""
    serving = [worker for worker in version.serving() if worker != to]
    if source is not None:
        find(broker, source)
        if source not in serving:
            where = some_names(version.serving())
            raise FailedPrecondition(f"{version.key} cannot leave {source}: it is served by {where}")
        return source
    if to in version.held_by():
        raise FailedPrecondition(f"{version.key} is on {to} already ({version.on[to].value})")
    if not serving:
        name, number = version.key.name, version.key.version
        raise FailedPrecondition(
            f"{version.key} is {version.state.value}, expected AVAILABLE; `tfpool load {name}:{number}` loads it"
        )
    links = broker.fleet.links
    return max(serving, key=lambda worker: (links[worker].busy_share, worker))


def apply(broker: Broker) -> Row:
    """Carry out what the planner proposes, whatever the policy; answers when nothing is left to do."""
    applying = broker.planning.apply()

    def question() -> Row | None:
        return plans.applied(applying) if applying.over else None

    answer: Row = soon(question)
    return answer


# -- workers -------------------------------------------------------------------------------------------------------


def drain(broker: Broker, worker: str) -> Row:
    """Take a worker out of service: others load its models first, then it finishes what it has."""
    link = _up(broker, worker)
    others = [other for other in broker.fleet.candidates() if other is not link]
    held = [v for v in broker.registry.versions() if v.on.get(worker) is State.AVAILABLE]
    if held and not others:
        raise FailedPrecondition(f"no other worker can take the {len(held)} models of {worker}")
    broker.turnover.vacate(link)

    def question() -> Row | None:
        if not link.drained:
            raise FailedPrecondition(f"worker {worker} was replaced meanwhile, and is in service again")
        if link.state is WorkerState.DRAINING and not broker.turnover.step(link):
            return None
        return rows.worker_row(link, broker.registry.versions())

    answer: Row = soon(question)
    return answer


def restart(broker: Broker, worker: str) -> Row:
    """Replace a worker's process; answers when it serves again. Its models move away first, where others have room, and
    come back; requests for those that stay wait in their queues meanwhile."""
    replacing = broker.rolling.begin([_up(broker, worker)], "restart")

    def question() -> Row | None:
        done = _replaced(broker, replacing)
        return done[0] if done is not None else None

    answer: Row = soon(question)
    return answer


def restart_all(broker: Broker) -> list[Row]:
    """Replace the processes of all workers, one after the other, as :func:`restart` does; but for those that are
    drained, which would be in service again."""
    links = [link for link in broker.fleet.links.values() if link.state is not WorkerState.HALTED and not link.drained]
    replacing = broker.rolling.begin(links, "restart")
    answer: list[Row] = soon(lambda: _replaced(broker, replacing))
    return answer


def _replaced(broker: Broker, replacing: list[Replacement]) -> list[Row] | None:
    """The rows of replaced workers, once all are. Raises the error of one that does not come back."""
    for one in replacing:
        if one.error is not None:
            raise one.error
    if not all(one.over for one in replacing):
        return None
    versions = broker.registry.versions()
    return [{**rows.worker_row(one.link, versions), "returned_bytes": one.returned} for one in replacing]


def find(broker: Broker, name: str) -> Link:
    """Raises NotFound."""
    link = broker.fleet.links.get(name)
    if link is None:
        raise NotFound(f"no worker {name!r}; there are {some_names(broker.fleet.links)}")
    return link


def _up(broker: Broker, name: str) -> Link:
    link = find(broker, name)
    if not link.up:
        raise FailedPrecondition(f"worker {name} is {link.state.value}, expected READY")
    return link


VERBS: dict[str, Callable[..., Any]] = {verb.__name__: verb for verb in (migrate, apply, drain, restart, restart_all)}
