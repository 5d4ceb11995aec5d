"""Which versions a model should have, when old ones may go, and what a version's files say of it."""

from __future__ import annotations

from dataclasses import replace

from tfpool.broker.registry import Goal, Model, Version
from tfpool.config import merge_batching
from tfpool.repository.describe import Description
from tfpool.repository.states import State
from tfpool.repository.versions import aspired
from tfpool.settings import ModelSettings


def wanted_of(model: Model) -> set[int]:
    """The versions on disk that policy, labels or somebody's hand ask for."""
    asked = model.labelled() | model.loaded_by_hand
    return {*aspired(model.settings.version_policy, model.found), *(asked & model.found.keys())}


def may_go(model: Model, wanted: set[int], old: list[Version]) -> bool:
    """Whether nobody would miss old versions: new ones serve, or could as well as they do."""
    if not any(version.on or version.kept for version in old):
        return True
    new = [model.versions.get(number) for number in wanted]
    coming = [v for v in new if v is not None and v.settled]
    able = any(v.state is State.AVAILABLE or (v.proven and v.goal is Goal.ON_DEMAND) for v in coming)
    return len(coming) == len(wanted) and able


def take_description(version: Version, found: Description) -> None:
    """What the files of a version say. Raises InvalidArgument for batching parameters that make no sense."""
    version.own_batching = found.batching
    version.settings = own_settings(version, version.settings)
    version.foreseen, version.skipped = found.signatures, found.skipped
    version.fingerprint, version.disk_bytes = found.fingerprint, found.nbytes
    version.described = True
    version.error = None
    version.unfit = version.uncompiled = ""


def own_settings(version: Version, settings: ModelSettings) -> ModelSettings:
    """The settings of a model, with what lies in a version's directory over them. Raises InvalidArgument."""
    if not version.own_batching:
        return settings
    source = f"{version.path}/batching_params.pbtxt"
    return replace(settings, batching=merge_batching(settings.batching, version.own_batching, source))
