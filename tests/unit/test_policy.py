from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tfpool.supervisor import policy
from tfpool.supervisor.policy import Halt, History, Restart


def test_an_asked_for_end_is_replaced_at_once_and_counts_for_nothing() -> None:
    history = History()
    for _ in range(100):
        assert history.ended(0, 0.1) == Restart(0.0)
    assert history == History()


def test_starts_that_fail_wait_longer_and_longer_and_then_halt() -> None:
    history = History()
    decisions = [history.ended(-9, 20.0 * i) for i in range(policy.MAX_FAILED_STARTS + 1)]
    delays = [d.delay for d in decisions if isinstance(d, Restart)]
    assert delays[0] == 0.0
    assert delays[1:] == [min(policy.FIRST_DELAY * 2**i, policy.LONGEST_DELAY) for i in range(len(delays) - 1)]
    last = decisions[-1]
    assert isinstance(last, Halt)
    assert "died 9 times in a row before it was ready" in last.why


def test_one_life_in_which_it_became_ready_forgives() -> None:
    history = History()
    for _ in range(policy.MAX_FAILED_STARTS):
        history.ended(1, 1.0)
    history.became_ready()
    assert history.ended(-11, 1.0) == Restart(0.0)
    assert history.ended(-11, 1.0) == Restart(0.0), "the first start that failed"
    assert history.ended(-11, 1.0) == Restart(policy.FIRST_DELAY)


def test_a_death_each_second_never_costs_a_delay() -> None:
    history = History()
    for second in range(600):
        history.became_ready()
        assert history.ended(-9, float(second)) == Restart(0.0)


def test_a_worker_that_dies_all_the_time_is_slowed_down_and_never_halted() -> None:
    history, now, delays = History(), 0.0, []
    for _ in range(200):
        history.became_ready()
        decision = history.ended(-9, now)
        assert isinstance(decision, Restart)
        delays.append(decision.delay)
        now += decision.delay + 0.01
    assert not any(delays[: policy.DEATHS_AT_ONCE])
    assert all(0.0 < delay <= policy.SECONDS_PER_DEATH for delay in delays[policy.DEATHS_AT_ONCE + 1 :])
    history.became_ready()
    assert history.ended(-9, now + policy.SECONDS_PER_DEATH * policy.DEATHS_AT_ONCE) == Restart(0.0)


@given(st.lists(st.tuples(st.sampled_from([0, 1, -9, -11]), st.booleans(), st.floats(0, 30)), max_size=60))
def test_delays_are_bounded_and_only_failed_starts_halt(lives: list[tuple[int, bool, float]]) -> None:
    history, now, failed = History(), 0.0, 0
    for status, ready, seconds in lives:
        if ready:
            history.became_ready()
        now += seconds
        decision = history.ended(status, now)
        if ready:
            failed = 0
        elif status != 0:
            failed += 1
        if isinstance(decision, Halt):
            assert failed > policy.MAX_FAILED_STARTS
            return
        assert 0.0 <= decision.delay <= policy.LONGEST_DELAY
        assert status != 0 or decision.delay == 0.0
    assert failed <= policy.MAX_FAILED_STARTS


def test_statuses_read_well() -> None:
    assert policy.describe(-9) == "signal 9"
    assert policy.describe(3) == "exit 3"
