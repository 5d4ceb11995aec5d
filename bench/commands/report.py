"""To be written."""

from __future__ import annotations

import click


@click.command("report")
def command() -> None:
    """To be written."""
