from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool import addresses, cpus, settings
from tfpool.addresses import normalize_endpoint
from tfpool.cpus import resolve_workers
from tfpool.errors import InvalidArgument
from tfpool.settings import PoolSettings, WorkerSettings, parse_size

UNITS = {"B": 1, "KB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_sizes_are_exact(number: int, unit: str, blank: str) -> None:
    assert parse_size(f"{number}{blank}{unit}") == number * UNITS[unit]
    assert parse_size(number) == parse_size(str(number)) == number


def test_sizes_take_fractions_and_any_case() -> None:
    assert parse_size("1.5GB") == 1_500_000_000
    assert parse_size("0.5gib") == 1 << 29


@pytest.mark.parametrize("value", ["", "GiB", "-1", -1, True, 1.5, None, "1e9", "8 G", "1..5GB", "2000000TiB", "٣MB"])
def test_other_sizes_are_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match="expected a size"):
        parse_size(value)


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_size(text) <= settings.MAX_SIZE
    except InvalidArgument:
        pass


def test_ipc_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("HOME", "/home/of me")
    assert normalize_endpoint("ipc://a b/pool") == "ipc:///usr/a b/pool"
    assert normalize_endpoint("ipc://~/pool") == "ipc:///home/of me/pool"
    assert normalize_endpoint("ipc:///x/../y") == "ipc:///y"


def test_ipc_paths_are_as_long_as_the_kernel_allows() -> None:
    longest = "/" + "é" * 53
    assert len(os.fsencode(longest)) == 107
    assert normalize_endpoint(f"ipc://{longest}") == f"ipc://{longest}"
    with pytest.raises(InvalidArgument, match="got 108 bytes, expected at most 107"):
        normalize_endpoint(f"ipc://{longest}x")


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:5555", "tcp://[::1]:1", "tcp://*:65535", "tcp://some-host:80"])
def test_tcp_endpoints_stay_as_they_are(text: str) -> None:
    assert normalize_endpoint(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "pool", "ipc://", "ipc://\0", "tcp://host", "tcp://host:0", "tcp://host:65536", "tcp://a b:1", "udp://a:1"],
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected ipc://PATH or tcp://HOST:PORT"):
        normalize_endpoint(text)


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert addresses.default_directory() == "/run/user/7/tfpool"
    assert addresses.default_endpoint() == "ipc:///run/user/7/tfpool/pool"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setenv("TMPDIR", "/else where")
    assert addresses.default_directory() == f"/else where/tfpool-{os.getuid()}"


def test_admin_endpoint_lies_beside_an_ipc_one() -> None:
    assert addresses.admin_endpoint_for("ipc:///x/pool") == "ipc:///x/pool-admin"
    with pytest.raises(InvalidArgument, match="admin endpoint of tcp"):
        addresses.admin_endpoint_for("tcp://127.0.0.1:1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_loopback_is_not_exposed(host: str) -> None:
    addresses.check_exposure(f"tcp://{host}:1", insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "10.0.0.1", "[::]", "some-host", "127.evil"])
def test_other_hosts_need_insecure(host: str) -> None:
    addresses.check_exposure(f"tcp://{host}:1", insecure=True)
    with pytest.raises(InvalidArgument, match="--insecure"):
        addresses.check_exposure(f"tcp://{host}:1", insecure=False)


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 2), (4, 2), (8, 2), (9, 3), (64, 16)])
def test_auto_workers(cpus: int, workers: int) -> None:
    resolved = resolve_workers(PoolSettings(), range(cpus))
    assert [worker.name for worker in resolved] == [f"cpu{i}" for i in range(workers)]


@given(st.integers(1, 70), st.sets(st.integers(0, 300), min_size=1, max_size=70))
def test_workers_divide_the_cpus(count: int, cpus: set[int]) -> None:
    workers = resolve_workers(PoolSettings(workers=count), sorted(cpus))
    sizes = {len(worker.cpus) for worker in workers}
    assert len(workers) == count
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert all(worker.threads == len(worker.cpus) for worker in workers)
    if count <= len(cpus):
        assert [cpu for worker in workers for cpu in worker.cpus] == sorted(cpus)


def test_workers_by_hand_are_completed() -> None:
    by_hand = [
        WorkerSettings("a", cpus=(0, 1), memory=1000),
        WorkerSettings("b", "gpu:0", threads=7),
        WorkerSettings("c"),
    ]
    pool = PoolSettings(threads_per_worker=3, memory_budget=5000)
    assert resolve_workers(pool, range(6), by_hand) == (
        WorkerSettings("a", "cpu", (0, 1), 3, 1000),
        WorkerSettings("b", "gpu:0", (2, 3), 7, None),
        WorkerSettings("c", "cpu", (4, 5), 3, 4000),
    )


def test_a_spent_budget_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="got 1000 bytes"):
        resolve_workers(
            PoolSettings(memory_budget=1000), range(2), [WorkerSettings("a", memory=1000), WorkerSettings("b")]
        )


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_quota_limits_the_cpus(
    files: dict[str, str], usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.usable_cpus(str(tmp_path)) == tuple(range(usable))
