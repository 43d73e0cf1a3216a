"""``lightship cluster``: few distinct weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import checked, distill_asked, fit_asked, task_asked, teacher_asked
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    living_options,
    out_option,
    teacher_options,
    trust_option,
)
from deploy.cli.options import FILE, json_option, require_place

# Everything but click is imported inside the command: --help answers at once.


@click.command("cluster")
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--clusters", type=int, default=16, show_default=True, help="Distinct values of a kernel."
)
@click.option(
    "--initial",
    type=click.Choice(["linear", "kmeans_plus_plus", "density"]),
    default="linear",
    show_default=True,
    help="Where k-means begins.",
)
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@click.option(
    "--keep-zeros/--move-zeros",
    default=True,
    show_default=True,
    help="Whether weights that are zero stay so.",
)
@teacher_options
@trust_option
@fit_options
@living_options
@out_option("clustered.keras")
@json_option
def cluster_command(
    model: Path,
    clusters: int,
    initial: str,
    skip: tuple[str, ...],
    keep_zeros: bool,
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Let the weights of each kernel of a Keras MODEL share a few values, and train these.

    BatchNorm is folded into the layers before it. The zeros of a pruned model stay.

    \b
    lightship cluster pruned.keras --data mnist-sample --clusters 16 --out clustered.keras
    lightship cluster pruned.keras --data mnist-sample --teacher lenet.keras --epochs 3
    """
    from compress.artifacts import save_keras
    from compress.networks import load_keras
    from compress.prune.clusters import Cluster
    from compress.steps import keras_step, reasons_left_alone, require_kept

    require_place("--out", out, model, options["teacher"], suffixes=[".keras"])
    asked = {
        "clusters": clusters,
        "initial": initial,
        "skip": skip,
        "keep_zeros": keep_zeros,
        "fine_tune": fit_asked(options),
        **distill_asked(options),
    }
    step = checked({"kind": "cluster", **asked}, Cluster)
    task, seed = task_asked(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    teacher = teacher_asked(options, original, trust_code=trust_code)
    with (
        resumable(out, step, options) as files,
        watching(out, epochs=step.fine_tune.epochs) as watcher,
    ):
        made, _ = keras_step(
            original,
            step,
            task,
            seed=seed,
            teacher=teacher,
            on_epoch=watcher.epoch_ended,
            files=files,
        )
        about = description(task, step, parent=model, teacher=options["teacher"])
        notes = reasons_left_alone(original, step, made)
        artifact = save_keras(made, out, about, seed=seed, notes=notes)
        require_kept(artifact, step, None)
    say_done(out, artifact, as_json=as_json)
