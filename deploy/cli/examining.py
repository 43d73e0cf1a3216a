"""``lightship doctor``: what this machine is good for."""

from __future__ import annotations

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    json_option,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what this machine is good for: versions, instruction sets, schemes, what is missing."""
    from deploy.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    for line in found.lines():
        click.echo(line)
