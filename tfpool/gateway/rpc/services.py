"""The services that a gateway has: TensorFlow Serving's, health, reflection, and those it is given."""

from __future__ import annotations

from collections.abc import Iterable

from tfpool.gateway.access import Keeper
from tfpool.gateway.rpc import health, models, prediction
from tfpool.gateway.rpc.health import Health
from tfpool.gateway.rpc.methods import Method, Methods
from tfpool.gateway.rpc.models import Models
from tfpool.gateway.rpc.prediction import Prediction
from tfpool.gateway.rpc.reflection import Reflection
from tfpool.gateway.serving import Gateway


def services(gateway: Gateway, keeper: Keeper, others: Iterable[Method] = ()) -> Methods:
    """All methods, for a server; ``others`` are those of more services."""
    given = tuple(others)
    names = (prediction.SERVICE, models.SERVICE, *sorted({method.path.split("/")[1] for method in given}))
    rooms = (Prediction(gateway), Models(gateway), Health(gateway, keeper, names), Reflection((*names, health.SERVICE)))
    return Methods(keeper, (*given, *(method for room in rooms for method in room.methods())))
