"""Descriptors: each connection takes one, and so do arenas and workers."""

from __future__ import annotations

import resource

_PLENTY = 1 << 20


def raise_limit() -> int:
    """Have as many as the system allows; how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return _PLENTY if most == resource.RLIM_INFINITY else most
