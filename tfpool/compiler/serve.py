"""One compilation for a broker: told over a doorbell, stage by stage, and what came of it."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import Any

from tfpool.compiler.main import Outcome, compile_model, give_way
from tfpool.shm.doorbell import Doorbell
from tfpool.store.shelf import Shelf
from tfpool.telemetry import log
from tfpool.wire.messages import pack
from tfpool.worker.boot import name_process, quiet_stderr

STAGE, RESULT = "stage", "result"
_PATIENCE = 12.0


def run(doorbell: socket.socket, job: dict[str, Any]) -> None:
    """Do a job: ``path``, ``store``, ``threads``, ``budget``, ``stateful``, and the ``seconds`` of a CPU after
    which it ends; on a machine that is busy it may take many times as long."""
    bell = Doorbell(doorbell, blocking=True)
    log.configure("compiler", job["log_level"], job["log_format"])
    name_process("tfpool-compiler")
    give_way()
    for number, clock in ((signal.SIGPROF, signal.ITIMER_PROF), (signal.SIGALRM, signal.ITIMER_REAL)):
        signal.signal(number, signal.SIG_DFL)  # the end, whatever it is stuck in
        signal.setitimer(clock, job["seconds"] if clock == signal.ITIMER_PROF else _PATIENCE * job["seconds"])
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])

    def tell(what: str, *fields: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the store is there for the next broker
            bell.ring(pack([what, *fields]))

    try:
        with quiet_stderr():
            done = compile_model(
                job["path"],
                Shelf(job["store"]),
                job["threads"],
                job["budget"],
                job["stateful"],
                say=lambda stage: tell(STAGE, stage),
            )
    except Exception as error:  # the original still serves: somebody has to be told why
        tell(RESULT, Outcome.FAILED.value, "", f"{type(error).__name__}: {error}"[:2048], 0.0)
    else:
        tell(RESULT, done.outcome.value, done.key, done.reason[:2048], done.seconds)
