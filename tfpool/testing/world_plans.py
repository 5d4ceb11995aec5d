"""The planner of a :class:`~tfpool.testing.world.World`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tfpool.broker.logbook import Logbook
from tfpool.broker.planning import Planning
from tfpool.broker.survey import Survey
from tfpool.settings import PlacementSettings
from tfpool.testing.world import World
from tfpool.testing.world_fakes import MIB

RESIDUE_LIMIT = 64 * MIB


def at_once(job: Callable[[], Any], done: Callable[[Future[Any]], None]) -> None:
    """Do a job here and now."""
    future: Future[Any] = Future()
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
    done(future)


def planner(world: World, journal: Logbook | None = None, **settings: Any) -> Planning:
    """One that looks at a world when it is told to; ``settings`` are those of the placement."""
    placement = PlacementSettings(**settings)
    survey = Survey(
        world.registry,
        world.fleet,
        world.budget,
        world.residence,
        world.scheduler,
        world.meters,
        world.migrations,
        world.reforms,
        placement,
    )
    return Planning(
        placement,
        RESIDUE_LIMIT,
        world.registry,
        world.fleet,
        world.room,
        world.residence,
        world.migrations,
        world.rolling,
        world.reforms,
        survey,
        journal or Logbook(None),
        world.lifecycle.settled,
        at_once,
        world.now,
    )
