"""``lightship prune``: fewer weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import (
    checked,
    distill_asked,
    fit_asked,
    task_asked,
    teacher_asked,
)
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    living_options,
    out_option,
    teacher_options,
    trust_option,
)
from deploy.cli.options import (
    FILE,
    json_option,
    require_place,
)
from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.


@click.command()
@click.argument("model", type=FILE)
@data_options
@click.option("--final-sparsity", type=float, help="A fraction.  [default: 0.5]")
@click.option(
    "--budget",
    type=click.Choice(["uniform", "global", "lamp", "sensitivity"]),
    help="How layers share the zeros; all but uniform mean the sparsity of all together.",
)
@click.option(
    "--price-per-bit",
    type=float,
    help="Instead of a sparsity: what a coded bit costs in training, as 0.1; it decides what goes.",
)
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@teacher_options
@trust_option
@fit_options
@living_options
@out_option("pruned.keras")
@json_option
def prune(
    model: Path,
    final_sparsity: float | None,
    budget: str | None,
    price_per_bit: float | None,
    skip: tuple[str, ...],
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Zero the smallest weights of a Keras MODEL while it is fine-tuned.

    \b
    lightship prune lenet.keras --data mnist-sample --final-sparsity 0.9 --out pruned.keras
    lightship prune lenet.keras --data mnist-sample --final-sparsity 0.98 --budget lamp
    lightship prune lenet.keras --data mnist-sample --price-per-bit 0.1 --out coded.keras
    """
    from compress.artifacts import save_keras
    from compress.networks import load_keras
    from compress.prune.entropy import EntropyPrune
    from compress.prune.magnitude import MagnitudePrune
    from compress.steps import keras_step, reasons_left_alone

    require_place("--out", out, model, options["teacher"], suffixes=[".keras"])
    asked: dict[str, Any] = {
        "skip": skip,
        "fine_tune": fit_asked(options),
        **distill_asked(options),
    }
    step: MagnitudePrune | EntropyPrune
    if price_per_bit is None:
        by_size: dict[str, Any] = {
            "final_sparsity": 0.5 if final_sparsity is None else final_sparsity
        }
        by_size |= {"budget": budget or "uniform"}
        step = checked({"kind": "magnitude_prune", **asked, **by_size}, MagnitudePrune)
    elif final_sparsity is not None or budget is not None:
        raise UserError(
            "--price-per-bit decides what goes; leave --final-sparsity and --budget out, or it"
        )
    else:
        by_price = {"kind": "entropy_prune", "price_per_bit": price_per_bit}
        step = checked({**asked, **by_price}, EntropyPrune)
    task, seed = task_asked(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    teacher = teacher_asked(options, original, trust_code=trust_code)
    with (
        resumable(out, step, options) as files,
        watching(out, epochs=step.fine_tune.epochs) as watcher,
    ):
        pruned, _ = keras_step(
            original,
            step,
            task,
            seed=seed,
            teacher=teacher,
            on_epoch=watcher.epoch_ended,
            files=files,
        )
        about = description(task, step, parent=model, teacher=options["teacher"])
        notes = reasons_left_alone(original, step, pruned)
        artifact = save_keras(pruned, out, about, seed=seed, notes=notes)
    say_done(out, artifact, as_json=as_json)
