"""Builtins into typed values; what does not fit is said in one line, in the words of docs/recipes.md."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from deploy.errors import UserError

_PLAIN = {int: "whole number", float: "number", str: "text"}
_BOUNDS = {
    "ge": "≥ {:,}",
    "gt": "> {:,}",
    "le": "≤ {:,}",
    "lt": "< {:,}",
    "min_length": "at least {} of them",
    "max_length": "at most {} characters",
    "pattern": "matching {}",
}
_LONGEST = 60
"""Characters of what was got that are shown."""


def decode(value: Any, kind: Any, *, where: str) -> Any:
    """Decode builtins into a typed value.

    Raises:
        UserError: if they do not fit; the line names the place, what was got and what is known.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # At the end of the line: a value that it quotes may read like this too.
        at = re.search(r" - at `(key` in `)?\$([^`]*)`$", str(error))
        spots = _spots(value, kind, at[2] if at else "")
        if at and at[1]:
            said = "its keys must be text"
        else:
            said = _complaint(str(error)[: at.start() if at else None], spots)
        raise UserError(": ".join(filter(None, (where, spots[-1].place, said)))) from error


def closest(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that was probably meant; nothing if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def in_words(
    kind: Any,
    *,
    quoted: Callable[[Any], str] = "'{}'".format,
    tables: Callable[[Sequence[type[msgspec.Struct]]], str] | None = None,
    several: bool = False,
) -> str:
    """Return in words what may stand where a type is wanted.

    Args:
        kind: the type.
        quoted: how a choice is written.
        tables: how tables with keys of their own are called; by default by their tags.
        several: whether there are some of it.

    >>> in_words(Literal["auto"] | dict[str, Annotated[int, msgspec.Meta(ge=2)]])
    "'auto' or a table of whole numbers, ≥ 2"
    """

    def inner(kind: Any, *, several: bool = several) -> str:
        return in_words(kind, quoted=quoted, tables=tables, several=several)

    def called(structs: Sequence[type[msgspec.Struct]]) -> str:
        return _tagged(structs, several=several) if tables is None else tables(structs)

    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return ", ".join([inner(arguments[0]), *_bounds(arguments[1:], quoted)])
    if origin is Literal:
        return ", ".join(quoted(choice) for choice in arguments)
    if origin in {types.UnionType, Union}:
        structs = tuple(_by_tag(kind).values())
        others = [one for one in arguments if one not in structs and one is not types.NoneType]
        return " or ".join([*([called(structs)] if structs else ()), *map(inner, others)])
    if origin is tuple:
        many = "" if arguments[-1] is ... else f"{len(arguments)} "
        return f"{'lists' if several else 'a list'} of {many}{inner(arguments[0], several=True)}"
    if origin is dict:
        return f"{'tables' if several else 'a table'} of {inner(arguments[1], several=True)}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return called([kind])
    if kind is bool:
        return "true or false"
    word = _PLAIN.get(kind, "value")
    return f"{word}s" if several else f"a {word}"


def _bounds(metas: Iterable[Any], quoted: Callable[[Any], str]) -> Iterator[str]:
    for meta in metas:
        for name, said in _BOUNDS.items():
            bound = getattr(meta, name)
            if bound is not None:
                yield said.format(quoted(bound) if name == "pattern" else bound)


def _tagged(structs: Sequence[type[msgspec.Struct]], *, several: bool) -> str:
    """Return what tables are called, by the key that tells them apart if they have one."""
    configs = [struct.__struct_config__ for struct in structs]
    tags = ", ".join(str(config.tag) for config in configs)
    key = configs[0].tag_field
    return f"{'tables' if several else 'a table'}{f' with {key} = {tags}' if key else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spot:
    """A place in a value: where, what stands there, and of which type it has to be.

    The value and the type are None where there is none.
    """

    place: str
    got: Any
    kind: Any


def _spots(value: Any, kind: Any, path: str) -> list[_Spot]:
    """Return the spots on the way to one that msgspec complains of, from the outermost on.

    >>> [spot.place for spot in _spots({"a": [1, "b"]}, dict[str, tuple[int, ...]], "[...][1]")]
    ['', 'a', 'a[1]']
    """
    spots = [_Spot(place="", got=value, kind=kind)]
    for part in re.findall(r"\[\.\.\.\]|[^.\[\]]+", path):
        spot = spots[-1]
        key: Any
        if isinstance(spot.got, list | tuple):
            key, place, wanted = int(part), f"{spot.place}[{part}]", _item_of(spot.kind)
        elif part == "[...]":  # msgspec does not say which key of a table it was
            wanted = _item_of(spot.kind)
            key = next((key for key, item in spot.got.items() if not _fits(item, wanted)), None)
            place = f"{spot.place}.{key}"
        else:
            key, place = part, f"{spot.place}.{part}"
            wanted = next((f.type for f in _fields_of(spot) if f.encode_name == part), None)
        got = spot.got[key] if isinstance(spot.got, list | tuple) else spot.got.get(key)
        spots.append(_Spot(place=place.removeprefix("."), got=got, kind=wanted))
    return spots


def _complaint(message: str, spots: list[_Spot]) -> str:
    """Say what msgspec's message says, with what was got and, for a name, what is known."""
    spot = spots[-1]
    if unknown := re.search(r"unknown field `(.+)`", message):
        return _no_such(
            "unknown key", unknown[1], [field.encode_name for field in _fields_of(spot)]
        )
    if missing := re.search(r"missing required field `(.+)`", message):
        name = missing[1]
        wanted = [field.type for field in _fields_of(spot) if field.encode_name == name]
        tags = ", ".join(_by_tag(spot.kind))
        rule = f"it must be {in_words(wanted[0])}" if wanted else f"there are {tags}"
        return f"key {name!r} is missing; {rule}"
    last = spot.place.rpartition(".")[2]
    if last in {"kind", "op"} and spot.kind is None:
        return _no_such(f"no such {last}", spot.got, sorted(_by_tag(spots[-2].kind)))
    if message.startswith(("Expected", "Invalid enum value")):
        choices = _choices(spot.kind)
        if choices:
            return _no_such("no such value", spot.got, choices)
        return f"must be {in_words(spot.kind)}, got {_shown(spot.got)}"
    return (
        message
        if isinstance(spot.got, dict | list | tuple)
        else f"{message}, got {_shown(spot.got)}"
    )


def _no_such(what: str, got: Any, known: Sequence[str]) -> str:
    there_are = f"there are {', '.join(known)}" if known else "it takes none"
    return f"{what} {_shown(got)}; {there_are}{closest(str(got), known)}"


def _shown(got: Any) -> str:
    """Return what was got much as TOML has it, the end of it cut off where it is long."""
    if isinstance(got, bool):
        return str(got).lower()
    text = repr(got) if isinstance(got, str | int | float | list | tuple | dict) else str(got)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _item_of(kind: Any) -> Any:
    """Return the type of what a list or a table holds, through a union and its bounds."""
    for one in _members(kind):
        if get_origin(one) in {tuple, list, dict}:
            return get_args(one)[1 if get_origin(one) is dict else 0]
    return None


def _choices(kind: Any) -> list[str]:
    """Return the values that a type admits, if it admits no others than those that it names."""
    members = [one for one in _members(kind) if one is not types.NoneType]
    if any(get_origin(one) is not Literal for one in members):
        return []
    return [str(choice) for one in members for choice in get_args(one)]


def _fields_of(spot: _Spot) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of the table that is wanted at a spot, by its tag if there are several."""
    wanted = _by_tag(spot.kind)
    tag = (spot.got.get("kind") or spot.got.get("op")) if isinstance(spot.got, dict) else None
    struct = wanted.get(str(tag)) or (next(iter(wanted.values())) if len(wanted) == 1 else None)
    return msgspec.structs.fields(struct) if struct else ()


def _by_tag(kind: Any) -> dict[str, type[msgspec.Struct]]:
    """Return the tables that a type admits, by the value of their ``kind`` or ``op`` key."""
    structs = [
        one for one in _members(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)
    ]
    return {str(struct.__struct_config__.tag): struct for struct in structs}


def _members(kind: Any) -> Iterator[Any]:
    """Yield the types that a union is of, without their bounds; of another type itself."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in {types.UnionType, Union}:
        for one in get_args(kind):
            yield from _members(one)
    else:
        yield kind
