"""The worker's story: attach to the pool's memory, load what it is told, run batches, say so, stop.

The main thread hears the doorbell and runs TensorFlow itself; loads happen on other threads, so that what is served
goes on being served. The end of the doorbell's file is the end of the broker: the worker keeps its models and waits, at
its line to the supervisor, for a doorbell to the next one. The end of that line is its own end.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from time import monotonic, sleep
from typing import Any

from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, unpack
from tfpool.worker import gpu, loader, memory
from tfpool.worker.boot import Boot, give_way, quiet_stderr
from tfpool.worker.executor import Executor, Outcome, Servable
from tfpool.worker.holdings import Holding, Holdings
from tfpool.worker.opening import Opened, Opener
from tfpool.worker.voice import Voice

_BEAT_SECONDS = 1.0
_BEATS_PER_GAUGE = 5
_RUN_POLL_SECONDS = 0.001


def run(doorbell: socket.socket, line: socket.socket, boot: Boot) -> None:
    """Serve until told to stop. The process has been pinned already (:func:`tfpool.worker.boot.pin`)."""
    log.configure(f"worker {boot.name}", boot.log_level, boot.log_format)
    Worker(Doorbell(doorbell, blocking=True), Doorbell(line, blocking=True), boot).serve()


class Worker:
    """One worker process. ``bell`` leads to the broker, ``line`` to the supervisor."""

    def __init__(self, bell: Doorbell, line: Doorbell, boot: Boot) -> None:
        self._bell = bell
        self._line = line
        self._voice = Voice(bell)
        self._executor = Executor()
        self._holdings = Holdings(self._voice)
        self._loads = ThreadPoolExecutor(boot.load_concurrency, "load", give_way)
        self._meter = memory.Meter(gpu.reader(boot.device))
        self._stopped = threading.Event()
        self._log = log.get("worker")
        gpu_memory = boot.memory if boot.device != "cpu" else None
        self._config = loader.session_config(boot.threads, gpu_memory)
        self._opener = Opener(boot.store if boot.device == "cpu" else "", self._config, boot.threads)
        self._running: Servable | None = None

    def serve(self) -> None:
        gc.freeze()  # what is imported stays: no collection visits it, nor copies its pages from the zygote
        with quiet_stderr():
            loader.start_runtime(self._config)
        base = self._meter.gauge()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        try:
            while True:
                inventory = self._holdings.inventory()
                self._voice.say(Bell.READY, os.getpid(), self._meter.gauge(), base, inventory)
                if self._obey():
                    return
                self._await_broker()
        except EOFError:
            self._log.info("supervisor.gone")
        finally:
            self._stopped.set()
            self._loads.shutdown(wait=False, cancel_futures=True)

    def _obey(self) -> bool:
        """Do what the broker says: True when that is to stop, False when the broker is gone."""
        try:
            while True:
                heard = self._bell.hear()
                assert heard is not None  # the doorbell blocks
                verb, *fields = unpack(heard[0])
                if verb == Bell.RUN:
                    self._run(*fields)
                elif verb == Bell.LOAD:
                    holding = self._holdings.add(*fields)
                    holding.load = self._loads.submit(self._load, holding)
                elif verb == Bell.REFORM:
                    self._reform(*fields)
                elif verb == Bell.ADOPT:
                    self._holdings.adopt(*fields)
                elif verb == Bell.UNLOAD:
                    handle = fields[0]
                    self._loads.submit(self._unload, self._holdings.take(handle), handle, self._voice.reign)
                elif verb in (Bell.ATTACH, Bell.MAP):
                    self._executor.attach(fields[0], heard[1][0], fields[1])
                elif verb == Bell.UNMAP:
                    self._executor.detach(fields[0])
                elif verb == Bell.STOP:
                    return True
        except EOFError:
            self._log.info("broker.gone")
            return False

    def _await_broker(self) -> None:
        """Let go of what the last broker shared, and wait for a doorbell to the next one.

        Raises EOFError when the supervisor is gone.
        """
        for arena in list(self._executor.arenas):
            self._executor.detach(arena)
        heard = self._line.hear()
        assert heard is not None  # the line blocks
        self._bell = Doorbell(socket.socket(fileno=heard[1][0]), blocking=True)
        self._voice.turn_to(self._bell)

    def _run(self, batch: int, handle: int, index: int, by_rows: bool, start_by: float, items: list[Any]) -> None:
        """Run a batch, unless it is later than ``start_by`` (monotonic seconds).

        Requests that run in place come several at once, each an item of its own.
        """
        begun = monotonic()
        if begun > start_by:
            self._voice.say(Bell.LATE, batch)
            return
        servable = self._running = self._holdings.servable(handle)
        if servable is not self._holdings.servable(handle):  # it has just changed its form, and may be closed
            servable = self._running = self._holdings.servable(handle)
        done: list[Outcome] = []
        try:
            if servable is None:
                raise FailedPrecondition("the model has been unloaded")
            run = self._executor.run
            done.extend(run(servable, index, by_rows, *item) for item in items)
        except TfpoolError as error:
            self._voice.say(Bell.FAILED, batch, int(error.code), error.message[:4096])
        else:
            run_us = int(sum(outcome.run for outcome in done) * 1e6)
            results = [(outcome.key, outcome.buffers, outcome.spilled is not None) for outcome in done]
            spilled = tuple(outcome.spilled for outcome in done if outcome.spilled is not None)
            self._voice.say(Bell.DONE, batch, begun, run_us, results, fds=spilled)
        for outcome in done:
            if outcome.spilled is not None:
                os.close(outcome.spilled)
        self._running = None

    def _load(self, holding: Holding) -> None:
        try:
            opened, info = self._measured(holding, lambda: self._opener.open(holding.path, holding.options))
        except Exception as error:
            failure = loader.explain(error, holding.path)
            del error
            memory.trim()
            self._log.debug("load.failed", model=holding.name, path=holding.path, error=failure.message)
            self._holdings.failed(holding, int(failure.code), failure.message[:4096])
            return
        self._holdings.loaded(holding, Servable(holding.name, opened.loaded), opened.stamp, info)
        self._voice.say(Bell.GAUGE, self._meter.gauge())

    def _measured(self, holding: Holding, load: Callable[[], Opened]) -> tuple[Opened, dict[str, Any]]:
        """Load a model and warm it up; what the broker is told of it. Raises what loading raises."""
        options = holding.options
        memory.trim()  # what earlier runs have freed is not this load's to give back
        begun = self._meter.begin()
        try:
            opened = load()
            self._holdings.tell(holding, Bell.WARMING)
            self._opener.warm(opened, holding.path, options)
            curves = self._opener.curves(opened, options, monotonic() - begun.seconds)
        except BaseException:
            self._meter.end(begun)
            raise
        memory.trim()
        took = self._meter.end(begun, opened.shared)
        return opened, {
            "load_seconds": took.seconds,
            "memory_bytes": took.stays,
            "peak_bytes": took.peak,
            "signatures": [asdict(s.spec) for s in opened.loaded.signatures],
            "skipped": opened.loaded.skipped,
            "curves": curves,
            "form": opened.form.value,
            "mapped": [opened.entry.key, opened.shared] if opened.entry is not None and opened.shared else None,
            "note": opened.note[:1024],
        }

    def _reform(self, handle: int, form: str) -> None:
        """Begin to change the form of a model that is served."""
        holding = self._holdings.get(handle)
        if holding is not None:  # else it has left
            holding.load = self._loads.submit(self._change, holding, form, holding.load)

    def _change(self, holding: Holding, form: str, load: Future[None]) -> None:
        """Load a model in another form beside the one that is served, change over, and close the old one."""
        load.exception()
        old = holding.servable
        try:
            if old is None:
                raise FailedPrecondition("it is not loaded")
            options = {**holding.options, "form": form}
            opened, info = self._measured(holding, lambda: self._opener.reopen(holding.path, options, holding.stamp))
            if [s.spec for s in opened.loaded.signatures] != [s.spec for s in old.loaded.signatures]:
                opened.loaded.close()
                raise FailedPrecondition("compiled, its signatures are others")
        except Exception as error:
            failure = loader.explain(error, holding.path)
            del error
            memory.trim()
            self._holdings.tell(holding, Bell.REFORM_FAILED, failure.message[:4096])
            return
        self._voice.say(Bell.GAUGE, self._meter.gauge())  # with both forms: the old one is closed only now
        self._holdings.changed(holding, Servable(holding.name, opened.loaded), info)
        while self._running is old:
            sleep(_RUN_POLL_SECONDS)
        self._close(holding.name, old)
        self._voice.say(Bell.GAUGE, self._meter.gauge())

    def _close(self, name: str, servable: Servable) -> None:
        try:
            servable.loaded.close()
        except Exception as error:
            self._log.error("unload.failed", model=name, error=repr(error))
        memory.trim()

    def _unload(self, holding: Holding | None, handle: int, reign: int) -> None:
        """Close a model, after its load if that is still under way; it is no longer asked by then."""
        if holding is not None:
            holding.load.exception()
            if holding.servable is not None:
                self._close(holding.name, holding.servable)
        left = self._meter.gauge()
        if not self._voice.answer(reign, Bell.UNLOADED, handle, left):
            self._voice.say(Bell.GAUGE, left)

    def _beat(self) -> None:
        """Show that this process is alive, and now and then what it takes of the memory."""
        beats = 0
        while not self._stopped.wait(_BEAT_SECONDS):
            self._voice.say(Bell.BEAT)
            beats += 1
            if beats % _BEATS_PER_GAUGE == 0:
                self._voice.say(Bell.GAUGE, self._meter.gauge())
