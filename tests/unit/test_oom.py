from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tfpool.supervisor import oom

V1 = """12:cpu,cpuacct:/a
4:memory:/docker/0123
1:name=systemd:/a
0::/
"""
V2 = "0::/user.slice/app.scope\n"
EVENTS = """low 0
high 0
max 12
oom 3
oom_kill 2
oom_group_kill 0
"""
CONTROL = """oom_kill_disable 0
under_oom 0
oom_kill 7
"""


def test_where_the_count_may_be() -> None:
    v2 = "/sys/fs/cgroup"
    assert oom.counters(V2) == [f"{v2}/user.slice/app.scope/memory.events", f"{v2}/memory.events"]
    assert oom.counters("0::/\n") == [f"{v2}/memory.events"]
    v1 = "/sys/fs/cgroup/memory"
    assert oom.counters(V1) == [
        f"{v1}/docker/0123/memory.oom_control",
        f"{v1}/memory.oom_control",
        f"{v2}/memory.events",
    ]
    assert oom.counters("") == oom.counters("garbage\n:\n") == []


@pytest.mark.parametrize(
    ("text", "count"), [(EVENTS, 2), (CONTROL, 7), ("oom_kill_disable 1\n", None), ("oom_kill x\n", None), ("", None)]
)
def test_the_count(text: str, count: int | None) -> None:
    assert oom.kills(text) == count


def test_each_kill_is_blamed_for_one_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    monkeypatch.setattr(oom, "counters", lambda text: ["/nowhere", str(counter)])
    counter.write_text("oom_kill 5\n")
    killer = oom.Killer()
    before = killer.count()
    assert before == 5
    killed = -signal.SIGKILL
    assert not killer.took(killed, before), "somebody else killed it"
    counter.write_text("oom_kill 7\n")
    assert not killer.took(1, before), "it ended by itself"
    assert [killer.took(killed, before) for _ in range(3)] == [True, True, False]
    counter.write_text("oom_kill 8\n")
    assert not killer.took(killed, 8), "that was before it was started"
    assert killer.took(killed, 7)
    counter.unlink()
    assert not killer.took(killed, 0)


def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "counters", lambda text: [])
    assert oom.Killer().count() == 0
    assert not oom.Killer().took(-signal.SIGKILL, 0)
