"""A whole experiment as one frozen value, read from TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from compress.data.sources import FILE_KINDS, Data
from compress.decode import closest, decode
from compress.export.proven import Export
from compress.networks import Network
from compress.quantize.aware import QuantizeAware
from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.layout import Int8Layout
from compress.quantize.mixed import QuantizeMixed
from compress.quantize.static import QuantizeStatic
from compress.shipped import shipped_recipes
from compress.steps import LiteRtStep, OnnxStep, Step
from compress.train.fit import Fit
from compress.train.space import ranges_in
from compress.train.tune import Tune
from deploy.bench import Bench
from deploy.errors import UserError
from deploy.machine import Target
from deploy.record import Record

BASELINE = "baseline"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
"""Variants name folders, so their names are plain."""


class Variant(Record, frozen=True, kw_only=True):
    """A model made from another by one step."""

    name: Name
    parent: Name = msgspec.field(name="from")
    step: Step
    targets: tuple[Target, ...] | None = None
    """Machines to make it for, each a variant of its own, NAME-TARGET; for steps with a ``target``."""


class Recipe(Record, frozen=True, kw_only=True):
    """Data, baseline, variants and measurement."""

    name: Name
    title: str = ""
    """Heading of the report; the name if empty."""
    description: str = ""
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    data: Data
    network: Network
    train: Fit | None = None
    """None leaves the network as it is: only for one that comes trained."""
    export: Export = Export()
    variants: tuple[Variant, ...] = msgspec.field(name="variant", default=())
    """In an order in which every parent comes before its children."""
    bench: Bench = Bench()
    tune: Tune | None = None
    """How `lightship tune` searches a recipe with ranges in the place of values; nothing else looks
    at it."""


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe that ships with the package, by name, or a TOML file, by path.

    The place of its data is looked for beside the file first, then in the working folder.

    Raises:
        UserError: if there is no such recipe, or it is not a valid one; the line says where.
    """
    tables, where = load_tables(name_or_path)
    return _without_ranges(tables, where=where)


def load_tables(name_or_path: str) -> tuple[dict[str, Any], str]:
    """Read a recipe as it is written, ranges and all; return its tables and where they stand.

    Raises:
        UserError: if there is no such recipe, or it is not TOML.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"{name_or_path}: cannot read this recipe: {reason}; give a TOML file or one of "
            f"{', '.join(shipped)}{closest(name_or_path, shipped)}"
        ) from error
    where = str(path) if path.name != name_or_path else name_or_path
    tables = _tables(text, where=where)
    data = tables.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        data["source"] = _beside(data["source"], path.parent)
    return tables, where


def _beside(source: str, folder: Path) -> str:
    """Return a source whose place lies beside the recipe with that place; any other as it is."""
    kind, _, place = source.partition(":")
    if kind in FILE_KINDS and place and not Path(place).is_absolute():
        found = folder / place
        return f"{kind}:{found}" if found.exists() else source
    return source


def parse_recipe(text: str, *, where: str = "recipe") -> Recipe:
    """Return the recipe that a TOML text spells out.

    Raises:
        UserError: if the text is not TOML, a key is unknown, a value has the wrong type or range,
            a name repeats or does not exist, a step stands where it cannot run, or a value is still
            to be searched for.
    """
    return _without_ranges(_tables(text, where=where), where=where)


def recipe_of(tables: dict[str, Any], *, where: str) -> Recipe:
    """Return the recipe that the tables of a TOML text spell out.

    Raises:
        UserError: as ``parse_recipe``, whose tables have been read.
    """
    # Variants are read one by one, because an error should call them by name, not by number.
    entries = tables.get("variant", [])
    if not isinstance(entries, list):
        raise UserError(f"{where}: variant must be a list of tables: write [[variant]]")
    others = {key: value for key, value in tables.items() if key != "variant"}
    recipe: Recipe = decode(others, Recipe, where=where)
    variants: tuple[Variant, ...] = ()
    for index, entry in enumerate(entries):
        place = f"{where}: {_title(entry, index)}"
        variants += _for_targets(decode(entry, Variant, where=place), where=place)
    if recipe.train is None and not _comes_trained(recipe.network):
        raise UserError(
            f"{where}: train: a network made from scratch has to be trained; add a [train] table"
        )
    ordered = _in_order(variants, where=where)
    return msgspec.structs.replace(recipe, variants=ordered)


def _for_targets(variant: Variant, *, where: str) -> tuple[Variant, ...]:
    """Return a variant once for each of its targets, or as it is if it names none."""
    if not variant.targets:
        return (variant,)
    if not isinstance(variant.step, QuantizeStatic | QuantizeDynamic | QuantizeAware):
        raise UserError(
            f"{where}: targets: step {_kind(variant.step)!r} is the same for every machine; leave "
            "targets out"
        )
    if variant.step.target is not None:
        raise UserError(
            f"{where}: targets: the step names target {variant.step.target!r} itself; leave one out"
        )
    return tuple(
        Variant(
            name=f"{variant.name}-{target}",
            parent=variant.parent,
            step=msgspec.structs.replace(variant.step, target=target),
        )
        for target in variant.targets
    )


def _tables(text: str, *, where: str) -> dict[str, Any]:
    try:
        return dict(msgspec.toml.decode(text))
    except msgspec.DecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from error


def _without_ranges(tables: dict[str, Any], *, where: str) -> Recipe:
    try:
        place = next((place for place, _ in ranges_in(tables)), None)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if place is not None:
        raise UserError(
            f"{where}: {place} is a range, not a value: `lightship tune` searches it and writes "
            "best.toml, which can be run; or choose a value"
        )
    return recipe_of(tables, where=where)


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML, every default written out."""
    return msgspec.toml.encode(_without_none(msgspec.to_builtins(recipe))).decode()


def _comes_trained(network: Network) -> bool:
    from compress.networks import KerasFile, PythonFunction

    return isinstance(network, KerasFile | PythonFunction)


def _title(entry: Any, index: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"variant {name!r}" if isinstance(name, str) else f"variant number {index + 1}"


def _in_order(variants: tuple[Variant, ...], *, where: str) -> tuple[Variant, ...]:
    """Return the variants with every parent before its children, otherwise as written."""
    by_name: dict[str, Variant] = {}
    for variant in variants:
        if variant.name in by_name or variant.name == BASELINE:
            raise UserError(
                f"{where}: variant {variant.name!r}: this name is taken; choose another"
            )
        by_name[variant.name] = variant
    for variant in variants:
        if variant.parent != BASELINE and variant.parent not in by_name:
            known = [BASELINE, *by_name]
            raise UserError(
                f"{where}: variant {variant.name!r}: from = {variant.parent!r} does not exist; "
                f"there are {', '.join(known)}{closest(variant.parent, known)}"
            )
    ordered: dict[str, Variant] = {}
    waiting = dict(by_name)
    while waiting:
        ready = [v for v in waiting.values() if v.parent == BASELINE or v.parent in ordered]
        if not ready:
            raise UserError(f"{where}: variants form a cycle: {' → '.join(_cycle(waiting))}")
        for variant in ready:
            ordered[variant.name] = waiting.pop(variant.name)
    for variant in ordered.values():
        why_not = _why_not_after(variant, ordered.get(variant.parent))
        if why_not is not None:
            raise UserError(f"{where}: variant {variant.name!r}: {why_not}")
    return tuple(ordered.values())


def _why_not_after(variant: Variant, parent: Variant | None) -> str | None:
    """Say why a step cannot run on what its parent gives, or None if it can."""
    if isinstance(variant.step, Int8Layout):
        if parent is not None and isinstance(
            parent.step, QuantizeStatic | QuantizeMixed | QuantizeAware
        ):
            return None
        if parent is not None and isinstance(parent.step, Int8Layout):
            return f"step 'int8_layout': {variant.parent!r} is laid out already"
        return (
            f"step 'int8_layout' needs int8 layers, which {variant.parent!r} has not; take it from a "
            "variant of quantize_static, quantize_aware or quantize_mixed"
        )
    if parent is None or not isinstance(parent.step, OnnxStep | LiteRtStep | QuantizeAware):
        return None
    needs = "a Keras model"
    if isinstance(variant.step, OnnxStep):
        lost = isinstance(parent.step, LiteRtStep)
        needs = "an ONNX model" if lost else "float32 weights"
    return (
        f"step {_kind(variant.step)!r} needs {needs}, which {parent.name!r} has no more after "
        f"{_kind(parent.step)!r}; take it from a variant before that step"
    )


def _cycle(variants: dict[str, Variant]) -> list[str]:
    """Return the names along one cycle, the first repeated at the end."""
    walked: list[str] = []
    name = next(iter(variants))
    while name not in walked:
        walked.append(name)
        name = variants[name].parent
    return [*walked[walked.index(name) :], name]


def _kind(step: Step) -> str:
    return str(msgspec.to_builtins(step)["kind"])


def _without_none(value: Any) -> Any:
    """TOML has no null: leave such keys out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
