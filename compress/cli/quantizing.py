"""``lightship quantize`` and ``lightship sensitivity``: fewer bits."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.asked import (
    builtins_of,
    checked,
    task_asked,
)
from compress.cli.one_step import description, say_done, watching
from compress.cli.options import (
    calibration_option,
    data_options,
    out_option,
)
from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    json_option,
    require_harmless_models,
    require_picture,
    require_place,
    trust_model_option,
)
from deploy.errors import UserError

_OPTIONS = {"exclude_types": "--exclude-type", "per_channel": "--per-channel/--per-tensor"}
"""Options that are not called as what they set."""

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.quantize.sensitivity import LayerSensitivity


@click.command()
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--kind",
    type=click.Choice(["static", "mixed", "dynamic", "float16", "weight-only", "layout"]),
    default="static",
    show_default=True,
    help="What becomes smaller: weights and activations, both where a timing shows that it pays, "
    "or the weights alone. With layout nothing does: an int8 MODEL is written so that it runs faster.",
)
@calibration_option
@click.option(
    "--percentile",
    type=float,
    help="For static and mixed with --calibration percentile: of the values, what stays in range.",
)
@click.option(
    "--per-channel/--per-tensor",
    "per_channel",
    default=None,
    help="For static and dynamic: one scale for each output of a layer, or one for all.  "
    "[default: per-channel]",
)
@click.option(
    "--weight-bits",
    type=click.IntRange(2, 8),
    help="For static and weight-only: bits' worth of values that a weight takes.  [default: 8]",
)
@click.option(
    "--correct",
    multiple=True,
    type=click.Choice(["equalise", "rounding", "bias"]),
    help="For static and weight-only: win back on calibration samples what rounding loses.",
)
@click.option(
    "--convolutions", is_flag=True, help="For dynamic: convolutions too, which is mostly slower."
)
@click.option(
    "--max-drop-points",
    type=float,
    help="For mixed: largest loss of the metric on validation samples, in points; of an error in per "
    "cent.  [default: 0.3]",
)
@click.option(
    "--float-storage",
    type=click.Choice(["float32", "float16", "int8"]),
    help="For mixed: what layers in float keep their weights as.  [default: float32]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="For mixed and layout: those of the device.  [default: 1]",
)
@click.option(
    "--columns",
    multiple=True,
    metavar="LAYER=N",
    help="For layout: let LAYER compute N columns at once, and time nothing.",
)
@click.option("--plot", type=FILE, help="For mixed: draw what was tried, as .svg, .png or .pdf.")
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    help="For static: the device.  [default: this machine]",
)
@click.option("--exclude", multiple=True, metavar="LAYER", help="For static: leave it in float.")
@click.option(
    "--exclude-type", multiple=True, metavar="TYPE", help="For static: Conv, DepthwiseConv, Add …"
)
@click.option(
    "--exclusion",
    type=click.Choice(["session-option", "structural"]),
    help="For static and mixed: what keeps float layers in float, whoever opens the file.",
)
@trust_model_option
@out_option("quantized.onnx")
@json_option
def quantize(
    model: Path,
    kind: str,
    calibration: str | None,
    percentile: float | None,
    per_channel: bool | None,
    weight_bits: int | None,
    correct: tuple[str, ...],
    convolutions: bool,
    max_drop_points: float | None,
    float_storage: str | None,
    threads: int | None,
    columns: tuple[str, ...],
    plot: Path | None,
    target: str | None,
    exclude: tuple[str, ...],
    exclude_type: tuple[str, ...],
    exclusion: str | None,
    trust_model: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Store an ONNX MODEL in fewer bits, and compute in them where that pays.

    With --kind mixed, layers become int8 or stay float by what is measured here: minutes in which
    nothing else should run. How it was found is written to OUT.search.json. --kind layout times an
    int8 MODEL here too, for seconds.

    \b
    lightship quantize pruned.onnx --data mnist-sample --out pruned-int8.onnx
    lightship quantize pruned.onnx --data mnist-sample --kind mixed --out pruned-mixed.onnx
    lightship quantize pruned-int8.onnx --data mnist-sample --kind layout --out faster-int8.onnx
    lightship quantize pruned.onnx --data mnist-sample --weight-bits 4 --correct rounding --out int4.onnx
    """
    from compress.artifacts import replace_file, save_onnx
    from compress.export.metadata import load_onnx
    from compress.quantize.lint import lint_calibration
    from compress.quantize.plots import plot_search
    from compress.steps import OnnxStep, check_model, onnx_step, reasons_left_alone
    from deploy.record import SessionOptions, notes_beside

    require_place("--out", out, model, suffixes=[".onnx"])
    asked = {
        "calibration": calibration,
        "percentile": percentile,
        "per_channel": per_channel,
        "weight_bits": weight_bits,
        "correct": correct or None,
        "convolutions": convolutions or None,
        "max_drop_points": max_drop_points,
        "float_storage": float_storage,
        "threads": threads,
        "columns": dict(_columns_asked(one) for one in columns) or None,
        "target": target,
        "exclude": exclude or None,
        "exclude_types": exclude_type or None,
        "exclusion": exclusion and exclusion.replace("-", "_"),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    names = {"float16": "float16", "layout": "int8_layout"}
    name = names.get(kind, f"quantize_{kind.replace('-', '_')}")
    _refuse_options_of_other_kinds(given, kind, name)
    step = checked({"kind": name, **given}, OnnxStep)
    if plot is not None and kind != "mixed":
        raise UserError(f"--plot: there is a search to draw with --kind mixed, got {kind}")
    require_picture("--plot", plot, model, out)
    require_harmless_models(trust_model, SessionOptions(threads=threads or 1), model)
    original = load_onnx(model)
    check_model(original, step)
    task, seed = task_asked(options, like=model), options["seed"]
    for finding in lint_calibration(original, task) if kind in {"static", "mixed"} else ():
        click.echo(f"warning: {finding}", err=True)
    with watching(out, epochs=0) if kind in {"mixed", "layout"} else nullcontext() as watcher:
        hears = watcher.search_advanced if watcher else None
        made = onnx_step(original, step, task, seed=seed, on_search=hears)
    if calibration == "auto":
        click.echo(f"calibration: {builtins_of(made.step)['calibration']}", err=True)
    about = description(task, made.step, parent=model)
    notes = reasons_left_alone(original, made.step, made.model)
    if kind == "layout":
        notes = notes_beside(model) | notes
        _say_layout(original, made.model)
    artifact = save_onnx(made.model, out, about, seed=seed, notes=notes)
    if made.search is not None:
        import msgspec

        search = msgspec.json.format(msgspec.json.encode(made.search))
        place = out.with_name(f"{out.name}.search.json")
        replace_file(place, lambda aside: aside.write_bytes(search))
        chosen = made.search.chosen
        click.echo(
            f"{len(chosen.floats)} of {len(made.search.layers)} layers stay in float"
            f"{': ' if chosen.floats else ''}{', '.join(chosen.floats)}; {chosen.speedup:.2f}× "
            f"[{chosen.low:.2f}, {chosen.high:.2f}] the speed of float for {chosen.drop_points:+.2f} "
            f"points of the metric lost on validation samples; {place} says what was tried",
            err=True,
        )
        if plot is not None:
            replace_file(plot, partial(plot_search, made.search))
    say_done(out, artifact, as_json=as_json)


def _refuse_options_of_other_kinds(given: Collection[str], kind: str, name: str) -> None:
    """Raise a UserError that names the first option which a kind of quantization does not have."""
    import typing

    import msgspec

    from compress.steps import OnnxStep

    (step,) = (one for one in typing.get_args(OnnxStep) if one.__struct_config__.tag == name)

    def option(field: str) -> str:
        return _OPTIONS.get(field, f"--{field.replace('_', '-')}")

    known = [field.name for field in msgspec.structs.fields(step)]
    for field in given:
        if field not in known:
            raise UserError(
                f"{option(field)}: is not for --kind {kind}, which takes "
                f"{', '.join(map(option, known)) or 'no settings'}"
            )


def _columns_asked(asked: str) -> tuple[str, int]:
    """Return the layer and the number of ``LAYER=N``."""
    layer, equals, count = asked.rpartition("=")
    if not (layer and equals and count.isdecimal() and int(count) >= 2):
        raise UserError(
            f"--columns: must be LAYER=N with N of 2 or more, as conv1=4, got {asked!r}"
        )
    return layer, int(count)


def _say_layout(original: Any, made: Any) -> None:
    """Say what was written otherwise, on stderr."""
    from compress.quantize.channels_last import transposes_of
    from compress.quantize.width_to_depth import columns_of, columns_that_fit

    columns = {name: n for name, n in columns_of(made).items() if name not in columns_of(original)}
    for name, count in columns.items():
        click.echo(f"{name} computes {count} columns at once", err=True)
    if not columns:
        none = "gains by computing" if columns_that_fit(original) else "could compute"
        click.echo(f"no convolution of few channels {none} several columns at once", err=True)
    before, after = (transposes_of(one) for one in (original, made))
    click.echo(f"transposes when it runs: {after}, {before} before", err=True)


@click.command("sensitivity")
@click.argument("model", type=FILE)
@data_options
@calibration_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Validation samples to look at.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--plot", type=FILE, help="Draw it, as .svg, .png or .pdf.")
@trust_model_option
@json_option
def sensitivity_command(
    model: Path,
    calibration: str | None,
    samples: int,
    threads: int,
    plot: Path | None,
    trust_model: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Rank the layers of a float ONNX MODEL by what each costs, and saves, in int8.

    KL is how far class scores move when one layer alone is int8, on validation samples; where the
    outputs are values, the ratio of their variance to that noise is told, SQNR. Points are those of
    the metric; of an error, per cent. The time is that of the layer's kernel, float less int8; the
    last column is the price of a microsecond, in nats or in noise as a share of the variance.

    \b
    lightship sensitivity lenet.onnx --data mnist-sample --plot layers.svg
    """
    from compress.artifacts import replace_file
    from compress.export.metadata import load_onnx
    from compress.quantize.plots import plot_sensitivity
    from compress.quantize.sensitivity import sensitivity
    from compress.quantize.static import QuantizeStatic
    from compress.steps import check_model
    from deploy.record import SessionOptions

    require_picture("--plot", plot, model)
    step = checked({"calibration": calibration} if calibration else {}, QuantizeStatic)
    require_harmless_models(trust_model, SessionOptions(threads=threads), model)
    original = load_onnx(model)
    check_model(original, step)
    task = task_asked(options, like=model)
    with watching(model, epochs=0) as watcher:
        layers = sensitivity(
            original,
            step,
            task,
            samples=samples,
            options=SessionOptions(threads=threads),
            on_progress=partial(watcher.search_advanced, "looking at each layer"),
        )
    if plot is not None:
        replace_file(plot, partial(plot_sensitivity, layers))
    if as_json:
        print_json({"model": str(model), "layers": [_layer_facts(layer) for layer in layers]})
        return
    width = max(5, *(len(layer.name) for layer in layers))
    of_values = any(layer.noise_share is not None for layer in layers)
    distance, unit = ("  SQNR, dB", "noise") if of_values else ("  KL, nats", "nats")
    click.echo(f"{'layer':{width}}  {distance}  Δ points  saved, µs  {unit} per µs")
    for layer in layers:
        moved = f"{layer.cost:.2e}" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
        saved = "" if layer.saved_us is None else f"{layer.saved_us:+.1f}"
        price = "" if layer.cost_per_us is None else f"{layer.cost_per_us:.1e}"
        click.echo(
            f"{layer.name:{width}}  {moved:>10}  {layer.delta_points:+8.2f}  "
            f"{saved:>9}  {price:>{len(unit) + 7}}"
        )


def _layer_facts(layer: LayerSensitivity) -> dict[str, Any]:
    """Return a layer as JSON has it; the ratio of no noise, which is infinite, becomes null."""
    return {**builtins_of(layer), "sqnr_db": layer.sqnr_db, "cost_per_us": layer.cost_per_us}
