"""What clients send, opened and checked: frames in, scheduler events out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfpool.broker.clients import Clients
from tfpool.broker.gather import check_frames, check_regions
from tfpool.broker.lobby import Request
from tfpool.broker.meters import Meters
from tfpool.broker.registry import NotLoaded, Version, usable
from tfpool.broker.resolve import Resolved, Resolver
from tfpool.broker.taps import Taps
from tfpool.errors import InvalidArgument, TfpoolError, Unavailable
from tfpool.scheduler.events import Submit
from tfpool.scheduler.work import Segment
from tfpool.wire import messages
from tfpool.wire.keys import RequestKey
from tfpool.wire.messages import Call, Flag, Group, Hello

Refuse = Callable[[bytes, list[tuple[int, int]], TfpoolError, str], None]


class Intake:
    """The broker's front door. A malformed message is refused whole; a bad request among good ones alone.

    ``hit`` is told of every group that reaches a version, ``wake`` that one is needed which is not in memory.
    """

    def __init__(
        self,
        resolver: Resolver,
        clients: Clients,
        meters: Meters,
        taps: Taps,
        hit: Callable[[Version, int], None],
        wake: Callable[[Version], None],
    ) -> None:
        self._resolver = resolver
        self._clients = clients
        self._meters = meters
        self._taps = taps
        self._hit = hit
        self._wake = wake

    @staticmethod
    def open(frames: list[bytes]) -> tuple[int, Any]:
        """Verb and body of a message. Raises InvalidArgument."""
        if not 2 <= len(frames) <= messages.MAX_FRAMES:
            raise InvalidArgument(f"got {len(frames)} frames, expected 2 to {messages.MAX_FRAMES}")
        return messages.decode(frames[1])

    def predict(
        self,
        client: bytes,
        body: Any,
        frames: list[bytes],
        now: float,
        refusal: TfpoolError | None,
        refuse: Refuse,
        park: Callable[[NotLoaded, Request], None],
    ) -> list[Submit]:
        """The requests of a PREDICT. Those that cannot be admitted are refused one by one through ``refuse``; those
        that need a version which was never loaded go to ``park``.

        Raises InvalidArgument where the message as a whole makes no sense; nothing of it is admitted then.
        """
        groups = messages.decode_groups(body)
        try:
            keys = [self._parse(group) for group in groups]
            needed = 2 + sum(key.frames for key, group in zip(keys, groups, strict=True) if group.regions is None)
            if len(frames) != needed:
                raise InvalidArgument(f"predict: got {len(frames)} frames, expected {needed}")
        except InvalidArgument as error:
            self._meters.malformed += 1
            refuse(client, [(group.first, group.count) for group in groups], error, "")
            return []
        events: list[Submit] = []
        at = 2
        for key, group in zip(keys, groups, strict=True):
            own = frames[at : at + key.frames] if group.regions is None else None
            if own is not None:
                at += key.frames
            try:
                if refusal is not None:
                    raise refusal
                request = Request(client, key, group, own, now)
                try:
                    events += self.admit(request, now)
                except NotLoaded as why:
                    park(why, request)
            except TfpoolError as error:
                model = key.model if key.model in self._meters.models else ""
                refuse(client, [(group.first, group.count)], error, model)
        return events

    def _parse(self, group: Group) -> RequestKey:
        key = self._resolver.parse(group.key)
        if key.by_rows and group.rows == 0:
            raise InvalidArgument("predict: a group by rows has at least one row a request")
        if not key.by_rows and group.rows != 0:
            raise InvalidArgument(f"predict: whole tensors have no rows, got {group.rows}")
        return key

    def admit(self, request: Request, now: float) -> list[Submit]:
        """Resolve a group. Raises a TfpoolError where it cannot be admitted, NotLoaded where it has to wait."""
        client, key, group, frames, arrived = request
        found = self._resolver.resolve(group.key, key)
        deadline = request.deadline
        if group.flags & Flag.SOFT:
            slo_ms = (
                found if isinstance(found, Resolved) else next(iter(found.parts.values()))
            ).version.settings.slo_ms
            if slo_ms is not None:
                deadline = min(deadline, now + slo_ms / 1000)
        row_bytes = 0
        if frames is None:
            check_regions(key, group)
            buffers: list[Any] = self._clients.buffers(client, group.regions or ())
            payload: tuple[list[int], ...] = ()
        else:
            payload = check_frames(key, group, frames)
            buffers = list(frames)
            row_bytes = sum(map(len, frames)) // (group.count * (group.rows or 1))
        if group.reply is not None:
            self._clients.check_reply(client, group.reply)
        segment = Segment(
            client,
            group.first,
            group.count,
            group.rows or 1,
            deadline,
            arrived,
            buffers,
            group.priority,
            0,
            payload,
            group.regions,
            group.reply if group.count == 1 else None,
            row_bytes=row_bytes,
        )
        if isinstance(found, Resolved):
            self._check(found, group)
            return self._submit(found, segment, now)
        submits: list[Submit] = []
        for part in found.parts.values():
            self._check(part, group)  # a group is refused whole, or not at all
        for version, count in found.spreader.apportion(group.count):
            submits += self._submit(found.parts[version], segment.take(count), now)
        return submits

    def _submit(self, found: Resolved, segment: Segment, now: float) -> list[Submit]:
        version = found.version
        version.asks += segment.count
        version.rows += segment.count * segment.rows
        self._hit(version, segment.count)
        if version.cold:
            self._wake(version)
            usable(version)  # waking it may have failed at once
        if self._taps.models and version.key.name in self._taps.models:
            return self._taps.pass_by(found, segment)
        return [Submit(found.spec, segment)]

    @staticmethod
    def _check(found: Resolved, group: Group) -> None:
        if group.flags & Flag.AGAIN and not found.spec.retry:
            raise Unavailable(
                "the connection was lost before the answer; the signature changes state, so it does not run again"
            )
        if found.fixed_rows is not None and group.rows != found.fixed_rows:
            what, fixed = found.version.key, found.fixed_rows
            raise InvalidArgument(f"{what}: got {group.rows} rows, expected exactly {fixed}, which the signature fixes")

    @staticmethod
    def call(body: Any) -> Call:
        return messages.decode_call(body)

    @staticmethod
    def cancelled(body: Any) -> list[tuple[int, int]]:
        return messages.decode_cancel(body)

    @staticmethod
    def hello(body: Any) -> Hello | None:
        return messages.decode_hello(body)
