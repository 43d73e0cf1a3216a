"""``lightship prune-channels``, ``prune-blocks`` and ``remove-dead``: less of a network, for real."""

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
from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.


@click.command("prune-channels")
@click.argument("model", type=FILE)
@data_options
@click.option("--keep-ratio", type=float, help="Share of the channels that stay.  [default: 0.5]")
@click.option("--macs", type=float, help="Instead: share of the multiplications.")
@click.option("--parameters", type=float, help="Instead: share of the weights.")
@click.option("--speedup", type=float, help="Instead: how much faster, measured here.")
@click.option("--threads", type=click.IntRange(min=1), help="With --speedup.  [default: 1]")
@click.option("--width", multiple=True, metavar="LAYER=N", help="Channels that one layer keeps.")
@click.option("--keep", multiple=True, metavar="LAYER=RATIO", help="Share that one layer keeps.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@click.option(
    "--criterion",
    type=click.Choice(
        ["l1", "l2", "batch_norm", "taylor", "activation", "geometric_median", "random"]
    ),
    default="taylor",
    show_default=True,
    help="What tells the channels that go.",
)
@click.option("--global", "everywhere", is_flag=True, help="Rank channels of all layers together.")
@click.option("--multiple-of", type=int, default=1, show_default=True, help="Where widths land.")
@click.option("--widths", type=FILE, help="Or on the steps that lightship widths wrote there.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8"]),
    help="With --widths: what the device will compute in.  [default: float32]",
)
@click.option("--rounds", type=int, default=1, show_default=True, help="Prune and train so often.")
@teacher_options
@trust_option
@fit_options
@living_options
@out_option("narrow.keras")
@json_option
def prune_channels_command(
    model: Path,
    skip: tuple[str, ...],
    criterion: str,
    everywhere: bool,
    multiple_of: int,
    rounds: int,
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Take channels out of a Keras MODEL, with all that hangs on them, and fine-tune what is left.

    The result is an ordinary smaller network; the record beside it says what each layer keeps and
    why.

    \b
    lightship prune-channels lenet.keras --data mnist-sample --keep-ratio 0.5 --multiple-of 8
    lightship prune-channels lenet.keras --data mnist-sample --width conv1=8 --width dense1=64
    lightship prune-channels lenet.keras --data mnist-sample --speedup 3 --criterion taylor
    """
    from compress.prune.channels import PruneChannels

    asked = {
        **_asked_widths(options),
        "skip": skip,
        "criterion": criterion,
        "ranking": "global" if everywhere else "local",
        "multiple_of": multiple_of,
        "rounds": rounds,
        "fine_tune": fit_asked(options),
        **distill_asked(options),
    }
    step = checked({"kind": "prune_channels", **asked}, PruneChannels)
    _carry_out(model, step, out, trust_code=trust_code, as_json=as_json, options=options)


@click.command("prune-blocks")
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--block",
    multiple=True,
    metavar="ADD",
    help="The Add that ends it; * matches; may be repeated.",
)
@click.option(
    "--count", type=click.IntRange(min=1), help="Instead: how many, those that are missed least."
)
@teacher_options
@trust_option
@fit_options
@living_options
@out_option("shallow.keras")
@json_option
def prune_blocks_command(
    model: Path,
    block: tuple[str, ...],
    count: int | None,
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Take residual blocks out of a Keras MODEL and fine-tune what is left.

    Of a block stays its shortcut: what it was given. Only blocks can go whose shortcut has no
    layers of its own.

    \b
    lightship prune-blocks resnet.keras --data fashion_mnist --block add1
    lightship prune-blocks resnet.keras --data fashion_mnist --count 1 --out shallow.keras
    """
    from compress.prune.blocks import PruneBlocks

    asked = {"blocks": block, "count": count, "fine_tune": fit_asked(options)}
    step = checked({"kind": "prune_blocks", **asked, **distill_asked(options)}, PruneBlocks)
    _carry_out(model, step, out, trust_code=trust_code, as_json=as_json, options=options)


@click.command("remove-dead")
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--gather-inputs/--no-gather-inputs",
    default=True,
    show_default=True,
    help="Leave out input features that nothing reads.",
)
@trust_option
@out_option("alive.keras")
@json_option
def remove_dead_command(
    model: Path,
    gather_inputs: bool,
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Take channels that add nothing out of a Keras MODEL, proven on samples to change no number.

    Unstructured pruning leaves channels whose weights are all zero, or that only zeros read.

    \b
    lightship prune lenet.keras --data mnist-sample --final-sparsity 0.98 --out sparse.keras
    lightship remove-dead sparse.keras --data mnist-sample --out alive.keras
    """
    from compress.prune.dead import RemoveDead

    step = RemoveDead(gather_inputs=gather_inputs)
    _carry_out(model, step, out, trust_code=trust_code, as_json=as_json, options=options)


def _carry_out(
    model: Path, step: Any, out: Path, *, trust_code: bool, as_json: bool, options: dict[str, Any]
) -> None:
    """Make the smaller network and its record, and say what was written."""
    from compress.artifacts import save_keras
    from compress.networks import load_keras
    from compress.steps import as_carried_out, epochs_of, keras_step, reasons_left_alone

    asked = {"teacher": None, **options}
    require_place("--out", out, model, asked["teacher"], suffixes=[".keras"])
    task, seed = task_asked(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    teacher = teacher_asked(asked, original, trust_code=trust_code)
    epochs = epochs_of(step)
    living = options if epochs else {**options, "restart": False, "tensorboard": None}
    with resumable(out, step, living) as files, watching(out, epochs=epochs) as watcher:
        made, _ = keras_step(
            original,
            step,
            task,
            seed=seed,
            teacher=teacher,
            on_epoch=watcher.epoch_ended,
            files=files,
        )
        done = as_carried_out(step, original, made)
        about = description(task, done, parent=model, teacher=asked["teacher"])
        notes = reasons_left_alone(original, step, made)
        artifact = save_keras(made, out, about, seed=seed, notes=notes)
    if made.count_params() == original.count_params():
        click.echo("nothing was taken out: what is said of each layer tells why", err=True)
    say_done(out, artifact, as_json=as_json)


def _asked_widths(options: dict[str, Any]) -> dict[str, Any]:
    """Take what is said of widths out of the options; return it as a recipe writes it."""
    ratio, widths, precision = (options.pop(n) for n in ("keep_ratio", "widths", "precision"))
    shares = {
        "channels": ratio,
        "macs": options.pop("macs"),
        "parameters": options.pop("parameters"),
    }
    speedup, threads = options.pop("speedup"), options.pop("threads")
    layers = {
        "layer_widths": _by_layer("--width", options.pop("width"), int),
        "per_layer": _by_layer("--keep", options.pop("keep"), float),
    }
    for kind, share in shares.items():
        if share is not None and not 0 < share <= 1:
            option = "--keep-ratio" if kind == "channels" else f"--{kind}"
            raise UserError(f"{option}: must be a share above 0 and at most 1, got {share:g}")
    targets = [
        {"kind": kind, "keep_ratio": share} for kind, share in shares.items() if share is not None
    ]
    if speedup is not None:
        targets.append({"kind": "latency", "speedup": speedup, "threads": threads or 1})
    elif threads is not None:
        raise UserError("--threads: is what --speedup times with; give --speedup too")
    if len(targets) > 1:
        raise UserError(
            "prune-channels: --keep-ratio, --macs, --parameters and --speedup exclude each other; "
            "give one"
        )
    if precision is not None and widths is None:
        raise UserError("--precision: says which times of --widths count; give --widths too")
    if not targets and not any(layers.values()):
        targets = [{"kind": "channels", "keep_ratio": 0.5}]
    table = {"table": str(widths), "precision": precision or "float32"} if widths else None
    return {"target": targets[0] if targets else None, "widths": table, **layers}


def _by_layer(option: str, words: tuple[str, ...], kind: type[Any]) -> dict[str, Any]:
    """Return the numbers of ``LAYER=NUMBER``, by layer."""
    numbers = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if name in numbers:
            raise UserError(f"{option}: {name} is given twice; give one number")
        try:
            numbers[name] = kind(number)
        except ValueError:
            name = ""
        if not name:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{option}: must be LAYER and {what}, as conv1=…, got {word!r}")
        if kind is int and numbers[name] < 1:
            raise UserError(f"{option}: {name} must keep one channel or more, got {number}")
        if kind is float and not 0 < numbers[name] <= 1:
            raise UserError(
                f"{option}: {name} must keep a share above 0 and at most 1, got {number}"
            )
    return numbers
