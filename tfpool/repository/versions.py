"""Which of the versions at hand a model should serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tfpool.settings import VersionPolicy


def aspired(policy: VersionPolicy, available: Iterable[int]) -> tuple[int, ...]:
    """The versions to serve, ascending: the newest N of ``available``, all of them, or those the policy names.

    A named version that is not available is left out; it is served once it appears.
    """
    versions = sorted(set(available))
    if isinstance(policy, tuple):
        return tuple(version for version in versions if version in policy)
    if policy == "all":
        return tuple(versions)
    return tuple(versions[-int(policy.partition(":")[2] or 1) :])
