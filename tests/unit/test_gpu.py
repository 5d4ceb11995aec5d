"""Memory of GPUs as a fake of NVIDIA's library tells it: no real one has been read."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.rows import worker_row
from tfpool.cli import reading
from tfpool.settings import WorkerSettings
from tfpool.wire.messages import Gauge
from tfpool.worker import gpu, memory

MIB = 1 << 20
TOTAL = 80 << 30
OTHER = 4_000_000  # no process has this id


class NVMLError(Exception):
    """Of the fake."""


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None


@dataclass
class Device:
    """A GPU, or an instance of one: ``numbers`` are those of an instance, ``parts`` the places of a divided GPU."""

    uuid: str
    used: int = 0
    total: int = TOTAL
    processes: list[Process] | NVMLError = field(default_factory=list)
    broken: bool = False
    parts: list[Device | None] = field(default_factory=list)
    numbers: tuple[int, int] = (0, 0)

    def allocate(self, pid: int, nbytes: int | None) -> None:
        """A process comes to hold so many bytes more."""
        assert isinstance(self.processes, list)
        self.processes.append(Process(pid, nbytes))
        self.used += nbytes or 0


class FakeNvml(ModuleType):
    """As much of ``pynvml`` as is used."""

    NVMLError = NVMLError

    def __init__(self, *devices: Device, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.devices = devices
        self.driver = driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:
        if index >= len(self.devices):
            raise NVMLError("Invalid Argument")
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Device:
        parts = [part for device in self.devices for part in device.parts]
        for one in (*self.devices, *parts):
            if one is not None and one.uuid == uuid:
                return one
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, device: Device) -> str:
        return device.uuid

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> int:
        if not device.parts and device.total == TOTAL // 2:
            raise NVMLError("Not Supported")
        return len(device.parts)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, index: int) -> Device:
        part = device.parts[index]
        if part is None:
            raise NVMLError("Not Found")
        return part

    def nvmlDeviceGetGpuInstanceId(self, part: Device) -> int:
        return part.numbers[0]

    def nvmlDeviceGetComputeInstanceId(self, part: Device) -> int:
        return part.numbers[1]

    def nvmlDeviceGetMemoryInfo(self, device: Device) -> Device:
        if device.broken:
            raise NVMLError("GPU is lost")
        return device

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Device) -> list[Process]:
        if device.broken:
            raise NVMLError("GPU is lost")
        if isinstance(device.processes, NVMLError):
            raise device.processes
        return device.processes


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """What the log was told."""
    lines: list[tuple[str, dict[str, object]]] = []

    class Log:
        def info(self, event: str, /, **fields: object) -> None:
            lines.append((event, fields))

        warning = info

    monkeypatch.setattr(gpu, "_log", Log())
    return lines


def install(monkeypatch: pytest.MonkeyPatch, *devices: Device, visible: str = "0", **options: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*devices, **options))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


# -- which GPU it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "mask", "expected"),
    [
        ("cpu", None, "-1"),
        ("cpu", "0,1", "-1"),
        ("gpu:0", None, "0"),
        ("gpu:3", None, "3"),
        ("gpu:0", "2,3", "2"),
        ("gpu:1", " 2, 3 ", "3"),
        ("gpu:1", "GPU-aa,GPU-bb", "GPU-bb"),
        ("gpu:0", "MIG-1,MIG-2", "MIG-1"),
        ("gpu:2", "0,1", "-1"),
        ("gpu:0", "", "-1"),
        ("gpu:0", "-1", "-1"),
    ],
)
def test_a_worker_sees_one_of_those_that_the_pool_may_use(device: str, mask: str | None, expected: str) -> None:
    assert gpu.visible(device, mask) == expected


def divided() -> tuple[Device, Device]:
    """One whole GPU, of a model that cannot be divided, and one in two instances, with a free place between them."""
    first, second = Device("MIG-one", numbers=(3, 0)), Device("MIG-two", numbers=(5, 1))
    return Device("GPU-aaaa", total=TOTAL // 2), Device("GPU-bbbb", parts=[None, first, None, second])


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("0", "GPU-aaaa"),
        ("1", "MIG-one"),
        ("GPU-aaaa", "GPU-aaaa"),
        ("GPU-a", "GPU-aaaa"),
        ("GPU-bb", "MIG-one"),
        ("MIG-two", "MIG-two"),
        ("MIG-GPU-bbbb/3/0", "MIG-one"),
        ("MIG-GPU-bbbb/5/1", "MIG-two"),
    ],
)
def test_the_gpu_that_cuda_takes_is_the_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch, told: list[Any], name: str, uuid: str
) -> None:
    whole, parent = divided()
    install(monkeypatch, whole, parent, visible=name)
    read = gpu.reader("gpu:0")
    (found,) = told
    assert (found[0], found[1]["uuid"]) == ("gpu.found", uuid)
    chosen = next(d for d in (whole, *parent.parts) if d is not None and d.uuid == uuid)
    chosen.allocate(os.getpid(), 7 * MIB)
    assert read() == 7 * MIB


@pytest.mark.parametrize("name", ["2", "-1", "", "GPU-c", "MIG-three", "MIG-GPU-bbbb/4/0", "MIG-GPU-cccc/3/0", "x"])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, told: list[Any], name: str) -> None:
    install(monkeypatch, *divided(), visible=name)
    assert gpu.reader("gpu:0")() is None
    assert [event for event, _ in told] == ["gpu.unknown"]


# -- what it tells -------------------------------------------------------------------------------------------------


def test_only_what_this_process_holds(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    mine, others = Device("GPU-a", used=5 * MIB), Device("GPU-b")
    install(monkeypatch, mine, others)
    read = gpu.reader("gpu:0")
    mine.allocate(os.getpid(), 300 * MIB)
    mine.allocate(OTHER, 1000 * MIB)
    others.allocate(os.getpid(), 77 * MIB)
    assert read() == 300 * MIB
    mine.allocate(os.getpid(), 20 * MIB)
    assert read() == 320 * MIB, "two contexts of one process"
    assert [event for event, _ in told] == ["gpu.found"]


@pytest.mark.parametrize("why", ["another id", "no bytes", "no permission"])
def test_where_the_process_is_not_listed_all_that_came_since_counts(
    monkeypatch: pytest.MonkeyPatch, told: list[Any], why: str
) -> None:
    device = Device("GPU-a", used=5 * MIB)
    install(monkeypatch, device)
    read = gpu.reader("gpu:0")
    device.allocate(OTHER if why == "another id" else os.getpid(), None)
    device.used += 300 * MIB
    if why == "no permission":
        device.processes = NVMLError("Insufficient Permissions")
    assert [read(), read()] == [300 * MIB] * 2
    device.used = 0
    assert read() == 0, "never less than nothing"
    assert [event for event, _ in told] == ["gpu.found", "gpu.unlisted"], "said once"


def test_a_process_that_was_listed_once_is_not_mixed_with_others(
    monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    device = Device("GPU-a")
    install(monkeypatch, device)
    read = gpu.reader("gpu:0")
    device.allocate(os.getpid(), 300 * MIB)
    assert read() == 300 * MIB
    device.processes = []
    device.used = 900 * MIB
    assert [read(), read()] == [None, None]
    device.allocate(os.getpid(), 10 * MIB)
    assert read() == 10 * MIB
    assert [event for event, _ in told] == ["gpu.found", "gpu.unknown"]


def test_a_gpu_that_is_lost(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    device = Device("GPU-a")
    install(monkeypatch, device)
    read = gpu.reader("gpu:0")
    device.broken = True
    assert [read(), read()] == [None, None]
    assert told[1:] == [("gpu.unknown", {"error": "GPU is lost"})]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.reader("gpu:0")() is None
    ((event, fields),) = told
    assert (event, fields["device"]) == ("gpu.unknown", "gpu:0")
    assert "tfpool[gpu]" in str(fields["error"])


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    install(monkeypatch, driver=False)
    assert gpu.reader("gpu:0")() is None
    assert told == [("gpu.unknown", {"device": "gpu:0", "error": "Driver Not Loaded"})]


def test_a_worker_on_cpus_never_looks(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.reader("cpu")() is None
    assert told == []


def test_the_fake_is_like_the_library() -> None:
    nvml = pytest.importorskip("pynvml")
    used = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in used if not hasattr(nvml, name)] == []
    assert issubclass(nvml.NVMLError, Exception)
    assert "used" in dict(nvml.c_nvmlMemory_t._fields_)
    assert {"pid", "usedGpuMemory"} <= set(dict(nvml.c_nvmlProcessInfo_v3_t._fields_))


# -- what a load takes of it ---------------------------------------------------------------------------------------


def test_a_load_is_charged_with_what_it_takes_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([300 * MIB, 500 * MIB])
    monkeypatch.setattr(memory, "host", lambda: Gauge(9, 5, 7))
    meter = memory.Meter(lambda: next(held))
    took = meter.end(meter.begin())
    assert (took.gpu, took.stays, took.peak, took.unique) == (200 * MIB, 200 * MIB, 200 * MIB, 0)


@pytest.mark.parametrize("readings", [(None, 300 * MIB), (300 * MIB, None)])
def test_a_load_that_could_not_be_measured_there(
    monkeypatch: pytest.MonkeyPatch, readings: tuple[int | None, ...]
) -> None:
    held, host = iter(readings), iter([Gauge(9, 5, 7), Gauge(90, 50, 70)])
    monkeypatch.setattr(memory, "host", lambda: next(host))
    monkeypatch.setattr(memory, "high_water", lambda: 100)
    meter = memory.Meter(lambda: next(held))
    took = meter.end(meter.begin())
    assert (took.gpu, took.stays, took.peak) == (None, 45, 91)


def test_what_others_give_back_is_no_load_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([300 * MIB, 200 * MIB])
    meter = memory.Meter(lambda: next(held))
    assert meter.end(meter.begin()).stays == 0


# -- what a budget bounds ------------------------------------------------------------------------------------------


def joined(base: Gauge, gauge: Gauge) -> Link:
    fleet = Fleet((WorkerSettings("w", "gpu:0", memory=1000),))
    link = fleet.links["w"]
    fleet.ready(link, 7, gauge, base, [])
    return link


def test_a_budget_bounds_the_gpu_of_a_worker_that_has_one() -> None:
    link = joined(Gauge(90, 50, 60, 300), Gauge(95, 55, 65, 400))
    assert (link.base, link.unique) == (300, 400)
    link.tells(Gauge(96, 56, 66, None))
    assert link.unique == 400, "once it told nothing"
    link.tells(Gauge(97, 57, 67, 450))
    assert link.unique == 450
    told = worker_row(link, [])["memory"]
    assert told == {"rss": 97, "unique": 57, "pss": 67, "gpu": 450, "base": 300, "budget": 1000, "residue": 0}


def test_a_gpu_that_never_told_leaves_the_hosts_memory_to_the_budget() -> None:
    link = joined(Gauge(90, 50, 60), Gauge(95, 55, 65))
    assert (link.base, link.unique) == (50, 55)
    link.tells(Gauge(96, 56, 66, 450))
    assert link.unique == 56, "bytes of one memory are not compared with those of another"


def test_a_process_in_its_place_starts_anew() -> None:
    link = joined(Gauge(90, 50, 60, 300), Gauge(95, 55, 65, 400))
    fleet = Fleet(())
    fleet.detach(link)
    assert (link.gauge, link.unique, link.base, link.on_gpu) == (Gauge(0, 0, 0), 0, 0, False)


# -- what people see of it -----------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *links: Link) -> list[list[str]]:
    """The words of the table of workers in a terminal."""
    to = Console(width=width)
    monkeypatch.setattr(reading, "console", lambda: to)
    with to.capture() as captured:
        to.print(reading.workers_table([worker_row(link, []) for link in links]))
    return [line.split() for line in captured.get().splitlines() if "─" not in line and line.strip()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_workers_has_gpus_where_there_are_some(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    on_gpu = joined(Gauge(90, 50, 60, 300), Gauge(95, 55, 65, 400))
    on_cpu = Link(WorkerSettings("c", memory=100), gauge=Gauge(9, 5, 7), unique=5)
    head, gpu_line, cpu_line = shown(monkeypatch, width, on_gpu, on_cpu)
    hidden = {"CPUS", "PSS"} if width == 80 else set()
    full = ["WORKER", "PID", "STATE", "DEVICE", "CPUS", "BUSY", "OWN", "PSS", "RESIDUE", "GPU", "USED", "MODELS"]
    assert head == [column for column in full if column not in hidden]
    assert gpu_line[-5:] == ["B", "400", "B", "40%", "0"]
    assert cpu_line[-3:] == ["-", "5%", "0"], "the budget bounds what it has to itself"
    head, line = shown(monkeypatch, width, on_cpu)
    hidden = {"GPU", "CPUS"} if width == 80 else {"GPU"}
    assert head == [column for column in full if column not in hidden]
    assert line[-3:] == ["B", "5%", "0"]
