"""Which form of a model a worker loads: what the store has compiled, or the SavedModel itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.settings import Form
from tfpool.store import identity
from tfpool.store.manifest import Cost
from tfpool.store.shelf import Entry, Shelf
from tfpool.telemetry import log
from tfpool.worker import compiled, inputs, loader, measuring, warmup
from tfpool.worker.loader import Loaded
from tfpool.worker.measuring import Curve


@dataclass(slots=True)
class Opened:
    """A model that has been loaded, in a form; ``entry`` is what of the store it came from. ``note`` tells why it is
    PLAIN where another form was wanted, as far as the store knows; ``stamp`` marks the files that it was loaded from,
    where there is a store."""

    loaded: Loaded
    form: Form
    entry: Entry | None = None
    note: str = ""
    stamp: str = ""

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
        stamp, note = self._stamp(path), ""
        if self._shelf is not None and options.get("form", Form.PLAIN.value) != Form.PLAIN.value:
            try:
                return self._from_store(self._shelf, path, options, stamp)
            except TfpoolError as error:
                note = error.message
        return Opened(loader.load(path, self._config, options["stateful"]), Form.PLAIN, note=note, stamp=stamp)

    def reopen(self, path: str, options: dict[str, Any], stamp: str) -> Opened:
        """Load a model that is held already, in exactly the form that ``options`` ask for, from the files of
        ``stamp``. Raises a TfpoolError."""
        if self._shelf is None:
            raise FailedPrecondition("this worker uses no store")
        if self._stamp(path) != stamp:
            raise FailedPrecondition("its files have changed since it was loaded")
        return self._from_store(self._shelf, path, options, stamp)

    def _stamp(self, path: str) -> str:
        try:
            return identity.mark(path).stamp if self._shelf is not None else ""
        except TfpoolError:
            return ""  # loading it says what is wrong with it

    def _from_store(self, shelf: Shelf, path: str, options: dict[str, Any], stamp: str) -> Opened:
        """Raises a TfpoolError where the store cannot serve."""
        if options["stateful"]:
            raise FailedPrecondition("it is declared stateful")
        try:
            entry = shelf.find(path)
        except TfpoolError as error:
            self._log.warning("store.unused", path=path, error=error.message)
            raise
        if entry is None:
            raise NotFound("the store does not have it")
        if entry.manifest.refusal:
            raise FailedPrecondition(entry.manifest.refusal)
        return self._compiled(shelf, entry, Form(options["form"]), path, stamp)

    def _compiled(self, shelf: Shelf, entry: Entry, form: Form, path: str, stamp: str) -> Opened:
        """Raises FailedPrecondition; an entry that cannot be loaded leaves the store, to be made again."""
        try:
            loaded = compiled.open_entry(shelf, entry, form, self._config)
        except TfpoolError as error:
            self._log.warning("store.spoilt", path=path, entry=entry.path, error=error.message)
            shelf.remove(entry.key)
            raise FailedPrecondition(f"the compiled model is to be made again: {error.message}") from None
        shelf.touch(entry.key)
        return Opened(loaded, form, entry, stamp=stamp)

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
