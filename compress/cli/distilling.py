"""``lightship distill``: a smaller network that learns from a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import checked, file_named, fit_asked, task_asked
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    living_options,
    out_option,
    trust_option,
)
from deploy.cli.options import FILE, json_option, require_place

# Everything but click is imported inside the command: --help answers at once.


@click.command("distill")
@click.argument("teacher", type=FILE)
@data_options
@click.option(
    "--network", help="What learns, as for train.  [default: a copy of TEACHER, which trains on]"
)
@click.option(
    "--weight", type=float, default=0.9, show_default=True, help="Of the teacher, beside the truth."
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="Softens class probabilities."
)
@click.option(
    "--hint",
    "hints",
    multiple=True,
    type=(str, str),
    metavar="LAYER LAYER",
    help="A layer that shall give what a layer of the teacher gives.",
)
@trust_option
@fit_options
@living_options
@out_option("distilled.keras")
@json_option
def distill_command(
    teacher: Path,
    network: str | None,
    weight: float,
    temperature: float,
    hints: tuple[tuple[str, str], ...],
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network that listens to a Keras model, its TEACHER, beside the truth.

    \b
    lightship distill lenet.keras --data mnist-sample --network mlp --out small.keras
    lightship distill lenet.keras --data mnist-sample --network mlp --weight 0.5 --temperature 2
    """
    from compress.artifacts import save_keras
    from compress.networks import load_keras, parse_network
    from compress.prune.distill import Distill
    from compress.steps import keras_step

    require_place("--out", out, teacher, file_named(network), suffixes=[".keras"])
    how = {"weight": weight, "temperature": temperature, "hints": dict(hints)}
    chosen = parse_network(network, trust_code=trust_code) if network else None
    asked = {"network": chosen, "train": fit_asked(options), "distill": how}
    step = checked({"kind": "distill", **asked}, Distill)
    task, seed = task_asked(options, like=teacher), options["seed"]
    original = load_keras(teacher, trust_code=trust_code)
    with (
        resumable(out, step, options) as files,
        watching(out, epochs=step.train.epochs) as watcher,
    ):
        made, _ = keras_step(
            original,
            step,
            task,
            seed=seed,
            teacher=original,
            on_epoch=watcher.epoch_ended,
            files=files,
        )
        about = description(task, step, parent=teacher)
        artifact = save_keras(made, out, about, seed=seed, notes={})
    say_done(out, artifact, as_json=as_json)
