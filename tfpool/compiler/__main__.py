"""``python -m tfpool.compiler --store DIR PATH``: compile one SavedModel, and tell of it in JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from tfpool.compiler.main import Outcome, compile_model, give_way
from tfpool.settings import StoreSettings, parse_size
from tfpool.store.shelf import Shelf
from tfpool.worker.boot import quiet_stderr


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tfpool.compiler")
    parser.add_argument("path")
    parser.add_argument("--store", required=True)
    parser.add_argument("--budget", type=parse_size, default=StoreSettings("").budget)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--force", action="store_true")
    given = parser.parse_args(arguments)
    give_way()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    lines = os.fdopen(os.dup(1), "w", buffering=1)

    def say(stage: str) -> None:
        lines.write(json.dumps({"stage": stage}) + "\n")

    with quiet_stderr():
        done = compile_model(given.path, Shelf(given.store), given.threads, given.budget, (), given.force, say)
    lines.write(json.dumps({**done._asdict(), "outcome": done.outcome.value}) + "\n")
    return 0 if done.outcome in (Outcome.COMPILED, Outcome.KNOWN) else 1


if __name__ == "__main__":
    sys.exit(main())
