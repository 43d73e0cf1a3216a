"""``python -m deploy``: the device's commands without the rest."""

from deploy.cli import cli

cli(prog_name="python -m deploy")
