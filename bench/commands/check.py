"""To be written."""

from __future__ import annotations

import click


@click.command("check")
def command() -> None:
    """To be written."""
