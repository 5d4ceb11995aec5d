"""How large a batch is, and where its tensors lie in its lease.

::

    lease
    | input 0 rows | input 1 lengths | input 1 payload | ... |  outputs ...                |
      each part 64-byte aligned                                  to the end of the block

Outputs get the bytes that earlier batches of the queue needed; a worker whose outputs do not fit sends them in
memory of its own.
"""

from __future__ import annotations

from tfpool.scheduler.work import NEVER, Batch, BatchId, InputPlace, Queue, QueueSpec, Segment, WorkerName
from tfpool.shm.layout import ALIGN, Lease, align

COPY_BYTES_PER_SECOND = 8e9
GATHER_WORTH = 4.0
MAX_IN_PLACE = 4
TOGETHER_SECONDS = 0.001


def batches(spec: QueueSpec) -> bool:
    """Whether requests of this queue may share a run."""
    return spec.by_rows and spec.batchable


def cap(queue: Queue, worker: WorkerName) -> int:
    """The largest batch that a queue may send a worker: the user's, or the knee of the worker's curve."""
    policy = queue.spec.policy
    curve = queue.curves.get(worker)
    return policy.max_rows if curve is None else curve.knee(policy.max_rows, policy.sizes)


def in_place(queue: Queue, run_seconds: float) -> int:
    """How many requests at the head run one by one, each on its client's own memory; 0: the head is gathered.

    So they do when a batch could not save what gathering would cost, because the model's run is short beside the copy;
    and the head does when it is all there is. Several are sent at once while they take about a millisecond together.
    """
    head = queue.segments[0]
    if head.regions is None or head.join is not None:
        return 0
    if batches(queue.spec):
        if queue.spec.policy.sizes and head.rows not in queue.spec.policy.sizes:
            return 0
        nbytes = sum(region.nbytes for region in head.regions)
        if queue.rows > head.rows and run_seconds >= GATHER_WORTH * nbytes / COPY_BYTES_PER_SECOND:
            return 0
    most = min(MAX_IN_PLACE, int(TOGETHER_SECONDS / run_seconds)) if run_seconds else 1
    count = rows = 0
    for segment in queue.segments:
        if count >= most or segment.regions is None or segment.reply is None or segment.join is not None:
            break
        if queue.spec.policy.sizes and segment.rows not in queue.spec.policy.sizes and batches(queue.spec):
            break
        rows += segment.rows
        if segment.deaths != head.deaths or (count and head.limit and rows > head.limit):
            break
        count += 1
    return max(1, count)


def batch_rows(queue: Queue, sharers: int, most: int) -> int:
    """Rows that the next batch may take: what waits, at most ``most``, shared with the other idle workers."""
    policy, head = queue.spec.policy, queue.segments[0]
    if not batches(queue.spec):
        return head.rows
    rows = min(-(-queue.rows // sharers), most)
    if head.limit:
        rows = min(rows, head.limit)
    if policy.sizes and not policy.pad:
        rows = max((size for size in policy.sizes if size <= rows), default=rows)
    return max(rows, head.rows)


def padded_rows(queue: Queue, rows: int) -> int:
    """The rows that the tensors of a batch of ``rows`` have: the next allowed size."""
    policy = queue.spec.policy
    if not policy.sizes:
        return rows
    if policy.pad and batches(queue.spec):
        return next((size for size in policy.sizes if size >= rows), rows)
    return rows


def input_bytes(queue: Queue, rows: int) -> int:
    """Bytes of a lease that the inputs of the next ``rows`` rows need; text counts as all that waits."""
    spec = queue.spec
    times = padded_rows(queue, rows) if spec.by_rows else 1
    total = 0
    for item in spec.inputs:
        total += (item.row_bytes * times + ALIGN - 1) & -ALIGN
    if spec.has_text:
        total += sum(align(text_bytes(queue, i, rows)) for i, item in enumerate(spec.inputs) if item.text)
    return total


def text_bytes(queue: Queue, index: int, rows: int) -> int:
    """Payload bytes of one text input in the next ``rows`` rows."""
    which = sum(1 for item in queue.spec.inputs[:index] if item.text)
    total = 0
    for segment in queue.segments:
        count = min(segment.count, max(1, rows // segment.rows))
        begin, end = payload_range(segment, which, count)
        total += end - begin
        rows -= count * segment.rows
        if rows <= 0:
            break
    return total


def payload_range(segment: Segment, which: int, count: int) -> tuple[int, int]:
    """Begin and end of the payload of a segment's first ``count`` requests in its text buffer ``which``."""
    ends, first = segment.payload[which], segment.start * segment.rows
    last = first + count * segment.rows
    return (ends[first - 1] if first else 0), ends[last - 1]


def output_bytes(queue: Queue, rows: int) -> int:
    """Bytes that the outputs of a batch are thought to need."""
    return align(queue.out_row_bytes * (padded_rows(queue, rows) if queue.spec.by_rows else 1))


def plan(
    batch_id: BatchId,
    queue: Queue,
    worker: WorkerName,
    pieces: list[Segment],
    lease: Lease | None,
    alone: bool,
    now: float,
) -> Batch:
    """Lay a batch out in its lease. ``alone``: the inputs stay where they are, the lease is for outputs only."""
    spec = queue.spec
    rows = requests = 0
    start_by = NEVER
    for piece in pieces:
        requests += piece.count
        rows += piece.count * piece.rows
        if piece.deadline < start_by:
            start_by = piece.deadline
    padded = rows if alone else padded_rows(queue, rows)
    times = padded if spec.by_rows else 1
    places: list[InputPlace] = []
    offset = lease.offset if lease else 0
    text = 0
    for item in () if alone else spec.inputs:
        start = offset
        offset += (item.row_bytes * times + ALIGN - 1) & -ALIGN
        payload, nbytes = offset, 0
        if item.text:
            for piece in pieces:
                begin, end = payload_range(piece, text, piece.count)
                nbytes += end - begin
            text += 1
            offset += align(nbytes)
        places.append(InputPlace(start, payload, nbytes))
    room = lease.offset + lease.nbytes - offset if lease else 0
    return Batch(
        batch_id,
        queue,
        worker,
        pieces,
        requests,
        rows,
        padded,
        lease,
        alone,
        tuple(places),
        offset,
        room,
        now,
        start_by,
    )
