"""Fuzz one target with atheris, guided by what the code does: ``python -m tests.fuzz.run TARGET [libFuzzer options]``.

It runs until a bug is found, or for ``-max_total_time=S`` seconds. It takes ``pip install atheris``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tfpool"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.run TARGET [OPTIONS]; targets: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv[1]]
    with tempfile.TemporaryDirectory(prefix="tfp-seeds-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *sys.argv[2:]], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
