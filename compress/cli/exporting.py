"""``lightship export``: from Keras to ONNX or LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.asked import (
    builtins_of,
    checked,
    task_asked,
)
from compress.cli.one_step import description, say_done
from compress.cli.options import (
    data_options,
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
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "tflite"]),
    default="onnx",
    show_default=True,
    help="For ONNX Runtime, or for LiteRT.",
)
@click.option("--opset", type=int, help="For onnx: version of the operator set.")
@click.option(
    "--form",
    type=click.Choice(["float", "dynamic", "int8"]),
    help="For tflite: what it computes in.  [default: float]",
)
@trust_option
@click.option("--out", type=FILE, help="Where the result goes.  [default: model.FORMAT]")
@json_option
def export(
    model: Path,
    kind: str,
    opset: int | None,
    form: str | None,
    trust_code: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn a Keras MODEL into ONNX or LiteRT with the same numbers, proven on samples of the data.

    The forms dynamic and int8 of LiteRT round: evaluate says what that costs.

    \b
    lightship export pruned.keras --data mnist-sample --out pruned.onnx
    lightship export pruned.keras --data mnist-sample --format tflite --form int8 --out int8.tflite
    """
    if (form is not None and kind == "onnx") or (opset is not None and kind == "tflite"):
        raise UserError("lightship export: --form is for --format tflite, --opset for onnx")
    place = out or Path(f"model.{kind}")
    if kind == "tflite":
        _export_tflite(model, form or "float", place, options, trust_code=trust_code, json=as_json)
    else:
        _export_onnx(model, opset, place, options, trust_code=trust_code, json=as_json)


def _export_tflite(
    model: Path, form: str, out: Path, options: dict[str, Any], *, trust_code: bool, json: bool
) -> None:
    from compress.artifacts import save_tflite
    from compress.networks import load_keras
    from compress.steps import LiteRtStep, litert_step, reasons_left_alone

    require_place("--out", out, model, suffixes=[".tflite"])
    step = checked({"kind": "litert", "form": form}, LiteRtStep)
    task = task_asked(options, like=model)
    content = litert_step(load_keras(model, trust_code=trust_code), step, task)
    about = description(task, step, parent=model)
    notes = reasons_left_alone(None, step, content)
    say_done(out, save_tflite(content, out, about, seed=options["seed"], notes=notes), as_json=json)


def _export_onnx(
    model: Path,
    opset: int | None,
    out: Path,
    options: dict[str, Any],
    *,
    trust_code: bool,
    json: bool,
) -> None:
    from compress.artifacts import save_onnx
    from compress.export.proven import Export
    from compress.export.proven import export as proven_export
    from compress.networks import load_keras
    from compress.steps import PARITY_SAMPLES

    require_place("--out", out, model, suffixes=[".onnx"])
    settings = checked({"opset": opset} if opset is not None else {}, Export)
    task = task_asked(options, like=model)
    exported = proven_export(
        load_keras(model, trust_code=trust_code), settings, task.validation.x[:PARITY_SAMPLES]
    )
    about = description(task, {"kind": "export", **builtins_of(settings)}, parent=model)
    say_done(out, save_onnx(exported, out, about, seed=options["seed"], notes={}), as_json=json)
