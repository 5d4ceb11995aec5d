"""A short run of every fuzz target; ``python -m tests.fuzz.run TARGET`` runs one for as long as you like."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import gateway, targets
from tests.fuzz.targets import TARGETS

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)


def changed(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """``seed`` with some bytes replaced by others; an edit is (place in [0, 1], how many, by what)."""
    for place, count, new in edits:
        at = int(place * len(seed))
        seed = seed[:at] + new + seed[at + count :]
    return seed


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150)
@given(data=st.data())
def test_any_bytes_are_survived(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed = data.draw(st.sampled_from((b"", *target.seeds)))
    target.run(changed(seed, data.draw(EDITS)))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_get_past_the_first_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them are good, so that fuzzers reach what lies behind the checks."""
    target, good = TARGETS[name], 0

    class Strict:
        """Like contextlib.suppress, which it stands in for, but it notes what it is there for."""

        def __init__(self, *errors: type[Exception]) -> None:
            self.errors = errors

        def __enter__(self) -> None: ...

        def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
            nonlocal good
            good += kind is None
            return kind is not None and issubclass(kind, self.errors)

    for module in (targets, gateway):
        monkeypatch.setattr(module, "suppress", Strict)
    for seed in target.seeds:
        before = good
        target.run(seed)
        assert good > before or seed == b"{}", seed
