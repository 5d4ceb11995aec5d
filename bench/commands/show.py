"""The scenarios that there are."""

from __future__ import annotations

from collections.abc import Mapping

import click

from bench.scenario import Scenario
from bench.scenarios import SCENARIOS

TITLES: Mapping[int, str] = {
    1: "the null path",
    2: "large tensors",
    3: "models that compute",
    4: "batches and deadlines",
    5: "the scheduler alone",
    6: "many models, little memory",
    7: "popularity that moves",
    8: "neighbours, overload, faults",
    0: "for ourselves",
}


@click.command("list")
def command() -> None:
    """The scenarios, by experiment, with their targets."""
    for experiment, title in TITLES.items():
        click.secho(f"{experiment or '-'}  {title}", bold=True)
        for scenario in SCENARIOS.values():
            if scenario.experiment == experiment:
                _show(scenario)


def _show(scenario: Scenario) -> None:
    click.echo(f"   {scenario.name:10}{scenario.description}")
    for name, target in scenario.targets.items():
        on = "the ratio" if target.on == "ratio" else "our value"
        aim = f", aim {target.aim:g}" if target.aim is not None else ""
        click.echo(f"{'':15}{name}: {target.bound:g} on {on}{aim}")
