"""``lightship pack`` and ``unpack``: a model in fewer bytes for the download, and back."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.command import print_json
from deploy.cli.options import FILE, json_option, require_place, size_asked
from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.


@click.command("pack")
@click.argument("model", type=FILE)
@click.option("--out", "-o", type=FILE, help="Where it goes.  [default: MODEL with .lsp]")
@click.option("--sizes", is_flag=True, help="Say what gzip, zstd and xz make of it, and the bound.")
@json_option
def pack_command(model: Path, out: Path | None, sizes: bool, as_json: bool) -> None:
    """Write MODEL in as few bytes as its weights have entropy; unpack gives back the very same.

    \b
    lightship pack pruned-int8.onnx -o pruned-int8.lsp
    lightship pack pruned-int8.onnx --sizes
    """
    from deploy.bundle.container import write_whole
    from deploy.needs import WeightsElsewhereError, graph_facts
    from deploy.packing.packed import is_packed, pack, unpack
    from deploy.packing.weigh import sizes_of

    content = _read(model)
    if is_packed(content):
        raise UserError(f"{model}: is packed already; unpack it with: lightship unpack {model}")
    why_not_onnx = None
    try:
        graph_facts(content)
    except WeightsElsewhereError as error:
        raise UserError(f"{model}: {error}") from error
    except UserError as error:
        why_not_onnx = error  # any bytes may be packed
    place = out or (Path(f"{model}.lsp") if why_not_onnx else model.with_suffix(".lsp"))
    require_place("--out", place, model)
    if why_not_onnx:
        click.echo(f"note: {model} {why_not_onnx}: packed as plain bytes", err=True)
    packed = pack(content)
    if unpack(packed, str(model), len(content)) != content:
        raise AssertionError(f"{model}: packing lost something")
    write_whole(place, packed)
    told = sizes_of(content) if sizes else None
    if as_json:
        print_json({"path": str(place), "size_bytes": len(packed), "sizes": told})
        return
    click.echo(f"{place}  {len(packed):,} bytes, {len(content):,} unpacked")
    if told is not None:
        zstd = "not installed" if told.zstd_bytes is None else f"{told.zstd_bytes:,}"
        click.echo(
            f"gzip -9 {told.gzip_bytes:,}, zstd -19 {zstd}, xz -9 {told.xz_bytes:,}; "
            f"order-0 entropy of the weights and the text {told.bound_bytes:,}"
        )


@click.command("unpack")
@click.argument("packed", type=FILE)
@click.option("--out", "-o", type=FILE, help="Where it goes.  [default: PACKED with .onnx]")
@click.option("--max-size", metavar="SIZE", help="What it may unpack to.  [default: 512MiB]")
@json_option
def unpack_command(packed: Path, out: Path | None, max_size: str | None, as_json: bool) -> None:
    """Write the model that was packed into PACKED, the very same bytes; numpy alone is needed.

    \b
    lightship unpack pruned-int8.lsp -o pruned-int8.onnx
    """
    from deploy.bundle.container import write_whole
    from deploy.packing.packed import LARGEST_MODEL, unpack

    most_bytes = size_asked("--max-size", max_size) or LARGEST_MODEL
    model = unpack(_read(packed), str(packed), most_bytes)
    place = out or _unpacked_name(packed)
    require_place("--out", place, packed)
    if out is None and place.is_file() and _read(place) != model:
        raise UserError(f"{place}: is there and holds something else; say where it goes with --out")
    write_whole(place, model)
    if as_json:
        print_json({"path": str(place), "size_bytes": len(model)})
        return
    click.echo(f"{place}  {len(model):,} bytes")


def _unpacked_name(packed: Path) -> Path:
    """Return the name of what was packed: ``a.lsp`` was ``a.onnx``, ``a.keras.lsp`` was ``a.keras``."""
    name = packed.with_suffix("") if packed.suffix == ".lsp" else packed
    return name if name.suffix and name != packed else name.with_suffix(".onnx")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file") from error
