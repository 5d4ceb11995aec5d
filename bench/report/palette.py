"""How each system and each role looks, in every plot of a report the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle

from bench.points import CLIENT

OURS = "tfpool"
REFERENCES = ("TensorFlow in process", "raw zmq echo")
INK, FAINT, GOOD, BAD = "#1f2328", "#d5d9de", "#1a7f4b", "#c2321d"
REFERENCE_GREYS = ("#6e7681", "#9aa1a9")

_OURS = ("#0050d8", "#00a0e9", "#4b2fbf")  # by itself, over HTTP, any other way
_PEERS = {  # after Paul Tol's muted scheme, which the colour-blind tell apart
    "Triton": "#44aa99",
    "mosec": "#cc6677",
    "Ray Serve": "#aa9a2c",
    "LitServe": "#882255",
    "BentoML": "#117733",
    "MLServer": "#b98cc4",
}
_OTHERS = ("#332288", "#cc6677", "#8c6d46", "#44aa99", "#aa9a2c", "#882255", "#6b8fb3", "#117733")
_MARKERS = {"Triton": "s", "mosec": "D", "Ray Serve": "^", "LitServe": "v", "BentoML": "P", "MLServer": "X"}
_OTHER_MARKERS = ("<", "h", ">", "p", "d", "*", "1", "8")
_ROLES = {
    "broker": "#0050d8",
    "worker": "#66a3ff",
    "gateway": "#44aa99",
    "zygote": "#d98c21",
    "supervisor": "#8c6d46",
    "server": "#8d7fb0",
    "echo": REFERENCE_GREYS[0],
    CLIENT: "#c4c9cf",
}


@dataclass(frozen=True)
class Look:
    """A line's or a bar's colour, marker, dashes, and width in points."""

    color: str
    marker: str
    dashes: str
    width: float


def looks(systems: Iterable[str]) -> Mapping[str, Look]:
    """Of each system: ours strong, what the machine can do grey and dashed, peers between."""
    found: dict[str, Look] = {}
    names = list(dict.fromkeys(systems))
    colors, markers = cycle(_OTHERS), cycle(_OTHER_MARKERS)
    others = iter(_OURS[2:] * len(names))
    for name in sorted(names):
        if name == OURS:
            found[name] = Look(_OURS[0], "o", "-", 2.8)
        elif name.startswith(OURS):
            found[name] = Look(_OURS[1] if "HTTP" in name else next(others), "o", "-", 2.2)
        elif name in REFERENCES:
            found[name] = Look(REFERENCE_GREYS[REFERENCES.index(name)], "", "--", 1.4)
        elif name in _PEERS:
            found[name] = Look(_PEERS[name], _MARKERS[name], "-", 1.4)
        else:
            found[name] = Look(next(colors), next(markers), "-", 1.4)
    return found


def role_colors(roles: Iterable[str]) -> Mapping[str, str]:
    """Of each role; who makes the load is light grey."""
    others = cycle(_OTHERS)
    return {role: _ROLES.get(role) or next(others) for role in dict.fromkeys(roles)}
