"""Which form of a model a worker loads: what the store has compiled, or the SavedModel itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.settings import Form
from tfpool.store.manifest import Cost
from tfpool.store.shelf import Entry, Shelf
from tfpool.telemetry import log
from tfpool.worker import compiled, inputs, loader, measuring, warmup
from tfpool.worker.loader import Loaded
from tfpool.worker.measuring import Curve


@dataclass(slots=True)
class Opened:
    """A model that has been loaded, in a form; ``entry`` is what of the store it came from. ``note`` tells why it is
    PLAIN where another form was wanted, as far as the store knows."""

    loaded: Loaded
    form: Form
    entry: Entry | None = None
    note: str = ""

    @property
    def shared(self) -> int:
        """Bytes of mapped pages, which others may map too."""
        return self.entry.manifest.shared if self.entry is not None and self.form is Form.MAPPED else 0


class Opener:
    """``store`` is the store's directory (empty: there is none), ``config`` every session's, with ``threads`` within
    an operation."""

    def __init__(self, store: str, config: Any, threads: int) -> None:
        self._shelf = Shelf(store) if store else None
        self._config = config
        self._threads = threads
        self._log = log.get("worker")

    def open(self, path: str, options: dict[str, Any]) -> Opened:
        """Load a SavedModel in the form that ``options`` ask for, or PLAIN. Raises a TfpoolError."""
        form, note = Form(options.get("form", Form.PLAIN.value)), ""
        if form is not Form.PLAIN and self._shelf is not None and not options["stateful"]:
            try:
                entry = self._shelf.find(path)
                if entry is not None and not entry.manifest.refusal:
                    return self._compiled(self._shelf, entry, form, path)
                note = entry.manifest.refusal if entry is not None else ""
            except TfpoolError as error:
                note = error.message
                self._log.warning("store.unused", path=path, error=note)
        return Opened(loader.load(path, self._config, options["stateful"]), Form.PLAIN, note=note)

    def _compiled(self, shelf: Shelf, entry: Entry, form: Form, path: str) -> Opened:
        """Raises FailedPrecondition; an entry that cannot be loaded leaves the store, to be made again."""
        try:
            loaded = compiled.open_entry(shelf, entry, form, self._config, path)
        except TfpoolError as error:
            shelf.remove(entry.key)
            raise FailedPrecondition(f"the compiled model is to be made again: {error.message}") from None
        shelf.touch(entry.key)
        return Opened(loaded, form, entry)

    def warm(self, opened: Opened, path: str, options: dict[str, Any]) -> None:
        """Run what lies beside a model to be run first, and each signature; a SavedModel's are proven on the way to
        batch or not, as those of a compiled model have been."""
        loaded = opened.loaded
        if not options.get("warm_up", True):
            if opened.form is Form.PLAIN:
                warmup.warm(loaded, ())
            return
        warmup.replay(loaded, path)
        if opened.form is Form.PLAIN:
            warmup.warm(loaded, options["sizes"])
            return
        for signature in loaded.signatures:
            if signature.inner:
                signature.call(*inputs.make(signature, 1, signature.inner, signature.spec.batchable))
            warmup.run_sizes(signature, options["sizes"])

    def curves(self, opened: Opened, options: dict[str, Any], seconds: float) -> list[Curve]:
        """What runs take: as measured when it was compiled, or now, in a part of the ``seconds`` of the load."""
        if not options.get("warm_up", True):
            return []
        cost = self._cost(opened)
        if cost is None:
            return measuring.measure(opened.loaded, options["sizes"], options["rows"], seconds, self._threads)
        return [[point for point in curve if point[0] <= options["rows"]] for curve in cost.curves]

    def _cost(self, opened: Opened) -> Cost | None:
        cost = opened.entry.manifest.costs.get(opened.form) if opened.entry is not None else None
        return cost if cost is not None and cost.threads == self._threads else None
