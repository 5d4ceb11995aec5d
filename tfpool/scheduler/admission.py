"""What a queue takes in, and what it lets go before its time.

Nothing is admitted that is thought to miss its deadline by waiting, and nothing is run that would miss it by running.
While more waits than can be done in time, heads whose deadlines would make for small, dear batches are dropped too: the
time that they would take serves more of those behind them (after the sliding window of Nexus, Shen et al., SOSP 2019).
"""

from __future__ import annotations

from bisect import bisect_right
from math import exp

from tfpool.errors import DeadlineExceeded, ResourceExhausted
from tfpool.scheduler.curves import BATCH_OVERHEAD_SECONDS, Curve
from tfpool.scheduler.sizing import batches
from tfpool.scheduler.work import Queue, Segment

WORTHWHILE = 0.8
HEADROOM = 0.7  # of a deadline may be spent in the queue: runs take longer at times, and answers have to travel
_MEMORY_SECONDS = 0.1
_LEAST_PACING = 0.005
_PAUSE_TIMES, _LEAST_PAUSE = 4.0, 0.05


def paced(queue: Queue, rows: int, now: float) -> None:
    """``rows`` rows leave a queue while others stay in it.

    One long gap is a pause (a worker died, a model moved), and no pace; the second one in a row is believed.
    """
    if queue.pacing or queue.paced:
        gap, queue.gap = queue.gap, now - queue.sent
        passed = min(queue.gap, max(_PAUSE_TIMES * gap, _LEAST_PAUSE))
        kept = exp(-passed / _MEMORY_SECONDS)
        queue.paced = kept * queue.paced + rows
        queue.pacing = kept * queue.pacing + passed
    else:
        queue.paced = 1e-9  # the first batch tells when, not how fast
    queue.sent = now


def expected_wait(queue: Queue, segment: Segment, row_seconds: float) -> float:
    """Seconds until what would wait before a new segment is gone: at the pace so far, or by ``row_seconds`` where there
    is none to go by."""
    segments = queue.segments
    rows = float(queue.rows)
    rank = (True, -segment.priority, queue.round_of(segment), segment.deadline)
    if segments and segments[-1].rank > rank:
        rows *= bisect_right(segments, rank, key=lambda other: other.rank) / len(segments)
    return rows * _pace(queue, row_seconds)


def _pace(queue: Queue, row_seconds: float) -> float:
    """Seconds a row, by what has left lately."""
    return queue.pacing / queue.paced if queue.pacing >= _LEAST_PACING else row_seconds


def too_slow(
    queue: Queue, segment: Segment, run_seconds: float, row_seconds: float, now: float
) -> ResourceExhausted | None:
    """Why a segment had better not wait here; None where it may. ``run_seconds`` is what its batch will take,
    ``row_seconds`` what a row takes at best."""
    policy = queue.spec.policy
    allowed = HEADROOM * (segment.deadline - now) - run_seconds
    if policy.max_queue:
        allowed = min(allowed, policy.max_queue)
    if queue.rows * _pace(queue, row_seconds) <= allowed:
        return None  # even behind all that waits
    wait = expected_wait(queue, segment, row_seconds)
    if wait <= allowed or wait <= run_seconds:
        return None
    message = (
        f"queue of {queue.spec.servable} is full: {queue.rows} rows wait, about {_ms(wait)} ms of work; "
        f"this request has {_ms(max(0.0, allowed))} ms for that"
    )
    return ResourceExhausted(message, max(0.001, wait - max(0.0, allowed)))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.3g}"


def full(queue: Queue, segment: Segment, row_seconds: float) -> ResourceExhausted:
    """The refusal of requests for which there is no room in a queue."""
    most = queue.spec.policy.max_queue_rows
    if segment.rows > most:
        return ResourceExhausted(
            f"a request of {queue.spec.servable} has {segment.rows} rows, more than max_queue_rows ({most})"
        )
    retry = expected_wait(queue, segment, row_seconds) / 2 or None
    return ResourceExhausted(
        f"queue of {queue.spec.servable} is full: {queue.rows} rows wait, max_queue_rows is {most}", retry
    )


def make_room(queue: Queue, segment: Segment) -> list[Segment]:
    """Push out what a new segment goes before: of lower priority, or of a client that has far more waiting."""
    room = queue.spec.policy.max_queue_rows - queue.rows
    round_ = queue.round_of(segment)
    loose = 0
    for last in reversed(queue.segments):
        behind = last.priority < segment.priority or (last.priority == segment.priority and last.round > round_)
        if not behind or last.join is not None or last.deaths or last.limit:
            break
        loose += last.count * last.rows
        if room + loose >= segment.count * segment.rows:
            break
    pushed: list[Segment] = []
    if room + loose >= segment.rows:
        missing = min(loose, segment.count * segment.rows - room)
        while missing > 0:
            pushed.append(queue.cut_tail(missing))
            missing -= pushed[-1].count * pushed[-1].rows
    return pushed


def triage(queue: Queue, curve: Curve, start: float, most: int, now: float) -> tuple[int, list[Segment]]:
    """Rows that a batch which starts at ``start`` may have for its head to be in time (``most`` at most), and the
    segments that are taken out of the queue because they will not be, or not at a fair price."""
    least = 0.0
    if batches(queue.spec) and queue.rows >= most and _overloaded(queue, curve, start, most):
        least = WORTHWHILE * _rate(curve, most)
    dropped: list[Segment] = []
    while queue.segments:
        head = queue.segments[0]
        slack = head.deadline - start
        if slack > 0 and curve.at_best(head.rows, now) <= slack:
            rows = max(head.rows, curve.rows_within(slack, most))
            if rows >= most or queue.rows < most or _rate(curve, rows) >= least:
                return rows, dropped
        dropped += queue.take(head.count * head.rows)
    return 0, dropped


def hopeless(segment: Segment, curve: Curve, start: float, now: float) -> DeadlineExceeded:
    """What a segment that triage has dropped is told."""
    waited, left = 1000 * (now - segment.arrived), 1000 * (segment.deadline - start)
    return DeadlineExceeded(
        f"it waited {waited:.1f} ms and would not be answered in time: a run takes about "
        f"{1000 * curve.run(segment.rows):.1f} ms, and {max(0.0, left):.1f} ms would be left"
    )


def _overloaded(queue: Queue, curve: Curve, start: float, most: int) -> bool:
    """Whether the last of a queue cannot make its deadline even in the best batches."""
    return start + queue.rows / most * curve.run(most) > queue.segments[-1].deadline


def _rate(curve: Curve, rows: int) -> float:
    return rows / (curve.run(rows) + BATCH_OVERHEAD_SECONDS)
