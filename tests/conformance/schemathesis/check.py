"""schemathesis, against the document that the gateway serves: ``check.py HTTP_ADDRESS GRPC_ADDRESS MODELS``.

Whatever it makes up, an answer has a status, a type of content and a body that the document knows, and is no bug. Once
with models that are not there, once with one that is. Streams have no end, and the model shall stay loaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SEED = 1
SECONDS = 25
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance"),
)
LEFT_OUT = ("/console/events", "/v2/repository/models/{model}/unload")
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]
"""
A_MODEL = """
[parameters]
"path.model" = "half_plus_two"
"path.version" = "2"
"""


def run(address: str, config: str) -> int:
    """What schemathesis ends with."""
    with tempfile.TemporaryDirectory(prefix="tfpool-schemathesis-") as place:
        path = Path(place, "schemathesis.toml")
        path.write_text(config)
        command = [
            *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(path)),
            *("run", f"http://{address}/openapi.json", "--no-color", "--continue-on-failure", "--no-shrink"),
            *("--seed", str(SEED), "--max-time", str(SECONDS), "--request-timeout", "20", "--max-redirects", "0"),
            *("--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--warnings", "off"),
            *(word for left_out in LEFT_OUT for word in ("--exclude-path", left_out)),
        ]
        done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout)
        return done.returncode


def main(address: str, *_: str) -> int:
    failed = 0
    for what, config in (("models that are not there", CONFIG), ("a model", CONFIG + A_MODEL)):
        status = run(address, config)
        print(f"{what}: {'failed' if status else 'ok'}", flush=True)
        failed += bool(status)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
