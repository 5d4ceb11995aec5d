"""Runs the checks of this directory: ``run.py [NAME...]``.

Each is a directory with ``requirements.txt`` and ``check.py HTTP_ADDRESS GRPC_ADDRESS MODELS``, which says what it has
checked, a line each, and ends with another status than 0 if something was not as it should be. Its environment is kept
in the user's cache until its requirements change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tfpool
from tfpool.testing.fronts import await_front, free_address

HERE = Path(__file__).parent
MODELS = ("half_plus_two", "mlp", "examples", "string_length", "dtypes")
_SECONDS = 300


def environment(name: str) -> Path:
    """The interpreter of a check, whose requirements are installed."""
    wanted = HERE / name / "requirements.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tfpool", "conformance")
    made = cache / f"{name}-{digest}"
    python = made / "bin" / "python"
    if not (made / "complete").exists():
        print(f"{name}: installing {', '.join(wanted.read_text().split())}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", made], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted], check=True)
        (made / "complete").touch()
    return python


def main(names: list[str]) -> int:
    known = sorted(path.parent.name for path in HERE.glob("*/check.py"))
    if unknown := set(names) - set(known):
        print(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    interpreters = {name: environment(name) for name in names or known}
    failed = []
    with tempfile.TemporaryDirectory(prefix="tfpool-conformance-") as directory:
        for model in MODELS:
            made = [sys.executable, "-m", "tfpool.testing.models", model, directory]
            subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        paths = {model: f"{directory}/{model}" for model in MODELS}
        http, grpc = free_address(), free_address()
        with tfpool.Pool(models=paths, workers=2, http=http, grpc=grpc, store="off", log_level="error"):
            await_front(http)
            await_front(grpc)
            for name, python in interpreters.items():
                print(f"{name}:", flush=True)
                done = subprocess.run([python, HERE / name / "check.py", http, grpc, directory], timeout=_SECONDS)
                if done.returncode:
                    failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
