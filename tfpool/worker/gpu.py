"""What this process holds on its GPU, as NVIDIA's management library tells it (``pip install tfpool[gpu]``).

A worker sees one GPU, or one instance of a divided one; :func:`visible` says which. Nothing here is needed to compute
on it: where the library, the driver or a permission is missing, its memory is not known, and the log says so once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from tfpool.telemetry import log

NONE = "-1"
_log = log.get("worker")


def visible(device: str, mask: str | None) -> str:
    """``CUDA_VISIBLE_DEVICES`` for a worker on ``cpu`` or ``gpu:N``: the Nth of those that the pool's own ``mask``
    leaves, which may be numbers, UUIDs or names of instances."""
    if device == "cpu":
        return NONE
    number = int(device.removeprefix("gpu:"))
    if mask is None:
        return str(number)
    left = [name.strip() for name in mask.split(",")]
    return left[number] if number < len(left) and left[number] else NONE


def reader(device: str) -> Callable[[], int | None]:
    """What tells the bytes that this process holds on its GPU, and None where nothing does.

    To be called once :func:`visible` is in the environment, and before CUDA starts: what is in use by then is others'.
    """
    if device == "cpu":
        return _unknown
    name = os.environ.get("CUDA_VISIBLE_DEVICES", NONE)
    try:
        nvml = import_module("pynvml")
    except ImportError:
        _log.warning("gpu.unknown", device=device, error="nvidia-ml-py is not installed (pip install tfpool[gpu])")
        return _unknown
    try:
        nvml.nvmlInit()
        handle = _find(nvml, name)
        if handle is None:
            _log.warning("gpu.unknown", device=device, error=f"the driver has no GPU {name!r}")
            return _unknown
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        _log.info("gpu.found", device=device, uuid=nvml.nvmlDeviceGetUUID(handle), bytes=memory.total)
        return _Reader(nvml, handle, memory.used)
    except nvml.NVMLError as error:
        _log.warning("gpu.unknown", device=device, error=str(error))
        return _unknown


def _unknown() -> None:
    return None


class _Reader:
    """Reads one GPU. ``before`` are the bytes in use on it before this process came."""

    def __init__(self, nvml: Any, handle: Any, before: int) -> None:
        self._nvml = nvml
        self._handle = handle
        self._before = before
        self._listed = False
        self._told: set[str] = set()

    def __call__(self) -> int | None:
        """Bytes of this process; where the driver does not tell these (it does not know the process ids of some
        containers), all that have come into use since it started. None where it tells neither."""
        own = self._own()
        if own is not None:
            self._listed = True
            return own
        if self._listed:
            self._say("gpu.unknown", error="the driver does not list this process any more")
            return None
        try:
            used: int = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        except self._nvml.NVMLError as error:
            self._say("gpu.unknown", error=str(error))
            return None
        self._say("gpu.unlisted", note="the driver does not tell what this process holds; others are counted too")
        return max(0, used - self._before)

    def _own(self) -> int | None:
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
        except self._nvml.NVMLError:
            return None
        held = [one.usedGpuMemory for one in processes if one.pid == os.getpid()]
        return sum(held) if held and None not in held else None

    def _say(self, event: str, **fields: str) -> None:
        if event not in self._told:
            self._told.add(event)
            _log.warning(event, **fields)


def _find(nvml: Any, name: str) -> Any:
    """The handle of what ``CUDA_VISIBLE_DEVICES`` names, or None. Raises NVMLError.

    CUDA takes the first instance of a GPU that is divided, and the start of a UUID for the whole.
    """
    if name.isdecimal():
        whole = nvml.nvmlDeviceGetHandleByIndex(int(name))
        return next(_instances(nvml, whole), whole)
    if name.startswith("MIG-GPU-"):  # as older drivers name instances: MIG-GPU-<UUID>/<GPU instance>/<compute instance>
        uuid, *numbers = name.removeprefix("MIG-").split("/")
        parts = _instances(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        return next((part for part in parts if _numbers(nvml, part) == numbers), None)
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    if name.startswith("GPU-"):
        every = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        whole = next((one for one in every if nvml.nvmlDeviceGetUUID(one).startswith(name)), None)
        return whole if whole is None else next(_instances(nvml, whole), whole)
    return None


def _instances(nvml: Any, whole: Any) -> Iterator[Any]:
    """The instances of a divided GPU, in CUDA's order; none of a whole one."""
    with suppress(nvml.NVMLError):
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
            with suppress(nvml.NVMLError):  # that place is free
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, number)


def _numbers(nvml: Any, part: Any) -> list[str]:
    return [str(nvml.nvmlDeviceGetGpuInstanceId(part)), str(nvml.nvmlDeviceGetComputeInstanceId(part))]
