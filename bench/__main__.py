"""``python -m bench``: exit status 0 measured, 1 failed, 2 bad usage."""

from __future__ import annotations

import click

from bench.commands import check, compare, peers, report, run, show


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure tfpool beside its peers and what the machine can do."""


for module in (run, show, report, compare, check, peers):
    main.add_command(module.command)

if __name__ == "__main__":
    main()
