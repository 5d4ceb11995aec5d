"""As many children as there are CPUs, that do the same work: for what is reckoned, never for what is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from bench.children import Channel, Child


class Team:
    """``function`` answers one order after the other, until it has no more."""

    def __init__(self, function: Callable[[Channel], None]) -> None:
        with ExitStack() as stack:
            self._children = [stack.enter_context(Child(function)) for _ in os.sched_getaffinity(0)]
            self._stack = stack.pop_all()

    def answers(self, orders: Sequence[Any], timeout: float) -> Iterator[Any]:
        """What the children say to the orders, in their order; each may take ``timeout`` seconds. Raises
        ChildFailed."""
        for first in range(0, len(orders), len(self._children)):
            turn = list(zip(self._children, orders[first:], strict=False))
            for child, order in turn:
                child.tell(order)
            for child, _ in turn:
                yield child.hear(timeout)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
