"""What an inference request asks for, whichever way it was written. Pure.

Everything that a request says beside its tensors' bytes makes a :class:`Plan`. Clients say the same again and again,
so a plan is made once, is kept by the words it was made of, and keeps in turn what answers to it begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfpool.client.examples import Target
from tfpool.errors import InvalidArgument, NotFound, Unimplemented
from tfpool.gateway.oip.tensors import Slot
from tfpool.wire.messages import MAX_BUDGET_MS
from tfpool.wire.tensors import Array

INFER = "infer"
TRACE = "traceparent"
LOWEST_PRIORITY = -100
_KEPT_ANSWERS = 8
_MAX_VERSION = 1 << 63
_MAX_TIMEOUT = MAX_BUDGET_MS / 1000 - 1


@dataclass(frozen=True, slots=True)
class Options:
    """The parameters of a request. ``timeout`` is in seconds, ``priority`` the pool's own; ``binary`` is how outputs
    travel over HTTP where they do not say."""

    priority: int = 0
    timeout: float | None = None
    signature: str = ""
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for. ``top``: the classes with the highest values instead of the values (0: not so)."""

    name: str
    binary: bool
    top: int = 0


@dataclass(slots=True)
class Plan:
    """``raw`` are the inputs whose bytes lie elsewhere, ``given`` those that are here; ``wanted`` is empty where all
    outputs are. ``answers`` is what answers begin with, by what the outputs look like."""

    options: Options
    raw: tuple[Slot, ...]
    given: dict[str, Array]
    wanted: tuple[Wanted, ...]
    id: str = ""
    answers: dict[Any, Any] = field(default_factory=dict)

    @property
    def lasting(self) -> bool:
        """Whether other requests may say the very same."""
        return not (self.given or self.id)

    def look(self, version: int, outputs: Mapping[str, Array]) -> tuple[tuple[Any, ...], list[Any]]:
        """What the outputs of a version look like, and those that are wanted; one that is not there is passed over."""
        wanted, have = self.wanted, outputs
        arrays = [have[one.name] for one in wanted if one.name in have] if wanted else list(have.values())
        return (version, *have, *[(array.dtype.num, array.shape) for array in arrays]), arrays

    def keep(self, look: object, answer: object) -> None:
        """Keep what answers begin with whose outputs look like this."""
        if len(self.answers) >= _KEPT_ANSWERS:
            self.answers.clear()
        self.answers[look] = answer

    def chosen(self, outputs: Mapping[str, Array]) -> list[tuple[Wanted, Array]]:
        """The outputs that are wanted, in the order they were asked for. Raises InvalidArgument."""
        if not self.wanted:
            return [(Wanted(name, self.options.binary), array) for name, array in outputs.items()]
        missing = [one.name for one in self.wanted if one.name not in outputs]
        if missing:
            raise InvalidArgument(f"there is no output {missing[0]!r}; the outputs are {', '.join(outputs)}")
        return [(one, outputs[one.name]) for one in self.wanted]


def plan(
    options: Options,
    raw: Sequence[Slot],
    given: Mapping[str, Array],
    wanted: Sequence[Wanted],
    id: str = "",
) -> Plan:
    """A checked plan. Raises InvalidArgument for no input, and for names that come twice."""
    inputs = [*(one.name for one in raw), *given]
    if not inputs:
        raise InvalidArgument("inputs: got none, expected one or more")
    for what, names in (("input", inputs), ("output", [one.name for one in wanted])):
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise InvalidArgument(f"{what} {twice!r} comes twice")
    return Plan(options, tuple(raw), dict(given), tuple(wanted), id)


def target(model: str, version: str | None, signature: str = "") -> Target:
    """Which servable is meant: ``version`` is a number, a label, or nothing (the newest). Raises NotFound."""
    if not version:
        return Target(model, 0, "", signature)
    if not (version.isascii() and version.isdigit()):
        return Target(model, 0, version, signature)
    if len(version) > 19 or not 0 < int(version) < _MAX_VERSION:
        raise NotFound(f"model {model!r} has no version {version[:40]}")
    return Target(model, int(version), "", signature)


# -- parameters ------------------------------------------------------------------------------------------------------


def options(parameters: Mapping[str, object]) -> Options:
    """What the parameters of a request say. Those that are not ours are passed over, ``sequence_id`` and its kin among
    them, as no model here keeps anything from one request to the next for them.

    ``priority``: 1 is the highest, and goes before requests that say nothing; these go beside those that say 2, and 3
    and more go after them. ``timeout`` is in microseconds, 0 for none. Raises InvalidArgument.
    """
    priority = _whole(parameters, "priority")
    timeout = _whole(parameters, "timeout")
    signature = parameters.get("signature", "")
    if not isinstance(signature, str):
        raise InvalidArgument(f"parameter signature: got {type(signature).__name__}, expected text")
    return Options(
        priority=max(2 - priority, LOWEST_PRIORITY) if priority else 0,
        timeout=min(timeout * 1e-6, _MAX_TIMEOUT) if timeout else None,
        signature=signature,
        binary=_switch(parameters, "binary_data_output", False),
    )


def wanted(name: object, parameters: Mapping[str, object], binary: bool) -> Wanted:
    """An output that is asked for; ``binary`` counts where it does not say. Raises InvalidArgument, Unimplemented."""
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"an output's name: got {str(name)[:80]!r}, expected text")
    refuse_shared_memory(f"output {name!r}", parameters)
    return Wanted(name, _switch(parameters, "binary_data", binary), _whole(parameters, "classification"))


def refuse_shared_memory(what: str, parameters: Mapping[str, object]) -> None:
    """Raises Unimplemented for a tensor that lies in shared memory."""
    if "shared_memory_region" in parameters:
        raise Unimplemented(f"{what}: this server reads no shared memory of its clients; send the tensor itself")


def _whole(parameters: Mapping[str, object], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidArgument(f"parameter {name}: got {str(value)[:40]!r}, expected a whole number from 0")
    return value


def _switch(parameters: Mapping[str, object], name: str, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter {name}: got {str(value)[:40]!r}, expected true or false")
    return value
