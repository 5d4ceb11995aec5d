"""What was changed at run time, and what was measured: laid over the configuration when the broker starts again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tfpool.broker.registry import Version
from tfpool.config import read_models
from tfpool.errors import TfpoolError
from tfpool.repository.memo import Footprint, Memo
from tfpool.repository.scan import trusted_roots
from tfpool.repository.statefile import StateFile
from tfpool.settings import BatchingSettings, ModelSettings, Settings, check_shadow, check_split
from tfpool.telemetry import log


class Notebook:
    """Reads ``settings.server.state_file``, if there is one, and writes it a moment after each change."""

    def __init__(self, settings: Settings) -> None:
        path = settings.server.state_file
        self._file = StateFile(path) if path is not None else None
        self._memo = self._file.load() if self._file is not None else Memo()
        self._settings = settings
        self._dirty = False
        self._log = log.get("models")

    @property
    def footprints(self) -> dict[str, Footprint]:
        return self._memo.footprints

    @property
    def defaults(self) -> BatchingSettings:
        """Batching where a model says nothing."""
        return self._settings.batching

    @property
    def has_root(self) -> bool:
        """Whether there is a directory in which models appear by themselves."""
        return self._settings.server.models_root is not None

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the files of a version may lie (empty: anywhere)."""
        return trusted_roots(self._settings)

    @property
    def removed(self) -> list[str]:
        """Models that somebody removed at run time."""
        return self._memo.removed

    def models(self) -> Iterable[ModelSettings]:
        """The configured models but for those removed since, and those added."""
        for settings in self._settings.models:
            if settings.name not in self._memo.removed and settings.name not in self._memo.models:
                yield settings
        workers = [worker.name for worker in self._settings.workers]
        for name, table in self._memo.models.items():
            try:
                yield from read_models({"model": [table]}, "state file", self._settings.batching, workers)
            except TfpoolError as error:
                self._log.warning("memory.ignored", model=name, error=error.message)

    def over(self, settings: ModelSettings) -> ModelSettings:
        """The settings of a model with the labels and the shadow that were set at run time."""
        labels = self._memo.labels.get(settings.name)
        shadow = self._memo.shadows.get(settings.name)
        try:
            if labels is not None:
                settings = replace(settings, labels=tuple((name, check_split(text)) for name, text in labels.items()))
            if shadow is not None:
                settings = replace(settings, shadow=check_shadow(shadow) if shadow else None)
        except TfpoolError as error:
            self._log.warning("memory.ignored", model=settings.name, error=error.message)
        return settings

    def was_unloaded(self, version: Version) -> bool:
        return version.key[:2] in self._memo.unloaded

    # -- changes -----------------------------------------------------------------------------------------------

    def unloaded(self, version: Version) -> None:
        if not self.was_unloaded(version):
            self._memo.unloaded.append(version.key[:2])
            self._dirty = True

    def loaded(self, version: Version) -> None:
        if self.was_unloaded(version):
            self._memo.unloaded.remove(version.key[:2])
            self._dirty = True

    def labelled(self, model: str, labels: dict[str, str]) -> None:
        self._memo.labels[model] = labels
        self._dirty = True

    def shadowed(self, model: str, rule: str) -> None:
        """``rule`` is empty when there is to be no shadow."""
        if rule or any(settings.shadow for settings in self._settings.models if settings.name == model):
            self._memo.shadows[model] = rule
        else:
            self._memo.shadows.pop(model, None)
        self._dirty = True

    def added(self, table: dict[str, Any]) -> None:
        """A model was added; what was said of an earlier one of its name holds no more."""
        self._forget(table["name"])
        self._memo.models[table["name"]] = table
        self._dirty = True

    def took_out(self, model: str) -> None:
        self._forget(model)
        self._memo.removed.append(model)
        self._dirty = True

    def reloaded(self, tables: dict[str, dict[str, Any]]) -> None:
        """The models are exactly these from now on, whatever was said before."""
        self._memo.labels.clear()
        self._memo.shadows.clear()
        self._memo.unloaded.clear()
        self._memo.models = dict(tables)
        self._memo.removed = [model.name for model in self._settings.models if model.name not in tables]
        self._dirty = True

    def measured(self, fingerprint: str, found: Footprint) -> None:
        """A load has been measured."""
        self._memo.measured(fingerprint, found)
        self._dirty = True

    def _forget(self, model: str) -> None:
        self._memo.labels.pop(model, None)
        self._memo.shadows.pop(model, None)
        self._memo.models.pop(model, None)
        self._memo.unloaded = [item for item in self._memo.unloaded if item[0] != model]
        if model in self._memo.removed:
            self._memo.removed.remove(model)

    def save(self) -> None:
        """Write what has changed, in the background."""
        if self._dirty and self._file is not None:
            self._file.save(self._memo)
        self._dirty = False

    def close(self) -> None:
        self.save()
        if self._file is not None:
            self._file.close()
