from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tfpool.supervisor import policy
from tfpool.supervisor.policy import Halt, History, Restart


def test_an_asked_for_end_is_replaced_at_once_and_counts_for_nothing() -> None:
    history = History(started=0.0)
    for _ in range(100):
        assert history.ended(0, 0.1) == Restart(0.0)
    assert history.quick_deaths == 0


def test_quick_deaths_wait_longer_and_longer_and_then_halt() -> None:
    history = History()
    decisions = [history.ended(-9, 1.0) for _ in range(policy.MAX_QUICK_DEATHS + 1)]
    delays = [d.delay for d in decisions if isinstance(d, Restart)]
    assert delays[0] == 0.0
    assert delays[1:] == [min(policy.FIRST_DELAY * 2**i, policy.LONGEST_DELAY) for i in range(len(delays) - 1)]
    last = decisions[-1]
    assert isinstance(last, Halt)
    assert "died 9 times within 10 s of its start" in last.why


def test_a_long_life_forgives() -> None:
    history = History()
    for _ in range(policy.MAX_QUICK_DEATHS):
        history.ended(1, 1.0)
    assert history.ended(-11, policy.HEALTHY_SECONDS) == Restart(0.0)
    assert history.quick_deaths == 0
    assert history.ended(-11, 1.0) == Restart(0.0)


@given(st.lists(st.tuples(st.sampled_from([0, 1, -9, -11]), st.floats(0, 30)), max_size=60))
def test_delays_are_bounded_and_only_young_deaths_halt(lives: list[tuple[int, float]]) -> None:
    history, now, young = History(), 0.0, 0
    for status, seconds in lives:
        history.started = now
        now += seconds
        decision = history.ended(status, now)
        quick = status != 0 and now - history.started < policy.HEALTHY_SECONDS
        if status != 0:
            young = young + 1 if quick else 0
        if isinstance(decision, Halt):
            assert young > policy.MAX_QUICK_DEATHS
            return
        assert 0.0 <= decision.delay <= policy.LONGEST_DELAY
        assert quick or decision.delay == 0.0
    assert young <= policy.MAX_QUICK_DEATHS


def test_statuses_read_well() -> None:
    assert policy.describe(-9) == "signal 9"
    assert policy.describe(3) == "exit 3"
