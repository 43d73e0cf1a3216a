"""``lightship bundle``, ``convert`` and ``selftest``: what a device gets, and whether it arrived whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    json_option,
    memory_limit_option,
    public_key_option,
    require_harmless_models,
    require_place,
    size_asked,
    threads_option,
    trust_model_option,
)
from deploy.errors import UserError

if TYPE_CHECKING:
    from deploy.bundle.make import Form

# Everything but click is imported inside the commands: --help answers at once.


@click.command("bundle")
@click.argument("source", type=FILE_OR_FOLDER)
@click.option("--variant", help="Which variant of a run.  [default: the verdict's choice]")
@click.option("--data", type=FILE, help="For a single model: .npz with x and y to test it with.")
@click.option(
    "--out",
    "-o",
    type=FILE_OR_FOLDER,
    help="A .lship file, or else a folder.  [default: model.lship; for Triton, repository]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["as-is", "ort", "triton"]),
    default="as-is",
    show_default=True,
    help="The model as it is, in ORT format, or a folder in a Triton model repository.",
)
@click.option(
    "--packed", is_flag=True, help="The ONNX model packed: a smaller download, opened alike."
)
@click.option("--name", help="What the bundle is called.  [default: run and variant]")
@click.option("--model-version", default="1.0.0", show_default=True, help="Its semantic version.")
@click.option(
    "--licence", default="not stated", show_default=True, help="The licence of the model."
)
@click.option("--sign", type=FILE, help="A private key (EC, PEM): writes OUT.sig beside it.")
@trust_model_option
@json_option
def bundle_command(
    source: Path,
    variant: str | None,
    data: Path | None,
    out: Path | None,
    form: Literal["as-is", "ort", "triton"],
    packed: bool,
    name: str | None,
    model_version: str,
    licence: str,
    sign: Path | None,
    trust_model: bool,
    as_json: bool,
) -> None:
    """Pack what a device needs of SOURCE, a finished run or a single model, into one file.

    A single model is an ONNX or a .tflite file. For Triton, --out is its model repository.

    \b
    lightship bundle runs/demo -o model.lship
    lightship bundle runs/demo --variant int8 --packed -o int8.lship
    lightship bundle pruned.onnx --data test.npz -o pruned.lship
    lightship bundle runs/demo --variant int8 --format triton -o repository
    """
    import dataclasses
    import tempfile

    from deploy.bundle.make import Label, bundle_model, bundle_run
    from deploy.bundle.signature import write_signature
    from deploy.bundle.triton import write_triton
    from deploy.record import SessionOptions

    label = Label(name=name, version=model_version, licence=licence)
    key = _signing_key(sign, form, out or Path("model.lship"), (source, data)) if sign else None
    kind = _form(form, packed=packed)
    with tempfile.TemporaryDirectory(prefix="lightship-bundle-") as scratch:
        place = out or Path("model.lship")
        if form == "triton":
            place = Path(scratch, "model.lship")
        if source.is_dir():
            if data is not None:
                raise UserError(
                    f"--data: {source} is a run and has its own test samples; leave it out"
                )
            bundle = bundle_run(source, place, variant=variant, label=label, form=kind)
        elif data is None or variant is not None:
            _require_there(source)
            raise UserError(
                f"{source}: a single model needs --data and no --variant; give the run's folder for "
                "what was measured in a run"
            )
        else:
            require_harmless_models(trust_model, SessionOptions(), source)
            bundle = bundle_model(source, data, place, label=label, form=kind)
        if form == "triton":
            given = dataclasses.replace(bundle, where=str(source))
            place = write_triton(given, out or Path("repository"))
    if key is not None:
        write_signature(place, bundle.manifest.name, key)
    if as_json:
        print_json({"path": str(place), "bundle": bundle.id, "manifest": bundle.manifest})
        return
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    size_bytes = sum(file.stat().st_size for file in files)
    said = bundle.manifest
    click.echo(f"{place}  {said.name} {said.version}, {size_bytes:,} bytes")
    if form == "triton":
        click.echo("preprocessing is not part of a model in Triton: README.md says what to send")


def _require_there(source: Path) -> None:
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a run's folder or a model")


def _signing_key(sign: Path, form: str, place: Path, read: tuple[Path | None, ...]) -> Any:
    """Return the key to sign a bundle with, once its signature is known to have a place."""
    from deploy.bundle.signature import load_private_key, signature_path

    key = load_private_key(sign)
    if form == "triton":
        raise UserError("--sign: signs a bundle; Triton's layout has no place for a signature")
    require_place("--out", signature_path(place), sign, *read)
    return key


def _form(form: str, *, packed: bool) -> Form:
    """Return the form in which a model goes into a bundle; Triton's layout is made of one as it is."""
    if packed and form != "as-is":
        raise UserError(
            f"--packed: packs a model as it is, got --format {form}; give one of the two"
        )
    return "packed" if packed else "ort" if form == "ort" else "as-is"


@click.command("convert")
@click.argument("model", type=FILE)
@click.option(
    "--out", "-o", type=FILE, default="model.ort", show_default=True, help="Where the result goes."
)
@trust_model_option
@json_option
def convert_command(model: Path, out: Path, trust_model: bool, as_json: bool) -> None:
    """Turn an ONNX MODEL into ORT format, for a reduced build of ONNX Runtime, same answers.

    Beside it goes OUT.config, the operators and types that the build has to include:
    build.py --include_ops_by_config OUT.config --enable_reduced_operator_type_support

    \b
    lightship convert int8.onnx -o int8.ort
    """
    from deploy.bundle.container import write_whole
    from deploy.ort_format import required_operators, to_ort
    from deploy.record import SessionOptions

    require_place("--out", out, model, suffixes=[".ort"])
    if not model.is_file():
        raise UserError(f"{model}: no such file; give an ONNX model")
    require_harmless_models(trust_model, SessionOptions(), model)
    content = model.read_bytes()
    try:
        converted = to_ort(content)
    except UserError as error:
        raise UserError(str(error).replace("model:", f"{model}:", 1)) from error
    operators = required_operators(converted)
    config = out.with_name(out.name + ".config")
    for path, made in ((out, converted), (config, operators.encode())):
        write_whole(path, made)
    if as_json:
        print_json({"path": str(out), "size_bytes": len(converted), "operators": operators})
        return
    click.echo(f"{out}  {len(converted):,} bytes, {len(content):,} as ONNX; {config}")


@click.command("selftest")
@click.argument("bundle", type=FILE_OR_FOLDER)
@public_key_option
@threads_option
@memory_limit_option
@json_option
def selftest_command(
    bundle: Path, public_key: Path | None, threads: int, memory_limit: str | None, as_json: bool
) -> None:
    """Say whether BUNDLE is whole and this machine answers as the one that measured it.

    Exit codes: 0 it passes, 1 it fails, 2 there is nothing to test, or this ONNX Runtime is too old.

    \b
    lightship selftest model.lship
    """
    from deploy.bundle.footprint import fitting
    from deploy.bundle.selftest import selftest

    limit = size_asked("--memory-limit", memory_limit)
    with fitting(bundle, limit, threads=threads, public_key=public_key):
        found = selftest(bundle, threads=threads, public_key=public_key)
    if as_json:
        print_json(found)
    else:
        click.echo(found.sentence)
    if not found.passed:
        click.get_current_context().exit(1)
