"""A pool of one's own: ``with tfpool.Pool(models={"mnist": path}) as pool: pool.client().predict(...)``.

The pool is ``python -m tfpool serve`` in a session of its own, whose ipc endpoints lie in a private directory. It
holds one end of a pipe whose other end is ours: when this process ends, however it does, the pool ends too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tfpool import config as configuration
from tfpool.addresses import MAX_IPC_BYTES
from tfpool.client.aio import AsyncClient
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, TfpoolError, Unavailable

START_SECONDS = 120.0
STOP_SECONDS = 12.0
_SLICE_SECONDS = 0.5
_KEPT_BYTES = 64 << 10
_TAIL_LINES = 20
_ROOM_FOR_NAMES = 24


class Pool:
    """A pool that lives as long as this object, or at most as this process.

    ``models`` maps names to directories, ``config`` is a TOML file; ``settings`` are keys of its tables ``[server]``,
    ``[pool]`` and ``[batching]`` (``memory_budget="2GiB"``, ``max_batch_size=32``, ``log_level="debug"`` ...) and win
    over it. The constructor returns when every model serves, within ``timeout`` seconds; a model that failed to load
    raises its error, or with ``strict=False`` is left for ``client().models()`` to tell.

    Raises InvalidArgument for bad settings, DeadlineExceeded, Unavailable when the pool ends before it is ready, and
    the errors of loading. After a fork the child refuses to use or end the pool: it belongs to the parent.
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        timeout: float = START_SECONDS,
        strict: bool = True,
        **settings: Any,
    ) -> None:
        if not models and config is None:
            raise InvalidArgument("got neither models nor config, expected at least one of them")
        if taken := {"listen", "admin_listen"} & set(settings):
            raise InvalidArgument(f"got {', '.join(sorted(taken))}: a pool of one's own has its own endpoints")
        paths = {name: os.path.abspath(os.path.expanduser(path)) for name, path in (models or {}).items()}
        file = None if config is None else os.path.abspath(os.path.expanduser(config))
        directory = _private_directory()
        self.endpoint = f"ipc://{directory}/pool"
        self.admin_endpoint = f"ipc://{directory}/admin"
        if workers is not None:
            settings["workers"] = workers
        try:
            configuration.build(paths, file=file, listen=[self.endpoint], admin_listen=self.admin_endpoint, **settings)
            self._parts = _Parts(directory, self._command(paths, file, settings))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._end = weakref.finalize(self, _Parts.end, self._parts)
        _alive.add(self._parts)
        try:
            self._client = _OwnClient(self.endpoint, admin=self.admin_endpoint)
            self._parts.client = self._client
            self._await_ready(timeout, strict)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process of the pool's supervisor."""
        return self._parts.process.pid

    def client(self) -> Client:
        """The pool's own client, safe to share between threads. It is closed with the pool, and not before."""
        self._check()
        return self._client

    def async_client(self) -> AsyncClient:
        """A new client for ``async with``."""
        self._check()
        return AsyncClient(self.endpoint, admin=self.admin_endpoint)

    def log(self) -> str:
        """The last of what the pool's processes have written to their stderr."""
        return self._parts.written()

    def close(self) -> None:
        """Let the pool finish what waits, and end it: within 12 seconds, or it is killed. Again does nothing."""
        self._end()

    def _check(self) -> None:
        if os.getpid() != self._parts.pid:
            raise FailedPrecondition(
                f"this pool belongs to process {self._parts.pid}, which was forked: "
                f"make a tfpool.Client({self.endpoint!r}) here"
            )
        if not self._end.alive:
            raise FailedPrecondition("this pool is closed")

    def _command(self, models: Mapping[str, str], file: str | None, settings: Mapping[str, object]) -> list[str]:
        command = ["serve", "--listen", self.endpoint, "--admin-listen", self.admin_endpoint]
        if file is not None:
            command += ["--config", file]
        for name, path in models.items():
            command += ["--model", f"{name}={path}"]
        for key, value in settings.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        return command

    def _await_ready(self, timeout: float, strict: bool) -> None:
        deadline = time.monotonic() + timeout
        ready = None
        while ready is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the pool was not ready within {timeout:g} s; it wrote:\n{self._parts.tail()}")
            try:
                ready = self._client.wait_ready(timeout=min(left, _SLICE_SECONDS))
            except (DeadlineExceeded, Unavailable):
                status = self._parts.process.poll()
                if status is not None:
                    raise Unavailable(
                        f"the pool ended with status {status} before it was ready; it wrote:\n{self._parts.tail()}"
                    ) from None
        if strict and ready["failed"]:
            row, *others = ready["failed"]
            more = f" (and {len(others)} more failed to load)" if others else ""
            try:
                self._client.metadata(row["name"], version=row["version"])
            except TfpoolError as error:
                raise type(error)(error.message + more) from None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"tfpool.Pool({self.endpoint!r})"


class _OwnClient(Client):
    """Closing it is the pool's business: who uses the pool's client in a ``with`` shares it with others."""

    def close(self) -> None:
        pass

    def really_close(self) -> None:
        super().close()


class _Parts:
    """What a pool consists of, apart from the object, so that it can be ended when that is gone."""

    def __init__(self, directory: str, command: list[str]) -> None:
        self.pid = os.getpid()
        self.directory = directory
        self.client: _OwnClient | None = None
        self._kept = bytearray()
        theirs, self._owner = os.pipe()
        read, write = os.pipe()
        os.set_blocking(write, False)  # a log that nobody reads must not hold the pool up
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tfpool", *command, "--owner-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=write,
                pass_fds=[theirs],
                cwd=directory,  # python -m looks for modules in its directory first
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process, which may still want its pool
            )
        except BaseException:
            os.close(self._owner)
            os.close(read)
            raise
        finally:
            os.close(theirs)
            os.close(write)
        self._reader = threading.Thread(target=self._read, args=(read,), name="tfpool-log", daemon=True)
        self._reader.start()

    def _read(self, fd: int) -> None:
        with open(fd, "rb", 0) as pipe:
            while data := pipe.read(1 << 16):
                self._kept += data
                del self._kept[:-_KEPT_BYTES]

    def written(self) -> str:
        return bytes(self._kept).decode(errors="replace")

    def tail(self) -> str:
        """The end of the log; all of it where the pool has ended."""
        if self.process.poll() is not None:
            self._reader.join(1.0)
        lines = self.written().splitlines()[-_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    def end(self) -> None:
        if os.getpid() != self.pid:
            return
        if self.client is not None:
            self.client.really_close()
        self.disown()
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its children ask the kernel to die with it
            self.process.wait()
        self._reader.join(1.0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def disown(self) -> None:
        """Close our end of the pipe; in a forked child, lest it keep the pool alive after its owner."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1


_alive: weakref.WeakSet[_Parts] = weakref.WeakSet()


def _forked() -> None:
    for parts in list(_alive):
        parts.disown()


os.register_at_fork(after_in_child=_forked)


def _private_directory() -> str:
    """A new directory for this user alone, short enough for ipc endpoints."""
    if not sys.executable:
        raise FailedPrecondition("this program does not know its Python interpreter (sys.executable is empty)")
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > MAX_IPC_BYTES - _ROOM_FOR_NAMES:
        place = "/tmp"
    return tempfile.mkdtemp(prefix="tfpool-", dir=place)


def _environment() -> dict[str, str]:
    """Ours, and this very tfpool on the path, though the pool runs in another directory."""
    places = [str(Path(__file__).parents[2])]
    places += [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
