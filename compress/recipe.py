"""A whole experiment as one frozen value, read from TOML."""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from compress.data.sources import Data
from compress.export.proven import Export
from compress.networks import Network
from compress.quantize.aware import QuantizeAware
from compress.steps import KerasStep, OnnxStep, Step
from compress.train.fit import Fit
from deploy.bench import Bench
from deploy.errors import UserError
from deploy.record import Record

BASELINE = "baseline"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
"""Variants name folders, so their names are plain."""


class Variant(Record, frozen=True, kw_only=True):
    """A model made from another by one step."""

    name: Name
    parent: Name = msgspec.field(name="from")
    step: Step


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


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    folder = Path(str(resources.files("compress"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe that ships with the package, by name, or a TOML file, by path.

    Raises:
        UserError: if there is no such recipe, or it is not a valid one; the line says where.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"{name_or_path}: cannot read this recipe: {reason}; give a TOML file or one of "
            f"{', '.join(shipped)}{_closest(name_or_path, shipped)}"
        ) from error
    return parse_recipe(text, where=str(path) if path.name != name_or_path else name_or_path)


def parse_recipe(text: str, *, where: str = "recipe") -> Recipe:
    """Return the recipe that a TOML text spells out.

    Raises:
        UserError: if the text is not TOML, a key is unknown, a value has the wrong type or range,
            a name repeats or does not exist, or a step stands where it cannot run.
    """
    try:
        tables = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from error
    # Variants are read one by one, because an error should call them by name, not by number.
    entries = tables.pop("variant", [])
    if not isinstance(entries, list):
        raise UserError(f"{where}: variant must be a list of tables: write [[variant]]")
    recipe: Recipe = decode(tables, Recipe, where=where)
    variants = tuple(
        decode(entry, Variant, where=f"{where}: {_title(entry, index)}")
        for index, entry in enumerate(entries)
    )
    if recipe.train is None and not _comes_trained(recipe.network):
        raise UserError(
            f"{where}: train: a network made from scratch has to be trained; add a [train] table"
        )
    ordered = _in_order(variants, where=where)
    return msgspec.structs.replace(recipe, variants=ordered)


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
                f"there are {', '.join(known)}{_closest(variant.parent, known)}"
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
    if parent is None or not isinstance(parent.step, OnnxStep | QuantizeAware):
        return None
    needs = "a Keras model" if isinstance(variant.step, KerasStep) else "float32 weights"
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


def decode(value: Any, kind: Any, *, where: str) -> Any:
    """Decode builtins into a typed value.

    Raises:
        UserError: if they do not fit; the line names the place, what was got and what is known.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at ")
        place = at.strip("`").removeprefix("$").removeprefix(".")
        hint = _hint(message, value, kind, place)
        raise UserError(": ".join(filter(None, (where, place, hint)))) from error


def _hint(message: str, value: Any, kind: Any, place: str) -> str:
    """Complete msgspec's message with what was got and, for a name, what is known."""
    got = _value_at(value, place)
    unknown = re.search(r"unknown field `(.+)`", message)
    if unknown:
        keys = [field.encode_name for field in _fields_at(value, kind, place)]
        name = unknown.group(1)
        return f"unknown key {name!r}; there are {', '.join(keys)}{_closest(name, keys)}"
    if message.startswith("Invalid value") and place.endswith("kind"):
        known = sorted(_structs_by_tag(_type_at(value, kind, place.rpartition(".")[0])))
        return f"no such kind {got!r}; there are {', '.join(known)}{_closest(str(got), known)}"
    if got is not None and not isinstance(got, dict | list):
        return f"{message}, got {got!r}"
    return message


def _value_at(value: Any, place: str) -> Any:
    """Return what stands at a dotted place, or None if the path goes through a list."""
    for part in filter(None, place.split(".")):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _type_at(value: Any, kind: Any, place: str) -> Any:
    """Return the type that the recipe wants at a dotted place."""
    for part in filter(None, place.split(".")):
        fields = {field.encode_name: field for field in _fields_at(value, kind, "")}
        if part not in fields:
            return None
        value, kind = _value_at(value, part), fields[part].type
    return kind


def _fields_at(value: Any, kind: Any, place: str) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of the table that the recipe wants at a dotted place."""
    wanted = _structs_by_tag(_type_at(value, kind, place) if place else kind)
    got = _value_at(value, place)
    tag = got.get("kind") if isinstance(got, dict) else None
    struct = wanted.get(str(tag)) or (next(iter(wanted.values())) if len(wanted) == 1 else None)
    return msgspec.structs.fields(struct) if struct else ()


def _structs_by_tag(kind: Any) -> dict[str, type[msgspec.Struct]]:
    """Return the tables that a type admits, by the value of their ``kind`` key."""
    members = (kind, *get_args(kind))
    structs = [m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    return {str(struct.__struct_config__.tag): struct for struct in structs}


def _closest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _without_none(value: Any) -> Any:
    """TOML has no null: leave such keys out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
