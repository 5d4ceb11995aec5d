"""What becomes of connections whose other end does not do its part, without a network and without waiting."""

from __future__ import annotations

from typing import Any

import pytest

from tfpool.gateway.access import Keeper
from tfpool.gateway.app import App
from tfpool.gateway.protocol import LINGER_SECONDS, SLOWEST, Connection
from tfpool.gateway.server import HttpServer
from tfpool.settings import GatewaySettings

SETTINGS = GatewaySettings(read_s=10.0, idle_s=60.0)
BEGIN = 1000.0
REFUSED = b"GET / HTTP/9.9\r\nhost: a\r\n\r\n"


class Socket:
    def setsockopt(self, *_: Any) -> None:
        pass


class Transport:
    """Remembers what was done to it; ``unsent`` bytes wait for somebody to read them."""

    def __init__(self) -> None:
        self.unsent = 0
        self.aborted = self.closing = self.ended = False
        self.written = b""

    def get_extra_info(self, name: str) -> Any:
        return Socket() if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Line:
    """A connection at a moment of the test's own; it is swept when time passes."""

    def __init__(self) -> None:
        self.server = HttpServer(App(SETTINGS, Keeper(SETTINGS), ()), SETTINGS)
        self.server.now = BEGIN
        self.transport = Transport()
        self.connection = Connection(self.server)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def pass_to(self, moment: float) -> Transport:
        self.server.now = BEGIN + moment
        self.connection.sweep(BEGIN + moment)
        return self.transport


@pytest.fixture
def line() -> Line:
    return Line()


def test_who_says_nothing(line: Line) -> None:
    assert not line.pass_to(SETTINGS.idle_s).closing
    assert line.pass_to(SETTINGS.idle_s + 1).closing


def test_a_request_that_does_not_arrive(line: Line) -> None:
    line.connection.data_received(b"GET / HTTP/1.1\r\nhost")
    assert not line.pass_to(SETTINGS.read_s).written
    assert line.pass_to(SETTINGS.read_s + 1).written.startswith(b"HTTP/1.1 408 ")


def test_a_last_answer_is_given_time_to_be_read(line: Line) -> None:
    line.connection.data_received(REFUSED)
    assert line.transport.ended
    line.transport.unsent = 5000
    assert not line.pass_to(LINGER_SECONDS + 1).aborted
    assert not line.pass_to(SETTINGS.read_s).aborted
    assert line.pass_to(SETTINGS.read_s + 1).aborted


def test_after_a_last_answer_that_was_read(line: Line) -> None:
    line.connection.data_received(REFUSED)
    assert not line.pass_to(LINGER_SECONDS).aborted
    assert line.pass_to(LINGER_SECONDS + 0.1).aborted


def test_a_large_last_answer_is_read_at_a_bearable_pace(line: Line) -> None:
    line.connection.data_received(REFUSED)
    line.transport.unsent = 10 * SLOWEST * 60
    line.connection.pause_writing()
    for second in range(1, 60):
        line.transport.unsent -= 2 * SLOWEST
        assert not line.pass_to(second).aborted


def test_an_answer_that_nobody_reads(line: Line) -> None:
    line.transport.unsent = 1 << 20
    line.connection.pause_writing()
    assert not line.pass_to(SETTINGS.read_s).aborted
    assert line.server.budget.held == 1 << 20
    assert line.pass_to(SETTINGS.read_s + 1).aborted


def test_closing_takes_an_end_though_nobody_reads(line: Line) -> None:
    line.transport.unsent, line.transport.closing = 5000, True
    assert not line.pass_to(SETTINGS.idle_s + SETTINGS.read_s).aborted
    assert line.pass_to(SETTINGS.idle_s + SETTINGS.read_s + 1).aborted


def test_an_end_does_not_wait_for_half_a_request(line: Line) -> None:
    line.connection.data_received(b"GET / HTTP/1.1\r\nhost")
    line.connection.end(late=False)
    assert not line.transport.closing
    line.connection.end(late=True)
    assert line.transport.closing
