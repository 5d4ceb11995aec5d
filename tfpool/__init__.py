"""tfpool: many TensorFlow SavedModels, served by a pool of worker processes.

``Client`` and ``AsyncClient`` talk to a pool, ``Pool`` starts one of its own; ``errors`` is what they raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfpool.version import __version__

if TYPE_CHECKING:
    from tfpool.client.aio import AsyncClient as AsyncClient
    from tfpool.client.sync import Client as Client
    from tfpool.supervisor.embedded import Pool as Pool

__all__ = ["AsyncClient", "Client", "Pool", "__version__", "errors"]

_HOMES = {
    "Client": "tfpool.client.sync",
    "AsyncClient": "tfpool.client.aio",
    "Pool": "tfpool.supervisor.embedded",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: importing tfpool itself is free."""
    import importlib

    if name == "errors":
        return importlib.import_module("tfpool.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tfpool' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
