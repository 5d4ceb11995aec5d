"""Errors of the pool as TensorFlow Serving words them, for clients that look at the text. Pure."""

from __future__ import annotations

from tfpool.client.examples import Target
from tfpool.errors import InvalidArgument, NotFound, TfpoolError


def translated(error: TfpoolError, target: Target) -> TfpoolError:
    """What a request for ``target`` is told: TensorFlow Serving's words where a model, a version or a label is not
    there; every other error, a model's own NotFound too, as it is."""
    if not isinstance(error, NotFound):
        return error
    model, label = target.model, target.label
    said = error.message
    if said.startswith((f"no model {model!r};", f"model {model!r} has no label ")):
        return InvalidArgument(f"Unrecognized servable version label: {label}") if label else missing(target)
    unloaded = said.startswith(f"{model}:") and " is unloaded;" in said
    if said.startswith(f"model {model!r} has no version ") or unloaded:
        return missing(target)
    return error


def missing(target: Target) -> NotFound:
    """No version of this number; without a number the newest is meant."""
    model, version, _, _ = target
    return NotFound(
        f"Servable not found for request: {f'Specific({model}, {version})' if version else f'Latest({model})'}"
    )


def no_version_zero(model: str) -> NotFound:
    """Version 0 was asked for: none has that number."""
    return NotFound(f"Servable not found for request: Specific({model}, 0)")
