from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

import pytest

from tfpool.store import machine
from tfpool.store.machine import toolchain
from tfpool.store.shelf import key_of


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    toolchain.cache_clear()
    yield
    toolchain.cache_clear()


def again() -> machine.Toolchain:
    toolchain.cache_clear()
    return toolchain()


def test_the_same_machine_has_the_same() -> None:
    assert again() == again()


@pytest.mark.parametrize("switch", ["TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "TF_XLA_FLAGS"])
def test_switches_of_tensorflow_make_another(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(switch, raising=False)
    before = again()
    monkeypatch.setenv(switch, "0")
    assert again().cpu != before.cpu
    monkeypatch.setenv(switch, "")
    assert again() == before


def test_another_processor_makes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = again()
    monkeypatch.setattr(machine, "_features", lambda: "x86_64 avx2")
    assert again().cpu != before.cpu


def test_tensorflow_has_several_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "tensorflow":
            return "2.99"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert again().tensorflow == "2.99"


def test_without_tensorflow_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DISTRIBUTIONS", ())
    assert again().tensorflow == ""


def test_each_part_counts_for_the_key() -> None:
    tools = toolchain()
    others = [tools._replace(tensorflow="0"), tools._replace(cpu="0"), tools._replace(compiler=0)]
    keys = {key_of("a" * 64, tools), key_of("b" * 64, tools), *(key_of("a" * 64, other) for other in others)}
    assert len(keys) == 5
