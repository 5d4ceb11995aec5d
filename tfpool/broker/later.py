"""Answers that are not there yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Question = Callable[[], Any]


class Later(Exception):
    """The answer is not there yet; ``question`` returns it, or None."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


def soon(question: Question) -> Any:
    """The answer to a question; raises Later where there is none yet."""
    found = question()
    if found is None:
        raise Later(question)
    return found
