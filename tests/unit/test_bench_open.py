"""Open loops: when requests come, who sends them, and what is counted."""

from __future__ import annotations

import asyncio
import re
import select
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.arrivals import TRACE_BYTES, Schedule, gamma, trace
from bench.children import ROOT
from bench.errors import BenchError, WrongAnswer
from bench.points import CLIENT
from bench.scenarios.traffic import MODELS, PATTERNS
from bench.senders import REASONS, Sender, Together, Traffic, merged, to_check
from bench.web import Alarm, Volley, WebStream

INFINITE = float("inf")
SEEDS = st.integers(0, 2**32 - 1)

# -- arrivals ------------------------------------------------------------------------------------------------------


@given(SEEDS, st.floats(0.3, 6.0), st.floats(1.0, 500.0), st.floats(0.01, 5.0))
def test_gamma_is_in_order_and_within_its_window(seed: int, cv: float, rate: float, seconds: float) -> None:
    moments = gamma(rate, seconds, cv, np.random.default_rng(seed))
    assert np.all(np.diff(moments) >= 0)
    assert np.all((moments >= 0) & (moments < seconds))
    assert np.array_equal(moments, gamma(rate, seconds, cv, np.random.default_rng(seed)))


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_has_the_rate_and_the_variation_that_were_asked_for(cv: float) -> None:
    """The count of a renewal process has about cv^2 times its mean as variance: five deviations are allowed."""
    moments = gamma(200.0, 200.0, cv, np.random.default_rng(7))
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(40_000, abs=5 * cv * 200)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_gamma_is_not_denser_when_it_begins() -> None:
    """It has always been going on: the first hundredth of a second is as any other."""
    counts = [len(gamma(100.0, 0.01, 4.0, np.random.default_rng(seed))) for seed in range(4000)]
    assert np.mean(counts) == pytest.approx(1.0, abs=5 * np.std(counts) / 4000**0.5)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(sorted(PATTERNS)), st.floats(1000.0, 3000.0), st.floats(0.5, 2.0))
def test_every_pattern_is_a_schedule_of_the_models(seed: int, name: str, rate: float, seconds: float) -> None:
    made = PATTERNS[name](rate, seconds, seed)
    again = PATTERNS[name](rate, seconds, seed)
    assert made.rate == pytest.approx(rate)
    assert made.models <= MODELS
    assert np.array_equal(made.moments, again.moments)
    assert np.array_equal(made.picks, again.picks)


def schedules() -> st.SearchStrategy[Schedule]:
    return st.lists(st.tuples(st.floats(0.0, 9.9), st.integers(0, 5)), max_size=30).map(
        lambda pairs: Schedule(
            np.array(sorted(moment for moment, _ in pairs)), np.array([pick for _, pick in pairs], int), 10.0
        )
    )


@given(schedules(), st.integers(1, 7))
def test_clients_share_a_schedule_out_and_nothing_is_lost(schedule: Schedule, clients: int) -> None:
    parts = schedule.split(clients)
    assert len(parts) == clients
    assert max(len(part.moments) for part in parts) - min(len(part.moments) for part in parts) <= 1
    pairs = [pair for part in parts for pair in zip(part.moments.tolist(), part.picks.tolist(), strict=True)]
    assert sorted(pairs) == sorted(zip(schedule.moments.tolist(), schedule.picks.tolist(), strict=True))
    assert {part.window for part in parts} == {schedule.window}


@given(schedules().filter(lambda schedule: len(schedule.moments) > 0), st.floats(0.01, 1e5))
def test_a_schedule_goes_faster_or_slower(schedule: Schedule, rate: float) -> None:
    made = schedule.scaled(rate)
    assert made.rate == pytest.approx(rate)
    assert np.array_equal(made.picks, schedule.picks)
    assert made.moments == pytest.approx(schedule.moments * schedule.rate / rate)


@given(schedules(), st.floats(0.1, 50.0))
def test_a_schedule_goes_on_as_long_as_asked(schedule: Schedule, seconds: float) -> None:
    made = schedule.lasting(seconds)
    whole = int(seconds // schedule.window)
    rest = int(np.sum(schedule.moments < seconds - whole * schedule.window))
    assert made.window == seconds
    assert abs(len(made.moments) - (whole * len(schedule.moments) + rest)) <= 1, "but for rounding"
    assert np.array_equal(made.picks[: len(schedule.picks)], schedule.picks[: len(made.picks)])


@pytest.mark.parametrize(
    ("moments", "picks", "window", "error"),
    [
        ([0.0, 1.0], [0, 0], 1.0, "outside"),
        ([-0.1], [0], 1.0, "outside"),
        ([float("nan")], [0], 1.0, "outside"),
        ([0.5, 0.4], [0, 0], 1.0, "decrease"),
        ([0.5], [0, 0], 1.0, "one for one"),
        ([0.5], [-1], 1.0, "integers from 0"),
        ([0.5], [0.5], 1.0, "integers from 0"),
        ([0.5], [0], INFINITE, "a finite one"),
        ([0.5], [0], 0.0, "a finite one"),
    ],
)
def test_what_is_no_schedule(moments: list[float], picks: list[Any], window: float, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Schedule(np.array(moments), np.array(picks), window)


def test_no_requests_have_no_rate() -> None:
    with pytest.raises(ValueError, match="got no requests"):
        Schedule.of_one(np.array([]), 1.0).scaled(1.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, INFINITE, float("nan")])
def test_what_is_no_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        Schedule.of_one(np.array([0.5]), 1.0).scaled(rate)


# -- recordings ----------------------------------------------------------------------------------------------------


def recorded(directory: Path, text: str | bytes) -> Path:
    path = directory / "trace.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_recording_begins_with_its_first_request(tmp_path: Path) -> None:
    schedule = trace(recorded(tmp_path, "seconds,model\r\n100,b\r\n101.5,a\r\n101.5,b\r\n102,c\r\n"))
    assert schedule.moments.tolist() == [0.0, 1.5, 1.5, 2.0]
    assert schedule.picks.tolist() == [0, 1, 0, 2]
    assert schedule.window == pytest.approx(2.0 * 4 / 3), "a mean gap follows the last one"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ":1: got None, expected"),
        ("time,model\n1,a\n", ":1: got .*'time'"),
        ("seconds,model\n", "got 0 requests that last no time"),
        ("seconds,model\n1,a\n", "got 1 requests that last no time"),
        ("seconds,model\n1,a\n1,a\n", "got 2 requests that last no time"),
        ("seconds,model\n1,a\n0.5,a\n", ":3: got 0.5 s after 1 s"),
        ("seconds,model\n1,a\n2\n", r":3: got \['2'\]"),
        ("seconds,model\n1,a\n2,a,b\n", ":3: got"),
        ("seconds,model\n1,a\n\n2,a\n", r":3: got \[\]"),
        ("seconds,model\n1,a\n2, \n", ":3: got"),
        ("seconds,model\n1,a\nnan,a\n", ":3: got 'nan', expected seconds"),
        ("seconds,model\n1,a\ninf,a\n", ":3: got 'inf'"),
        ("seconds,model\n1,a\n1e999,a\n", ":3: got '1e999'"),
        ("seconds,model\n-1,a\n", ":2: got '-1'"),
        ("seconds,model\nsoon,a\n", ":2: got 'soon'"),
        ('seconds,model\n1,"a\n', "no CSV in UTF-8"),
        (b"seconds,model\n1,\xff\n", "no CSV in UTF-8"),
        ("seconds,model\n1," + 200_000 * "a", "no CSV in UTF-8: field larger"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, text: str | bytes, error: str) -> None:
    with pytest.raises(BenchError, match=error):
        trace(recorded(tmp_path, text))


def test_a_recording_has_a_size_that_memory_bears(tmp_path: Path) -> None:
    path = recorded(tmp_path, "seconds,model\n")
    with open(path, "r+b") as file:
        file.truncate(TRACE_BYTES + 1)
    with pytest.raises(BenchError, match=f"expected {TRACE_BYTES} at most"):
        trace(path)


def test_the_example_is_a_recording() -> None:
    """Waves, and one crowd that comes in a flash: less even than Poisson."""
    schedule = trace(ROOT / "configs" / "trace.csv")
    assert (len(schedule.moments), schedule.models) == (1500, MODELS)
    counts = np.bincount(schedule.moments.astype(int))
    assert counts.var() / counts.mean() > 2.0


# -- what is counted -----------------------------------------------------------------------------------------------


def traffic(
    due: list[float], seconds: list[float], errors: dict[str, int], reasons: list[str] | None = None
) -> Traffic:
    lateness = np.full(len(due), 0.001)
    return Traffic(2.0, np.array(due), lateness, np.array(seconds), errors, 0.5, reasons or [])


def test_clients_are_one_load() -> None:
    parts = [traffic([0.0, 1.0], [0.1, INFINITE], {"X": 1}, ["x"]), traffic([0.5], [0.3], {"X": 1, "Y": 2}, ["x", "y"])]
    whole = merged(parts)
    assert whole.due.tolist() == [0.0, 0.5, 1.0]
    assert whole.seconds.tolist() == [0.1, 0.3, INFINITE]
    assert (whole.errors, whole.failed, whole.cpu, whole.window) == ({"X": 2, "Y": 2}, 4, 1.0, 2.0)
    assert list(whole.reasons) == ["x", "y"]


def test_a_point_of_an_open_load() -> None:
    point = traffic([0.0, 0.5, 1.0], [0.1, 0.3, INFINITE], {"X": 1}).point("s", "m", "poisson", 0.5, {"broker": 7.0})
    assert (point.system, point.model, point.load, point.level) == ("s", "m", "poisson", 0.5)
    assert (point.rate, point.failed) == (1.0, 1)
    assert (point.at_us(0.5), point.at_us(1.0)) == pytest.approx((1e5, 3e5))
    assert point.cpu_us == pytest.approx({CLIENT: 5e5 / 3, "broker": 7.0})


def test_a_load_without_requests_has_no_figures_and_no_errors() -> None:
    empty = Traffic(1.0, np.array([]), np.array([]), np.array([]), {})
    assert (empty.share(0.1), empty.ms(0.5), empty.late_ms(0.99), empty.told()["requests"]) == (100.0, 0.0, 0.0, 0)
    assert empty.point("s", "m", "poisson", 0.5).rate == 0.0


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_one_answer_in_sixteen_is_compared_and_each_row_has_its_share(rows: int) -> None:
    checked = [number for number in range(16 * 16) if to_check(number)]
    assert len(checked) == 16
    assert len({number % rows for number in checked}) == rows


# -- several clients -----------------------------------------------------------------------------------------------


class Told(Sender):
    """A sender without a child: everything is answered when it is due."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.begun = 0.0

    def load(self, schedule: Schedule, timeout: float | None) -> None:
        self.given = schedule

    def go(self, begin: float) -> None:
        self.begun = begin

    def collect(self) -> Traffic:
        if self.fails:
            raise WrongAnswer(self.fails)
        due = self.given.moments
        return Traffic(self.given.window, due, 0 * due, 0 * due, {})


def test_senders_begin_together_and_share_the_requests_out() -> None:
    senders = [Told(), Told(), Told()]
    moments = np.linspace(0.0, 0.9, 10)
    found = Together(senders).send(Schedule.of_one(moments, 1.0), None)
    assert found.due.tolist() == moments.tolist()
    assert len({sender.begun for sender in senders}) == 1
    assert [len(sender.given.moments) for sender in senders] == [4, 3, 3]


def test_one_wrong_answer_is_that_of_all() -> None:
    with pytest.raises(WrongAnswer, match="of the second"):
        Together([Told(), Told("of the second")]).send(Schedule.of_one(np.array([0.1]), 1.0), None)


def test_one_client_of_a_web_server_asks_one_model() -> None:
    stream = object.__new__(WebStream)
    with pytest.raises(ValueError, match="got a schedule for 2 models"):
        stream.load(Schedule(np.array([0.1]), np.array([1]), 1.0), None)


# -- over HTTP -----------------------------------------------------------------------------------------------------

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers ``requests`` of one byte with what ``replies`` says, by the number of the request."""

    def __init__(self, reply: Callable[[int], bytes | None]) -> None:
        self._reply = reply
        self.requests = self.connections = 0
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while body := await reader.read(1):
                self.bodies.append(body)
                number, self.requests = self.requests, self.requests + 1
                reply = self._reply(number)
                if reply is None:
                    return
                writer.write(reply)
        finally:
            writer.close()


def volley(
    serve: Serve, moments: list[float], timeout: float = 5.0, connections: int = 8, requests: int = 1
) -> dict[str, Any]:
    """Send single bytes, from a on, at these moments."""

    async def run() -> dict[str, Any]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        posts = [bytes([ord("a") + number]) for number in range(requests)]
        try:
            return await Volley(f"{host}:{port}", posts, connections).run(time.monotonic(), moments, timeout)
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


def test_every_request_is_sent_when_it_is_due_and_answered() -> None:
    server = Server(lambda number: GOOD)
    moments = [0.001 * number for number in range(40)]
    told = volley(server, moments, requests=3)
    assert told["due"] == moments
    assert (server.requests, told["errors"], told["reasons"]) == (40, {}, [])
    assert all(0 <= late <= seconds < INFINITE for late, seconds in zip(told["lateness"], told["seconds"], strict=True))
    assert told["cpu"] > 0
    assert sorted(set(server.bodies)) == [b"a", b"b", b"c"]
    assert sorted(told["kept"]) == [[0, "b2s="], [1, "b2s="], [2, "b2s="]], "0, 17 and 34 are compared, each by its row"


def test_a_connection_is_kept_and_used_again() -> None:
    server = Server(lambda number: GOOD)
    volley(server, [0.005 * number for number in range(6)], connections=1)
    assert (server.requests, server.connections) == (6, 1)


def test_no_more_connections_than_allowed_and_who_waits_still_counts_from_when_it_was_due() -> None:
    busy = most = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal busy, most
        while await reader.read(1):
            busy, most = busy + 1, max(most, busy + 1)
            await asyncio.sleep(0.02)
            busy -= 1
            writer.write(GOOD)
        writer.close()

    told = volley(slow, [0.0] * 6, connections=2)
    assert (most, told["errors"]) == (2, {})
    assert max(told["seconds"]) >= 0.06, "three rounds of 20 ms"
    assert told["seconds"][5] - told["lateness"][5] >= 0.04, "what waits for the server is not the generator's fault"


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", id="chunks"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-LENGTH:2\r\nConnection: close\r\n\r\nok", id="closing"),
    ],
)
def test_other_ways_to_answer(reply: bytes) -> None:
    told = volley(Server(lambda number: reply), [0.0, 0.001, 0.002])
    assert (told["errors"], told["kept"]) == ({}, [[0, "b2s="]])


def test_an_answer_may_come_in_pieces() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1):
            for byte in GOOD:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        writer.close()

    told = volley(serve, [0.0, 0.001])
    assert (told["errors"], told["kept"]) == ({}, [[0, "b2s="]])


ERROR = b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nwhy?"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (ERROR, "HTTP 500", "HTTP 500: why?"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "HTTP 204", ""),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP", "no HTTP: .*SSH-2.0"),
        (None, "closed", ""),
    ],
)
def test_what_is_no_good_answer_has_failed_and_the_next_has_another_chance(
    reply: bytes | None, kind: str, reason: str
) -> None:
    told = volley(Server(lambda number: reply if number < 3 else GOOD), [0.0, 0.0, 0.0, 0.02, 0.03])
    assert told["errors"] == {kind: 3}
    assert [seconds < INFINITE for seconds in told["seconds"]] == [False] * 3 + [True] * 2
    assert len(told["reasons"]) == (3 if reason else 0)
    assert all(re.match(reason, said) for said in told["reasons"])


def test_only_the_first_reasons_are_kept() -> None:
    told = volley(Server(lambda number: ERROR), [0.0] * 30)
    assert (told["errors"], len(told["reasons"])) == ({"HTTP 500": 30}, REASONS)


@pytest.mark.parametrize("reply", [b"", SHORT])
def test_who_gets_no_whole_answer_has_failed_in_time_also_where_it_waits_for_a_connection(reply: bytes) -> None:
    told = volley(Server(lambda number: reply), [0.0] * 4, timeout=0.05, connections=2)
    assert told["errors"] == {"timed out": 4}


def test_half_an_answer_and_the_end_is_none() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(SHORT)
        writer.close()

    assert volley(serve, [0.0, 0.001])["errors"] == {"closed": 2}


def test_who_answers_twice_is_told_of() -> None:
    told = volley(Server(lambda number: GOOD + GOOD), [0.0, 0.02])
    assert told["errors"] == {"unasked": 2}
    assert max(told["seconds"]) < INFINITE


def test_nobody_listens() -> None:
    async def run() -> dict[str, Any]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        return await Volley(address, [b"a"], connections=2).run(time.monotonic(), [0.0] * 5, 1.0)

    told = asyncio.run(run())
    assert told["errors"] == {"no connection": 5}
    assert len(told["reasons"]) == 5


def test_nothing_to_send() -> None:
    assert volley(Server(lambda number: GOOD), [])["due"] == []


def test_an_alarm_rings_when_it_is_time_and_at_once_for_what_is_past() -> None:
    with closing(Alarm()) as alarm:
        for moment in (time.monotonic() - 1.0, time.monotonic() + 0.003):
            alarm.set(moment)
            assert select.select([alarm.fd], [], [], 2.0)[0]
            assert time.monotonic() >= moment
        alarm.stop()
        assert not select.select([alarm.fd], [], [], 0.0)[0]


def test_a_fault_of_the_generator_is_no_figure() -> None:
    nothing: Any = None

    async def run() -> None:
        server = await asyncio.start_server(Server(lambda number: GOOD), "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            await Volley(f"{host}:{port}", [nothing]).run(time.monotonic(), [0.0], 5.0)

    with pytest.raises(TypeError):
        asyncio.run(run())
