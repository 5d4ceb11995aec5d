from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.repository.versions import aspired
from tfpool.settings import VersionPolicy

AVAILABLE = st.sets(st.integers(1, 1 << 62))


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("latest", (9,)),
        ("latest:1", (9,)),
        ("latest:2", (5, 9)),
        ("latest:10", (2, 5, 9)),
        ("all", (2, 5, 9)),
        ((5,), (5,)),
        ((3, 9, 2), (2, 9)),
        ((4,), ()),
    ],
)
def test_policies(policy: VersionPolicy, versions: tuple[int, ...]) -> None:
    assert aspired(policy, [9, 2, 5]) == versions
    assert aspired(policy, []) == ()


@given(AVAILABLE, st.integers(1, 10))
def test_latest_are_the_greatest(available: set[int], count: int) -> None:
    chosen = aspired(f"latest:{count}", available)
    assert len(chosen) == min(count, len(available))
    assert list(chosen) == sorted(available)[-count:]
