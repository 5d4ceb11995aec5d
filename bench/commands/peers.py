"""To be written."""

from __future__ import annotations

import click


@click.command("peers")
def command() -> None:
    """To be written."""
