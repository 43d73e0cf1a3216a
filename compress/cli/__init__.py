"""The command ``lightship``: parse, one call, one line."""

from __future__ import annotations

import click

import deploy.cli
from compress.cli.channels import (
    prune_blocks_command,
    prune_channels_command,
    remove_dead_command,
)
from compress.cli.clustering import cluster_command
from compress.cli.distilling import distill_command
from compress.cli.experiments import demo, run
from compress.cli.exporting import export
from compress.cli.low_rank import low_rank_command
from compress.cli.pruning import prune
from compress.cli.quantizing import quantize, sensitivity_command
from compress.cli.searching import tune, validate
from compress.cli.training import evalset, find_learning_rate, train
from compress.quiet import quiet_tensorflow
from deploy.cli.command import Commands

_EXAMPLES = """\b
From data to a report in one command:
    lightship demo
    lightship run lenet_5 --out runs/lenet_5
One step at a time, on files:
    lightship train --data mnist-sample --network lenet_5 --out lenet.keras
    lightship prune lenet.keras --data mnist-sample --out pruned.keras
    lightship export pruned.keras --data mnist-sample --out pruned.onnx
    lightship quantize pruned.onnx --data mnist-sample --out pruned-int8.onnx
    lightship bench pruned.onnx pruned-int8.onnx
What a device gets, and what it does with it:
    lightship bundle runs/demo -o model.lship
    lightship selftest model.lship
    lightship predict model.lship digit.png
"""


@click.group(cls=Commands, epilog=_EXAMPLES, context_settings={"max_content_width": 100})
@click.version_option(package_name="lightship")
def cli() -> None:
    """Make a trained network small and fast, prove what that cost, and ship it.

    Exit codes: 0 done, 2 a mistake of yours in one line, 1 a bug of ours with its traceback.
    """


for _command in (
    demo,
    run,
    validate,
    tune,
    train,
    find_learning_rate,
    prune,
    prune_channels_command,
    prune_blocks_command,
    remove_dead_command,
    low_rank_command,
    cluster_command,
    distill_command,
    export,
    quantize,
    sensitivity_command,
    evalset,
    *deploy.cli.cli.commands.values(),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the entry point of ``lightship``."""
    quiet_tensorflow()
    cli(prog_name="lightship")
