"""The gateway as a process: it listens, says how it is, lives on after bad requests, and ends with its pool."""

from __future__ import annotations

import os
import signal

import pytest

from tfpool.testing.fake_worker import FakePool, until
from tfpool.testing.fronts import Web, await_front

pytestmark = pytest.mark.process


def test_health(web: Web) -> None:
    assert web.get("/healthz").json == {"live": True}
    assert web.get("/readyz").json == {"ready": True}


def test_a_path_that_is_not_there(web: Web) -> None:
    answer = web.get("/nothing")
    assert answer.status == 404
    assert answer.json == {"error": "there is nothing at /nothing; see /openapi.json"}


def test_a_method_that_is_not_allowed(web: Web) -> None:
    answer = web.post("/healthz", {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_a_dead_gateway_is_replaced(front: FakePool) -> None:
    address = str(front.settings.server.http)
    (pid,) = front.children("tfpool-gateway")
    os.kill(pid, signal.SIGKILL)
    until(lambda: front.children("tfpool-gateway") not in ([], [pid]))
    await_front(address)
    made = Web(address)
    assert made.get("/healthz").status == 200
    made.close()
