"""The worker's story: attach to the pool's memory, load what it is told, run batches, say so, stop.

The main thread hears the doorbell and runs TensorFlow itself; loads happen on other threads, so that what is served
goes on being served. The end of the doorbell's file is the end of the worker.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from time import monotonic
from typing import Any

from tfpool.errors import FailedPrecondition, TfpoolError
from tfpool.shm.doorbell import Doorbell
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, pack, unpack
from tfpool.worker import loader, memory, warmup
from tfpool.worker.boot import Boot, give_way, quiet_stderr
from tfpool.worker.executor import Executor, Outcome, Servable

_GAUGE_SECONDS = 5.0


def run(sock: socket.socket, boot: Boot) -> None:
    """Serve until told to stop. The process has been pinned already (:func:`tfpool.worker.boot.pin`)."""
    log.configure(f"worker {boot.name}", boot.log_level, boot.log_format)
    Worker(Doorbell(sock, blocking=True), boot).serve()


class Worker:
    """One worker process."""

    def __init__(self, bell: Doorbell, boot: Boot) -> None:
        self._bell = bell
        self._executor = Executor()
        self._servables: dict[int, Servable] = {}
        self._loads = ThreadPoolExecutor(boot.load_concurrency, "load", give_way)
        self._loading: dict[int, Future[None]] = {}
        self._meter = memory.Meter()
        self._stopped = threading.Event()
        self._log = log.get("worker")
        gpu_memory = boot.memory if boot.device != "cpu" else None
        self._config = loader.session_config(boot.threads, gpu_memory)

    def serve(self) -> None:
        gc.freeze()  # what is imported stays: no collection visits it, nor copies its pages from the zygote
        with quiet_stderr():
            loader.start_runtime(self._config)
        threading.Thread(target=self._report, name="gauge", daemon=True).start()
        self._say(Bell.READY, os.getpid(), memory.resident(), memory.unique())
        try:
            while True:
                heard = self._bell.hear()
                assert heard is not None  # the doorbell blocks
                verb, *fields = unpack(heard[0])
                if verb == Bell.RUN:
                    self._run(*fields)
                elif verb == Bell.LOAD:
                    self._load_later(*fields)
                elif verb == Bell.UNLOAD:
                    handle = fields[0]
                    servable, loading = self._servables.pop(handle, None), self._loading.pop(handle, None)
                    self._loads.submit(self._unload, servable, loading, handle)
                elif verb in (Bell.ATTACH, Bell.MAP):
                    self._executor.attach(fields[0], heard[1][0], fields[1])
                elif verb == Bell.UNMAP:
                    self._executor.detach(fields[0])
                elif verb == Bell.STOP:
                    return
        except EOFError:
            self._log.info("doorbell.closed")
        finally:
            self._stopped.set()
            self._loads.shutdown(wait=False, cancel_futures=True)

    def _run(self, batch: int, handle: int, index: int, by_rows: bool, start_by: float, items: list[Any]) -> None:
        """Run a batch, unless it is later than ``start_by`` (monotonic seconds).

        Requests that run in place come several at once, each an item of its own.
        """
        begun = monotonic()
        if begun > start_by:
            self._say(Bell.LATE, batch)
            return
        servable = self._servables.get(handle)
        done: list[Outcome] = []
        try:
            if servable is None:
                raise FailedPrecondition("the model has been unloaded")
            run = self._executor.run
            done.extend(run(servable, index, by_rows, *item) for item in items)
        except TfpoolError as error:
            self._say(Bell.FAILED, batch, int(error.code), error.message[:4096])
        else:
            run_us = int(sum(outcome.run for outcome in done) * 1e6)
            results = [(outcome.key, outcome.buffers, outcome.spilled is not None) for outcome in done]
            spilled = tuple(outcome.spilled for outcome in done if outcome.spilled is not None)
            self._bell.ring(pack([Bell.DONE, batch, begun, run_us, results]), spilled)
        for outcome in done:
            if outcome.spilled is not None:
                os.close(outcome.spilled)

    def _load_later(self, handle: int, *fields: Any) -> None:
        loading = self._loading[handle] = self._loads.submit(self._load, handle, *fields)
        loading.add_done_callback(lambda _: self._loading.pop(handle, None))

    def _load(self, handle: int, name: str, path: str, options: dict[str, Any]) -> None:
        begun = self._meter.begin()
        try:
            loaded = loader.load(path, self._config, options["stateful"])
            self._say(Bell.WARMING, handle)
            if options.get("warm_up", True):
                warmup.replay(loaded, path)
                warmup.warm(loaded, options["sizes"])
            else:
                warmup.warm(loaded, ())
        except Exception as error:
            failure = loader.explain(error, path)
            self._log.debug("load.failed", model=name, path=path, error=failure.message)
            del error
            memory.trim()
            self._meter.end(begun)
            self._say(Bell.LOAD_FAILED, handle, int(failure.code), failure.message[:4096])
            return
        memory.trim()
        took = self._meter.end(begun)
        self._servables[handle] = Servable(name, loaded)
        info = {
            "load_seconds": took.seconds,
            "memory_bytes": took.unique,
            "peak_bytes": took.resident,
            "signatures": [asdict(s.spec) for s in loaded.signatures],
            "skipped": loaded.skipped,
        }
        self._say(Bell.LOADED, handle, info)
        self._say(Bell.GAUGE, memory.resident(), memory.unique())

    def _unload(self, servable: Servable | None, loading: Future[None] | None, handle: int) -> None:
        """Close a model, after its load if that is still under way; ``servable`` is no longer asked by then."""
        if loading is not None:
            loading.exception()
        servable = servable or self._servables.pop(handle, None)
        if servable is not None:
            try:
                servable.loaded.close()
            except Exception as error:
                self._log.error("unload.failed", model=servable.name, error=repr(error))
            memory.trim()
        self._say(Bell.UNLOADED, handle, memory.resident(), memory.unique())

    def _report(self) -> None:
        while not self._stopped.wait(_GAUGE_SECONDS):
            try:
                self._say(Bell.GAUGE, memory.resident(), memory.unique())
            except OSError:
                return

    def _say(self, verb: Bell, *fields: Any) -> None:
        self._bell.ring(pack([verb, *fields]))
