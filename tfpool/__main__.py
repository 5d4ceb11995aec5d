"""``python -m tfpool``: the command line."""

from __future__ import annotations

from tfpool.cli.main import main

if __name__ == "__main__":
    main(prog_name="tfpool")
