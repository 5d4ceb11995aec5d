"""A pool without TensorFlow: supervisor, broker and workers are the real ones, the models are numpy functions.

A model's directory holds a ``saved_model.pb`` that nobody reads; its base name says which of
:data:`~tfpool.testing.fake_models.KINDS` it is. What a load does is told by files beside the graph: see
:class:`Orders`. ``python -m tfpool.testing.fake_worker FILE`` serves the settings in FILE, JSON; :class:`FakePool`
starts that as a process. :func:`run` is one worker, for tests that are the supervisor themselves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from tfpool.broker import compiling
from tfpool.client.sync import Client
from tfpool.errors import DeadlineExceeded, FailedPrecondition, TfpoolError, Unavailable
from tfpool.repository import describe
from tfpool.repository.describe import Description
from tfpool.settings import (
    BatchingSettings,
    GatewaySettings,
    ModelSettings,
    PlacementPolicy,
    PlacementSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WorkerSettings,
)
from tfpool.shm.doorbell import Doorbell
from tfpool.testing import fake_compiler
from tfpool.testing.fake_compiler import Recipe
from tfpool.testing.fake_models import CRASH_VALUE as CRASH_VALUE
from tfpool.testing.fake_models import POISON_VALUE as POISON_VALUE
from tfpool.testing.fake_models import SPILL_FLOATS as SPILL_FLOATS
from tfpool.testing.fake_models import memory as held
from tfpool.testing.fake_models import signatures_of
from tfpool.wire.messages import Gauge
from tfpool.worker import executor, gpu, loader, main, measuring, memory, warmup
from tfpool.worker.boot import Boot
from tfpool.worker.loader import Loaded

START_SECONDS = 20.0
STOP_SECONDS = 10.0
RETRY_SECONDS = 2.0
"""What could not be compiled is tried again after twice as long, and then after four times."""
BASE_BYTES = 32 << 20
SHARED_BYTES = 8 << 20
"""What two workers share, beside what each has to itself."""
GPU_BASE_BYTES = 300 << 20
_LOADS = "loads"
_STEP_SECONDS = 0.01


def run(sock: socket.socket, name: str, load_concurrency: int = 1, line: socket.socket | None = None) -> None:
    """Be a worker until told to stop; without a ``line`` to a supervisor also when the broker is gone."""
    install()
    if line is None:
        line, supervisor = Doorbell.pair()
        supervisor.close()
    main.run(sock, line, Boot(name, load_concurrency=load_concurrency, log_level="error"))


def install() -> None:
    """Have this process, and those that it forks, serve numpy functions: their directories hold no graph."""
    describe.describe = _describe
    loader.session_config = lambda threads, gpu_memory: None
    loader.start_runtime = lambda config: None
    loader.load = load
    loader.let_go = lambda: None
    loader.explain = vars(executor)["explain"] = explain
    warmup.warm = lambda loaded, sizes: loaded.session.warm()
    measuring.measure = lambda loaded, *_: [[] for _ in loaded.signatures]
    memory.high_water = _total
    memory.host = _gauge
    gpu.reader = lambda device: (lambda: None) if device == "cpu" else _on_gpu
    fake_compiler.install()
    compiling.RETRY_SECONDS = RETRY_SECONDS


def _describe(directory: str, tags: Sequence[str] = (), roots: Sequence[str] = ()) -> Description:
    """A version directory without a graph to read."""
    orders = Orders(directory)
    if orders.garbled.exists():
        raise FailedPrecondition(f"{directory}: {orders.garbled.read_text()}")
    return Description((), {}, describe._batching(directory), *describe.fingerprint(directory, roots))


class Orders:
    """Files in a version's directory that tell how its load goes."""

    def __init__(self, directory: str | Path) -> None:
        self.hold = Path(directory) / "hold"
        """The load waits until it is gone."""
        self.warming = Path(directory) / "warming"
        """The warm-up waits until it is gone."""
        self.linger = Path(directory) / "linger"
        """The unload waits until it is gone."""
        self.deadly = Path(directory) / "deadly"
        """The load kills its worker."""
        self.fail = Path(directory) / "fail"
        """The load fails with this text."""
        self.garbled = Path(directory) / "garbled"
        """The graph cannot be read, for the reason that this says."""
        self.nbytes = Path(directory) / "bytes"
        """What the version takes of the worker's memory, as the worker tells it."""
        self.gpu_nbytes = Path(directory) / "gpu_bytes"
        """What it takes of the worker's GPU, where it has one; nothing of that comes back."""
        self.residue = Path(directory) / "residue"
        """What of that stays when it is unloaded."""
        self.batching = Path(directory) / describe.BATCHING_FILE


def _total() -> int:
    return BASE_BYTES + held.held


def _gauge() -> Gauge:
    return Gauge(_total() + SHARED_BYTES, _total(), _total() + SHARED_BYTES // 2)


def _on_gpu() -> int:
    return GPU_BASE_BYTES + held.gpu_held


def explain(error: Exception, what: str) -> TfpoolError:
    """Like the loader's, without TensorFlow's errors."""
    return error if isinstance(error, TfpoolError) else FailedPrecondition(f"{what}: {error!r}")


class _Session:
    """Holds the memory that is ordered until it is closed, and the residue for ever."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        nbytes = _number(orders.nbytes)
        self._returns = nbytes - _number(orders.residue)
        held.held += nbytes
        held.gpu_held += _number(orders.gpu_nbytes)

    def warm(self) -> None:
        _while_there(self._orders.warming)

    def close(self) -> None:
        _while_there(self._orders.linger)
        held.held -= self._returns


def load(path: str, config: Any, stateful: Iterable[str] = (), tags: Sequence[str] = ()) -> Loaded:
    """The model that the directory's name asks for. Raises FailedPrecondition for the broken one, and when told to."""
    orders = Orders(path)
    with open(Path(path).parent / _LOADS, "a") as file:
        print(Path(path).name, file=file)
    _while_there(orders.hold)
    if orders.deadly.exists():
        signal.raise_signal(signal.SIGSEGV)
    if orders.fail.exists():
        raise FailedPrecondition(f"{path}: {orders.fail.read_text()}")
    signatures = signatures_of(path)
    return Loaded(_Session(orders), signatures, {})


def loads(base: Path) -> list[int]:
    """The versions of a model that have been loaded, or begun to be, by workers of any pool so far."""
    return [int(line) for line in (base / _LOADS).read_text().split()]


def _while_there(file: Path) -> None:
    while file.exists():
        time.sleep(_STEP_SECONDS)


def _number(file: Path) -> int:
    return int(file.read_text()) if file.exists() else 0


# -- pools ---------------------------------------------------------------------------------------------------------


def version(base: Path | str, number: int, **orders: Any) -> Path:
    """A version directory, complete from the moment it is there; ``orders`` are the contents of files of
    :class:`Orders` by name, ``nbytes`` and ``residue`` numbers."""
    draft, made = Path(base) / f".{number}", Path(base) / str(number)
    draft.mkdir(parents=True, exist_ok=True)
    for name, content in orders.items():
        getattr(Orders(draft), name).write_text(str(content))
    (draft / "saved_model.pb").write_text(f"{number} of {made.parent.name}")
    draft.rename(made)
    return made


def model(directory: Path, kind: str, name: str = "", versions: Iterable[int] = (1,), **options: Any) -> ModelSettings:
    """Settings of a model of a kind, its directory made; keys of BatchingSettings go into ``batching``, those of
    :class:`Orders` into each version, and those of :class:`Recipe` beside them."""
    base = directory / (f"{kind}-{name}" if name else kind)
    for key in [key for key in options if key in vars(Recipe("")) and key != "base"]:
        base.mkdir(exist_ok=True)
        getattr(Recipe(base), key).write_text(str(options.pop(key)))
    orders = {key: options.pop(key) for key in list(options) if key in vars(Orders(""))}
    for number in versions:
        if not (base / str(number)).exists():
            version(base, number, **orders)
    batching = {key: options.pop(key) for key in list(options) if key in BatchingSettings.__dataclass_fields__}
    return ModelSettings(name or kind, str(base), batching=BatchingSettings(**batching), **options)


def settings(
    directory: Path,
    models: Iterable[ModelSettings],
    workers: int = 2,
    server: dict[str, Any] | None = None,
    memory: int | None = None,
    placement: dict[str, Any] | None = None,
    device: str = "cpu",
    store: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    **pool: Any,
) -> Settings:
    """Of a pool whose endpoints lie in ``directory``; ``memory`` is each worker's budget, ``device`` where they all
    run. Its models stay where they are, unless ``placement`` says otherwise. With ``store``, its settings, there is
    one: in ``directory``, unless they say otherwise."""
    listening = ServerSettings((f"ipc://{directory}/pool",), f"ipc://{directory}/admin", log_level="warning")
    names = tuple(WorkerSettings(f"{device[:3]}{i}", device, threads=1, memory=memory) for i in range(workers))
    everything = PoolSettings(**{"shm_budget": 16 << 20, **pool})
    moving = PlacementSettings(**{"policy": PlacementPolicy.STATIC, **(placement or {})})
    stored = StoreSettings(**{"directory": str(directory / "store"), "enabled": store is not None, **(store or {})})
    listening = replace(listening, **(server or {}))
    front = GatewaySettings(**(gateway or {}))
    return Settings(listening, everything, names, models=tuple(models), placement=moving, store=stored, gateway=front)


class FakePool:
    """A pool in processes of its own, ended with :meth:`close`."""

    def __init__(self, directory: Path, models: Iterable[ModelSettings], workers: int = 2, **options: Any) -> None:
        self.settings = settings(directory, models, workers, **options)
        self.endpoint, self.admin = self.settings.server.listen[0], self.settings.server.admin_listen
        self.directory = directory
        self._file = directory / "settings"
        self._file.write_text(json.dumps(asdict(self.settings), default=lambda choice: choice.value))
        self.start()

    def start(self) -> None:
        """Start it, again after :meth:`close`; returns when every model serves or has failed."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tfpool.testing.fake_worker", str(self._file)], stderr=log
            )
        try:
            with self.client() as client:
                client.wait_ready(START_SECONDS)
        except BaseException:
            self.close()
            raise AssertionError(f"the pool did not start:\n{self.log()}") from None

    def client(self, **options: Any) -> Client:
        return Client(self.endpoint, admin=self.admin, **options)

    def recipe(self, model: str) -> Recipe:
        """How a model is compiled."""
        return Recipe(self.base(model))

    def base(self, model: str) -> Path:
        """Where the versions of a model lie."""
        return next(Path(settings.base_path) for settings in self.settings.models if settings.name == model)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def broker_pid(self) -> int:
        """The broker's process."""
        (pid,) = self.children("tfpool-broker") or [0]
        assert pid, "the pool has no broker"
        return pid

    def zygote_pid(self) -> int:
        """The zygote's process."""
        (pid,) = self.children("tfpool-zygote")
        return pid

    def compilers(self) -> list[int]:
        """The processes that compile."""
        return [pid for zygote in self.children("tfpool-zygote") for pid in self.children("tfpool-compil", zygote)]

    def children(self, begins: str, parent: int = 0) -> list[int]:
        """The children of a process, the supervisor's by default, whose names begin so."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    stat = Path(f"/proc/{name}/stat").read_text()
                    of = int(stat.rpartition(")")[2].split()[1])
                    if of == (parent or self.process.pid) and stat.split("(")[1].startswith(begins):
                        found.append(int(name))
        return found

    def kill_broker(self, remembered: str = "") -> None:
        """Kill the broker, once it has written down ``remembered``; returns when another is ready."""
        path = self.settings.server.state_file or self.directory / f"tfpool-{self.process.pid}.state"
        until(lambda: not remembered or (os.path.exists(path) and remembered in Path(path).read_text()))
        old = self.broker_pid()
        os.kill(old, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{old}"))
        with self.client() as client:
            until(lambda: _is_ready(client), START_SECONDS)

    def close(self) -> int:
        """Have it drain and end; its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the pool did not end:\n{self.log()}") from None

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_ready(client: Client) -> bool:
    with suppress(Unavailable, DeadlineExceeded):
        return bool(client.wait_ready(1.0))
    return False


@contextmanager
def aside(verb: Callable[[], object]) -> Iterator[list[TfpoolError]]:
    """Ask for something that answers later, while the block goes on; what was raised instead."""
    failures: list[TfpoolError] = []

    def ask() -> None:
        try:
            verb()
        except TfpoolError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failures
    finally:
        thread.join()


def until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """What ``condition`` gives, once that is true. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(_STEP_SECONDS)
    return found


def _serve(file: str) -> int:
    from tfpool.supervisor import main as supervisor
    from tfpool.supervisor import zygote

    install()
    zygote.import_tensorflow = lambda: None
    return supervisor.serve(_made(Settings, json.loads(Path(file).read_text())))


def _made(hint: Any, value: Any) -> Any:
    """Settings of a type from JSON, which has neither tuples nor enums."""
    if isinstance(value, list):
        inner = get_args(hint)
        return tuple(_made(inner[0] if inner else None, item) for item in value)
    if isinstance(hint, UnionType) and value is not None:
        hint = get_args(hint)[0]
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _made(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    return hint(value) if isinstance(hint, type) and issubclass(hint, Enum) else value


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
