"""The compiler's story: load the original, ask it, freeze and optimize it, load what came of it, ask that the same,
measure both, and put it into the store; or put there why it cannot be.

It runs in a process of its own, which gives way to everything that serves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import NamedTuple

from tfpool.compiler import build, gauge, tables
from tfpool.compiler.prove import Probes
from tfpool.errors import FailedPrecondition, ResourceExhausted, TfpoolError
from tfpool.settings import Form
from tfpool.store import identity
from tfpool.store.machine import Toolchain, toolchain
from tfpool.store.manifest import Manifest
from tfpool.store.shelf import Entry, Shelf, key_of
from tfpool.store.sweep import sweep
from tfpool.worker import compiled, loader, memory, restore, warmup
from tfpool.worker.loader import Loaded

_NICE = 19
_LEAST_MEMORY = 512 << 20
_TIMES_DISK = 6  # the original, its constants, and what grappler copies

Say = Callable[[str], None]


class Outcome(Enum):
    """KNOWN: the store had it. REFUSED: it cannot be compiled, and the store knows why. BUSY: another process is at it.
    FAILED: not this time."""

    COMPILED = "compiled"
    KNOWN = "known"
    REFUSED = "refused"
    BUSY = "busy"
    FAILED = "failed"


class Result(NamedTuple):
    """``key`` is the entry's in the store; ``reason`` is for people."""

    outcome: Outcome
    key: str
    reason: str
    seconds: float


def give_way() -> None:
    """Run when nobody else wants to, and be the first to go when memory is short."""
    os.umask(0o077)  # what others may write to is not trusted
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")
    except OSError:
        pass


def compile_model(
    path: str,
    shelf: Shelf,
    threads: int,
    budget: int,
    stateful: Sequence[str] = (),
    force: bool = False,
    say: Say = print,
) -> Result:
    """Have the store hold the SavedModel in ``path``. ``say`` is told of each stage; ``stateful`` are signatures that
    somebody has declared so. Entries beyond ``budget`` bytes leave the store."""
    begun = time.monotonic()

    def result(outcome: Outcome, key: str = "", reason: str = "") -> Result:
        return Result(outcome, key, reason, round(time.monotonic() - begun, 3))

    tools, key = toolchain(), ""
    try:
        shelf.prepare()
        say("content")
        mark, content = identity.content(path)
        key = key_of(content, tools)
        with shelf.lock(key) as mine:
            if not mine:
                return result(Outcome.BUSY, key, "another process compiles it")
            known = None if force else _known(shelf, key)
            if known is not None:
                shelf.note(mark.stamp, content)
                shelf.touch(key)
                return result(Outcome.REFUSED if known.manifest.refusal else Outcome.KNOWN, key, known.manifest.refusal)
            _check_memory(mark.nbytes)
            about = _about(path, content, tools)
            with shelf.draft() as draft:
                try:
                    manifest = _compile(path, shelf, draft, about, threads, stateful, say)
                except FailedPrecondition as error:
                    manifest = replace(about, refusal=error.message.replace(f"{draft}: ", "compiled, it "))
                    for name in os.listdir(draft):
                        os.unlink(os.path.join(draft, name))
                if identity.mark(path).stamp != mark.stamp:
                    return result(Outcome.FAILED, key, "its files have changed meanwhile")
                say("publish")
                shelf.publish(draft, manifest, mark.stamp)
        sweep(shelf, budget, keep=key)
    except TfpoolError as error:
        return result(Outcome.FAILED, key, error.message)
    except OSError as error:
        return result(Outcome.FAILED, key, f"{error.filename or shelf.directory}: {error.strerror}")
    return result(Outcome.REFUSED if manifest.refusal else Outcome.COMPILED, key, manifest.refusal)


def _known(shelf: Shelf, key: str) -> Entry | None:
    """What the store has, if it is sound."""
    entry = shelf.entry(key)
    if entry is not None:
        try:
            shelf.verify(entry)
            return entry
        except TfpoolError:
            shelf.remove(key)
    return None


def _check_memory(nbytes: int) -> None:
    import psutil

    needs, free = _LEAST_MEMORY + _TIMES_DISK * nbytes, psutil.virtual_memory().available
    if free < needs:
        raise ResourceExhausted(f"compiling it may take {needs >> 20} MiB of memory, and {free >> 20} MiB are free")


def _about(path: str, content: str, tools: Toolchain) -> Manifest:
    return Manifest(content, os.path.abspath(path), *tools, created=time.time())


def _compile(
    path: str, shelf: Shelf, draft: str, about: Manifest, threads: int, stateful: Sequence[str], say: Say
) -> Manifest:
    """Raises FailedPrecondition where the model is to be served from its SavedModel."""
    config = loader.session_config(threads, None)
    loader.start_runtime(config)
    meter = memory.Meter()
    say("load")
    original, plain = gauge.weigh(meter, partial(loader.load, path, config, stateful), 0)
    warmup.warm(original, ())
    mutating = [s.spec.name for s in original.signatures if s.spec.mutates]
    if mutating:
        raise FailedPrecondition(f"signature {mutating[0]!r} changes variables, or is declared stateful")
    meta = restore.read_meta_graph(path, loader.TAGS)
    held = build.tables_of(original, meta)
    probes = Probes(original, path, tables.words(held))
    manifest = build.build(draft, original, meta, held, about, say)
    entry = Entry("", draft, manifest)
    say("prove")
    forms: dict[Form, Loaded] = {}
    costs, difference = {Form.PLAIN: gauge.timed(plain, original, threads)}, 0.0
    for form in gauge.FORMS:
        opened = partial(compiled.open_entry, shelf, entry, form, config)
        proven = opened()
        difference = max(difference, probes.compare(proven))
        proven.close()
        say("measure")
        forms[form], cost = gauge.weigh(meter, opened, manifest.shared if form is Form.MAPPED else 0)
        costs[form] = gauge.timed(cost, forms[form], threads)
    original.close()
    ratio = gauge.gain(forms[Form.MAPPED], forms[Form.INLINED], costs[Form.MAPPED].curves, threads)
    return replace(manifest, costs=costs, gain=round(ratio, 4), difference=difference)
