"""``lightship low-rank``: two thin layers in the place of a wide one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import checked, distill_asked, fit_asked, task_asked, teacher_asked
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    is_given,
    living_options,
    options_of,
    out_option,
    teacher_options,
    trust_option,
)
from deploy.cli.options import FILE, json_option, require_place
from deploy.errors import UserError

# Everything but click is imported inside the command: --help answers at once.


@click.command("low-rank")
@click.argument("model", type=FILE)
@data_options
@click.option("--kept", type=float, help="Share of each kernel's energy.  [default: 0.9]")
@click.option("--rank", type=int, help="Instead: one rank for all layers.")
@click.option(
    "--speedup", type=float, help="Instead: as much energy as makes it so fast, measured here."
)
@click.option("--threads", type=click.IntRange(min=1), help="With --speedup.  [default: 1]")
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@click.option(
    "--scheme",
    type=click.Choice(["auto", "channel", "spatial"]),
    default="auto",
    show_default=True,
    help="k×k convolutions become k×k and 1×1, or k×1 and 1×k.",
)
@click.option("--multiple-of", type=int, default=1, show_default=True, help="Round ranks up.")
@click.option("--fine-tune", is_flag=True, help="Train afterwards, as the options below say.")
@teacher_options
@trust_option
@fit_options
@living_options
@out_option("low-rank.keras")
@json_option
def low_rank_command(
    model: Path,
    kept: float | None,
    rank: int | None,
    speedup: float | None,
    threads: int | None,
    skip: tuple[str, ...],
    scheme: str,
    multiple_of: int,
    fine_tune: bool,
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Put two thin layers in the place of each dense layer and convolution of a Keras MODEL.

    A layer for which two would be more work stays whole; the record beside the result says why.

    \b
    lightship low-rank lenet.keras --data mnist-sample --kept 0.9 --out thin.keras
    lightship low-rank lenet.keras --data mnist-sample --speedup 1.5 --fine-tune --epochs 3
    """
    from compress.artifacts import save_keras
    from compress.networks import load_keras
    from compress.prune.low_rank import LowRank
    from compress.steps import epochs_of, keras_step, reasons_left_alone

    require_place("--out", out, model, options["teacher"], suffixes=[".keras"])
    asked = {
        "by": _asked_by(kept, rank, speedup, threads),
        "skip": skip,
        "scheme": scheme,
        "multiple_of": multiple_of,
        **_asked_training(options, fine_tune=fine_tune),
    }
    step = checked({"kind": "low_rank", **asked}, LowRank)
    task, seed = task_asked(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    teacher = teacher_asked(options, original, trust_code=trust_code)
    with resumable(out, step, options) as files, watching(out, epochs=epochs_of(step)) as watcher:
        thin, _ = keras_step(
            original,
            step,
            task,
            seed=seed,
            teacher=teacher,
            on_epoch=watcher.epoch_ended,
            files=files,
        )
        about = description(task, step, parent=model, teacher=options["teacher"])
        notes = reasons_left_alone(original, step, thin)
        artifact = save_keras(thin, out, about, seed=seed, notes=notes)
    say_done(out, artifact, as_json=as_json)


def _asked_training(options: dict[str, Any], *, fine_tune: bool) -> dict[str, Any]:
    """Return how it trains afterwards, as a recipe writes it; nothing if it does not.

    Raises:
        UserError: if options say how it trains and ``--fine-tune`` does not say that it does.
    """
    if fine_tune:
        return {"fine_tune": fit_asked(options), **distill_asked(options)}
    for option in (*options_of(fit_options), *options_of(teacher_options)):
        if is_given(option):
            name = "/".join((*option.opts, *option.secondary_opts))
            raise UserError(f"{name}: is for a training, and --fine-tune is not given; give it too")
    return {}


def _asked_by(
    kept: float | None, rank: int | None, speedup: float | None, threads: int | None
) -> dict[str, Any]:
    """Return what decides the ranks, as a recipe writes it."""
    given = [value for value in (kept, rank, speedup) if value is not None]
    if len(given) > 1:
        raise UserError("low-rank: --kept, --rank and --speedup exclude each other; give one")
    if threads is not None and speedup is None:
        raise UserError("--threads: is what --speedup times with; give --speedup too")
    if rank is not None:
        return {"kind": "rank", "rank": rank}
    if speedup is not None:
        return {"kind": "latency", "speedup": speedup, "threads": threads or 1}
    return {"kind": "energy", "kept": 0.9 if kept is None else kept}
