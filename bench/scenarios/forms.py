"""A model from its SavedModel, mapped and inlined: how soon it answers, what it holds, how fast it runs.

Each form has a process of its own for loads and memory, forked from one that has imported TensorFlow, as workers are;
for runs one process has all three, in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from bench.architectures import CACHE, MAKERS
from bench.children import Channel, Child
from bench.errors import ChildFailed
from bench.scenario import Outcome, Scenario, Settings, Sheet, Target

QUICK = ("lstm",)
FORMS = ("plain", "mapped", "inlined")
STEP_SECONDS = 300.0
_LOADS, _QUICK_LOADS = 7, 3
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MANY_SECONDS = 0.4  # a batch that takes longer is not tried
_TURNS = 9
_TURN_RUNS = 3
_TURN_SECONDS = 0.02
_ALLOWED, _ALLOWED_SHARE = 10e6, 0.1

_ANSWER, _REPLICA, _ROWS = "{}: to the first answer, {}", "{}: another replica, {}", "{}: best rows/s, {}"
TARGETS = {
    _ANSWER.format("mobilenet_v2", "mapped"): Target(1 / 15),
    _ANSWER.format("resnet50", "mapped"): Target(1 / 15),
    _ROWS.format("mobilenet_v2", "inlined"): Target(1.15),
    "median model to the first answer, mapped": Target(1 / 8, on="ours"),
    "another replica, mapped, of what it may have": Target(1.0, on="ours"),
    "least best rows/s, inlined, of plain": Target(0.98, on="ours"),
}


def measure(settings: Settings) -> Outcome:
    """Every architecture in turn; without basic_pitch where it is not in the cache."""
    names = [name for name in (QUICK if settings.quick else MAKERS) if name != "basic_pitch" or _has(name)]
    sheet = Sheet({figure: target for figure, target in TARGETS.items() if figure.partition(":")[0] in _told(names)})
    for _ in settings.repeats():
        with Child(serve) as child:
            rows = [_model(settings, sheet, name, child) for name in names]
        sheet.cost("median model to the first answer, mapped", "of plain", statistics.median(r["answer"] for r in rows))
        sheet.cost("another replica, mapped, of what it may have", "", max(r["replica"] for r in rows))
        sheet.rate("least best rows/s, inlined, of plain", "", min(r["rate"] for r in rows))
    return sheet.outcome()


def _told(names: Iterable[str]) -> set[str]:
    return {*names, *(figure for figure in TARGETS if ":" not in figure)}


def _has(name: str) -> bool:
    return os.path.isdir(os.path.join(os.environ.get(CACHE, ""), name))


def _model(settings: Settings, sheet: Sheet, name: str, child: Child) -> dict[str, float]:
    settings.progress.say(f"{name}: making and compiling it")
    store = os.path.join(settings.directory, "store")
    path = os.path.join(_ask(child, "make", settings.directory, name), "1")
    told = _ask(child, "compile_it", store, path)
    loads = _QUICK_LOADS if settings.quick else _LOADS
    held: dict[str, dict[str, float]] = {}
    for form in FORMS:
        settings.progress.say(f"{name}: loading it {form}")
        held[form] = _ask(child, "load", store, path, form, loads)
    settings.progress.say(f"{name}: running it")
    ran = _ask(child, "run", store, path)
    plain = held["plain"]
    sheet.cost(f"{name}: greatest difference", "of its scale", told["difference"], detail={"compiled": told})
    for form in FORMS[1:]:
        ours, detail = held[form], {"loads": held, "runs": ran}
        sheet.cost(_ANSWER.format(name, form), "ms", ours["answer"] * 1e3, plain["answer"] * 1e3, detail)
        sheet.cost(_REPLICA.format(name, form), "MB", ours["another"] / 1e6, plain["another"] / 1e6)
        sheet.cost(f"{name}: one row, {form}", "ms", ran["one"][form] * 1e3, ran["one"]["plain"] * 1e3)
        sheet.rate(_ROWS.format(name, form), "", ran["best"][form], ran["best"]["plain"])
    return {
        "answer": held["mapped"]["answer"] / plain["answer"],
        "replica": held["mapped"]["another"] / (_ALLOWED + _ALLOWED_SHARE * told["weights"]),
        "rate": ran["best"]["inlined"] / ran["best"]["plain"],
    }


# -- children ------------------------------------------------------------------------------------------------------


def serve(channel: Channel) -> None:
    """A child that has imported TensorFlow, and forks one for each order: the name of a function here, and what to
    call it with. Says what the function gave, or the error as a text in a list."""
    from tfpool.supervisor.zygote import import_tensorflow

    import_tensorflow()
    while (order := channel.hear()) is not None:
        channel.say(_apart(*order))


def _apart(name: str, *arguments: Any) -> Any:
    """What a function gave in a process forked for it."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            told = globals()[name](*arguments)
        except Exception as error:
            told = [f"{name}{arguments}: {error!r}"]
        os.write(write, json.dumps(told).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(data) if data else [f"{name}{arguments}: the process died"]


def _ask(child: Child, *order: Any) -> Any:
    told = child.ask(list(order), STEP_SECONDS)
    if isinstance(told, list):
        raise ChildFailed(told[0])
    return told


def make(directory: str, name: str) -> str:
    """Where a model is; it is made if need be."""
    return MAKERS[name](directory)


def compile_it(store: str, path: str) -> dict[str, float]:
    """Compile a model: seconds, bytes, and what the manifest tells."""
    from tfpool.compiler.main import compile_model
    from tfpool.settings import StoreSettings
    from tfpool.store.shelf import Shelf

    _prepare()
    shelf = Shelf(store)
    result = compile_model(path, shelf, 1, StoreSettings(store).budget, say=lambda stage: None)
    entry = shelf.entry(result.key)
    if entry is None or result.reason:
        raise RuntimeError(f"{path} was not compiled: {result.reason}")
    weights = sum(weight.nbytes for weight in entry.manifest.weights)
    told = {"seconds": result.seconds, "gain": entry.manifest.gain, "difference": entry.manifest.difference}
    return {**told, "weights": weights, "disk": shelf.size(result.key)}


def load(store: str, path: str, form: str, loads: int) -> dict[str, float]:
    """Load a form time and again, and ask it at once: seconds (the median), and the bytes that the first and another
    hold."""
    from tfpool.compiler import gauge
    from tfpool.worker import memory

    opened = _opener(store, path, form, _prepare())
    kept, bytes_of, took = [], [], []
    for number in range(loads):
        memory.trim()
        before, begun = memory.unique(), time.monotonic()
        loaded = opened()
        gauge.run_once(_main(loaded))
        took.append(time.monotonic() - begun)
        memory.trim()
        bytes_of.append(memory.unique() - before)
        if number < 2:
            kept.append(loaded)
        else:
            loaded.close()
    return {"answer": statistics.median(took), "first": bytes_of[0], "another": bytes_of[1]}


def run(store: str, path: str) -> dict[str, dict[str, float]]:
    """By form, seconds of one row and rows a second of the best batch."""
    from tfpool.worker import inputs, warmup

    config = _prepare()
    loaded = {form: _opener(store, path, form, config)() for form in FORMS}
    warmup.warm(loaded["plain"], ())
    signatures = {form: _main(each) for form, each in loaded.items()}
    plain = signatures["plain"]
    best: dict[str, float] = dict.fromkeys(FORMS, 0.0)
    sizes = dict.fromkeys(FORMS, 1.0)
    one = dict.fromkeys(FORMS, 0.0)
    for size in _SIZES if plain.spec.batchable else (1,):
        feeds = inputs.make(plain, size, inputs.find_inner(plain, plain.spec.batchable), plain.spec.batchable)
        seconds = _in_turns({form: signature.call for form, signature in signatures.items()}, feeds)
        for form in FORMS:
            if size == 1:
                one[form] = seconds[form]
            if size / seconds[form] > best[form]:
                best[form], sizes[form] = size / seconds[form], size
        if min(seconds.values()) * 2 > _MANY_SECONDS or size / min(seconds.values()) < 0.8 * max(best.values()):
            break
    return {"one": one, "best": best, "sizes": sizes}


def _in_turns(calls: dict[str, Callable[..., Any]], feeds: list[Any]) -> dict[str, float]:
    """Seconds of CPU that a run takes, by form: the median of the turns' quickest."""
    took: dict[str, list[float]] = {form: [] for form in calls}
    for number in range(_TURNS):
        for form in FORMS if number % 2 else FORMS[::-1]:
            runs: list[float] = []
            until = time.monotonic() + _TURN_SECONDS
            while len(runs) < _TURN_RUNS or time.monotonic() < until:
                begun = time.thread_time()
                calls[form](*feeds)
                runs.append(time.thread_time() - begun)
            took[form].append(min(runs))
    return {form: statistics.median(values) for form, values in took.items()}


def _prepare() -> Any:
    """Start TensorFlow; the configuration of workers' sessions."""
    from tfpool.worker import loader

    config = loader.session_config(1, None)
    loader.start_runtime(config)
    return config


def _opener(store: str, path: str, form: str, config: Any) -> Callable[[], Any]:
    from tfpool.settings import Form
    from tfpool.store.shelf import Shelf
    from tfpool.worker import compiled, loader

    shelf = Shelf(store)
    if form == "plain":
        return lambda: loader.load(path, config)

    def opened() -> Any:
        entry = shelf.find(path)
        assert entry is not None
        return compiled.open_entry(shelf, entry, Form(form), config)

    return opened


def _main(loaded: Any) -> Any:
    """The default signature, or the first."""
    named = {signature.spec.name: signature for signature in loaded.signatures}
    return named.get("serving_default", loaded.signatures[0])


SCENARIO = Scenario("forms", "real architectures: SavedModel, mapped and inlined", measure, (), TARGETS)
