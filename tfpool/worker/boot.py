"""What a worker must set before TensorFlow starts any thread, in this order: affinity, environment, limits.

The first session of a process fixes TensorFlow's thread pools, and CUDA reads its environment once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from tfpool.worker.gpu import visible

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_LOW_PRIORITY = 10
_M_ARENA_MAX = -8


@dataclass(frozen=True, slots=True)
class Boot:
    """One worker: its name, ``cpu`` or ``gpu:N``, CPUs to run on, threads an operation may use, memory in bytes: of
    the GPU where it has one. ``store`` is the directory of compiled models (empty: none are used)."""

    name: str
    device: str = "cpu"
    cpus: tuple[int, ...] = ()
    threads: int = 1
    memory: int | None = None
    load_concurrency: int = 1
    store: str = ""
    log_level: str = "info"
    log_format: str = "text"

    def to_fields(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Boot:
        return cls(**{**fields, "cpus": tuple(fields["cpus"])})


def pin(boot: Boot) -> None:
    """Set affinity, environment and the oom score of this process; once, for ``gpu:N`` counts what was visible."""
    if boot.cpus:
        with suppress(OSError):  # a container may have lost the CPU since the plan was made
            os.sched_setaffinity(0, boot.cpus)
    os.environ["OMP_NUM_THREADS"] = str(boot.threads)
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"  # TensorFlow's own never gives an unloaded model's memory back
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPUs are numbered as by nvidia-smi
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(boot.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # the broker must outlive its workers
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)  # the tops of further arenas cannot be trimmed
    sys.setswitchinterval(0.0005)  # a load in another thread must not hold the running one up
    name_process(f"tfpool-{boot.name}")


def give_way() -> None:
    """Let all other threads on this CPU go before the calling one.

    Not the lowest priority: it holds the interpreter's lock at times, and must get on then.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit if it has died already.

    Call it from the main thread of a child whose parent's main thread made it: the signal follows that thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what libraries write to stderr; show it only when the block fails.

    TensorFlow's C++ parts greet on every import and first session, whatever their log level is set to.
    """
    held = os.memfd_create("stderr", os.MFD_CLOEXEC)
    real = os.dup(2)
    os.dup2(held, 2)
    try:
        yield
    except BaseException:
        os.lseek(held, 0, os.SEEK_SET)
        os.write(real, os.read(held, 1 << 16))
        raise
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(held)


def name_process(name: str) -> None:
    """The name that ``ps`` and ``top`` show (15 characters)."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
