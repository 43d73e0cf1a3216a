"""``lightship prune``: fewer weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import (
    checked,
    fit_asked,
    task_asked,
)
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    living_options,
    out_option,
    trust_option,
)
from deploy.cli.options import (
    FILE,
    json_option,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command()
@click.argument("model", type=FILE)
@data_options
@click.option("--final-sparsity", type=float, default=0.5, show_default=True, help="A fraction.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@trust_option
@fit_options
@living_options
@out_option("pruned.keras")
@json_option
def prune(
    model: Path,
    final_sparsity: float,
    skip: tuple[str, ...],
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Zero the smallest weights of a Keras MODEL while it is fine-tuned.

    \b
    lightship prune lenet.keras --data mnist-sample --final-sparsity 0.9 --out pruned.keras
    """
    from compress.artifacts import require_place, save_keras
    from compress.networks import load_keras
    from compress.prune.magnitude import MagnitudePrune
    from compress.steps import keras_step, reasons_left_alone

    require_place(out, suffix=".keras", other_than=model)
    asked = {"final_sparsity": final_sparsity, "skip": skip, "fine_tune": fit_asked(options)}
    step = checked({"kind": "magnitude_prune", **asked}, MagnitudePrune)
    task, seed = task_asked(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    with (
        resumable(out, step, options) as files,
        watching(out, epochs=step.fine_tune.epochs) as watcher,
    ):
        pruned, _ = keras_step(
            original, step, task, seed=seed, on_epoch=watcher.epoch_ended, files=files
        )
        about = description(task, step, parent=model)
        notes = reasons_left_alone(original, step, pruned)
        artifact = save_keras(pruned, out, about, seed=seed, notes=notes)
    say_done(out, artifact, as_json=as_json)
