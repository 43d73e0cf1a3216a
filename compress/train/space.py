"""What a search may choose: ranges that stand in nested tables where values would stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from deploy.errors import UserError
from deploy.record import Record

Points = Annotated[int, Meta(ge=2)]


class Log(Record, frozen=True):
    """A number above 0 whose logarithm is drawn evenly."""

    log: tuple[float, float]
    """Smallest and largest value, both included."""
    points: Points | None = None
    """How many values a grid tries, from end to end in equal ratios."""

    def __post_init__(self) -> None:
        low, high = self.log
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"log needs two numbers above 0, the smaller first, got {low:g}, {high:g}"
            )


class Uniform(Record, frozen=True):
    """A number that is drawn evenly."""

    uniform: tuple[float, float]
    """Smallest and largest value, both included."""
    points: Points | None = None
    """How many values a grid tries, from end to end in equal steps."""

    def __post_init__(self) -> None:
        low, high = self.uniform
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"uniform needs two numbers, the smaller first, got {low:g}, {high:g}")


class Whole(Record, frozen=True):
    """A whole number that is drawn evenly."""

    whole: tuple[int, int] = msgspec.field(name="int")
    """Smallest and largest value, both included."""
    step: Annotated[int, Meta(ge=1)] = 1
    """Distance between neighbouring values."""

    def __post_init__(self) -> None:
        low, high = self.whole
        if not low < high:
            raise ValueError(f"int needs two whole numbers, the smaller first, got {low}, {high}")
        if (high - low) % self.step:
            raise ValueError(f"step {self.step} does not lead from {low} to {high}")


class Choice(Record, frozen=True):
    """One of several values or whole tables, which may hold ranges of their own."""

    choice: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.choice) < 2:
            raise ValueError(f"choice needs two values or more, got {len(self.choice)}")
        labels = self.labels
        # Not a set of the values: True is 1 to Python, and to whoever reads them back.
        repeated = [label for index, label in enumerate(labels) if label in labels[:index]]
        if repeated:
            raise ValueError(f"choice has {repeated[0]!r} twice")

    @property
    def labels(self) -> tuple[str | int | float | bool, ...]:
        """A short name per value: itself, a table's ``kind`` where that tells it apart, else JSON."""
        kinds = [value.get("kind") if isinstance(value, dict) else None for value in self.choice]
        return tuple(
            value
            if isinstance(value, str | int | float | bool)
            else str(kind)
            if kind is not None and kinds.count(kind) == 1
            else msgspec.json.encode(value).decode()
            for value, kind in zip(self.choice, kinds, strict=True)
        )


Range = Log | Uniform | Whole | Choice
Pick = Callable[[str, Range], Any]
"""Chooses from the range at a place: a number, or the label of a choice."""

_MARKS: dict[str, type[Range]] = {"log": Log, "uniform": Uniform, "int": Whole, "choice": Choice}


def range_of(node: Any, place: str = "") -> Range | None:
    """Return the range that a table spells out, or None if it is a table like any other.

    Raises:
        UserError: if it is a range and no possible one.

    >>> range_of({"log": [0.001, 0.1]})
    Log(log=(0.001, 0.1), points=None)
    >>> range_of({"kind": "adam"})
    """
    marks = [mark for mark in _MARKS if mark in node] if isinstance(node, dict) else []
    if not marks:
        return None
    if len(marks) > 1:
        raise UserError(
            f"{place}: a range is one of {', '.join(_MARKS)}, got {' and '.join(marks)}"
        )
    try:
        found: Range = msgspec.convert(node, _MARKS[marks[0]])
    except msgspec.ValidationError as error:
        raise UserError(f"{place}: {error}; got {msgspec.json.encode(node).decode()}") from error
    return found


def ranges_in(node: Any, place: str = "") -> Iterator[tuple[str, Range]]:
    """Yield every range in nested tables with its place, those inside choices too.

    Raises:
        UserError: if one of them is not possible.

    >>> [place for place, _ in ranges_in({"train": {"epochs": {"int": [1, 9]}}})]
    ['train.epochs']
    """
    found = range_of(node, place)
    if found is not None:
        yield place, found
    if isinstance(found, Choice):
        for value, label in zip(found.choice, found.labels, strict=True):
            yield from ranges_in(value, f"{place}({label})")
    elif found is None:
        for key, value in _children(node):
            yield from ranges_in(value, _inside(place, key))


def fill(node: Any, pick: Pick, place: str = "") -> Any:
    """Return nested tables with a value in the place of every range.

    Only the ranges of the value that was chosen are asked for: those inside other choices do not
    exist then. Their places tell them apart: ``optimizer(sgd).momentum``.

    >>> fill({"a": {"choice": [1, {"b": {"int": [2, 3]}}]}}, lambda place, r: r.labels[0])
    {'a': 1}
    """
    found = range_of(node, place)
    if isinstance(found, Choice):
        label = pick(place, found)
        chosen = found.choice[found.labels.index(label)]
        return fill(chosen, pick, f"{place}({label})")
    if found is not None:
        return pick(place, found)
    if isinstance(node, dict):
        return {key: fill(value, pick, _inside(place, key)) for key, value in _children(node)}
    if isinstance(node, list | tuple):
        return [fill(value, pick, _inside(place, key)) for key, value in _children(node)]
    return node


def combinations(
    tables: Any, options: Callable[[str, Range], Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield every combination of options by place, the last place changing fastest.

    Args:
        tables: nested tables with ranges.
        options: what to try of a range, labels of a choice.

    >>> two = {"a": {"choice": ["x", "y"]}, "b": {"int": [1, 2]}}
    >>> [list(c.values()) for c in combinations(two, lambda _, r: grid_points("", r))]
    [['x', 1], ['x', 2], ['y', 1], ['y', 2]]
    """
    turned: list[int] = []  # which option stands at each place on the way, as in an odometer
    while True:
        picked: dict[str, Any] = {}
        sizes: list[int] = []

        def pick(place: str, found: Range) -> Any:
            several = options(place, found)
            if len(sizes) == len(turned):  # noqa: B023  # called within this turn of the loop
                turned.append(0)
            picked[place] = several[turned[len(sizes)]]  # noqa: B023  # likewise
            sizes.append(len(several))  # noqa: B023  # likewise
            return picked[place]  # noqa: B023  # likewise

        fill(tables, pick)
        yield picked
        while turned and turned[-1] + 1 == sizes[len(turned) - 1]:
            turned.pop()
        if not turned:
            return
        turned[-1] += 1


def grid_points(place: str, found: Range) -> list[Any]:
    """Return the values of a range that a grid tries, labels of a choice.

    Raises:
        UserError: if the range is continuous and does not say how many.

    >>> [f"{value:.3g}" for value in grid_points("rate", Log(log=(1e-3, 1e-1), points=3))]
    ['0.001', '0.01', '0.1']
    """
    match found:
        case Choice():
            return list(found.labels)
        case Whole():
            low, high = found.whole
            return list(range(low, high + 1, found.step))
        case _:
            kind = "log" if isinstance(found, Log) else "uniform"
            low, high = ends(found)
            if found.points is None:
                raise UserError(
                    f"{place}: a grid has to know how many values to try; write "
                    f"{{ {kind} = [{low:g}, {high:g}], points = 5 }}"
                )
            shares = [index / (found.points - 1) for index in range(1, found.points - 1)]
            if isinstance(found, Log):
                inside = [low * (high / low) ** share for share in shares]
            else:
                inside = [low + (high - low) * share for share in shares]
            return [low, *inside, high]


def ends(found: Range) -> tuple[Any, Any]:
    """Return the smallest and largest value of a range, of a choice the first and last label."""
    match found:
        case Log():
            return found.log
        case Uniform():
            return found.uniform
        case Whole():
            return found.whole
        case Choice():
            return found.labels[0], found.labels[-1]


def written(found: Range) -> str:
    """Return a range as one reads it.

    >>> written(Log(log=(1e-4, 0.1)))
    '0.0001 … 0.1, log'
    """
    match found:
        case Choice():
            return ", ".join(str(label) for label in found.labels)
        case _:
            low, high = ends(found)
            scale = ", log" if isinstance(found, Log) else ""
            step = f", step {found.step}" if isinstance(found, Whole) and found.step > 1 else ""
            return f"{low:g} … {high:g}{scale}{step}"


def _children(node: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield what a table or list holds; a table in a list goes by its name where it has one."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            name = value.get("name") if isinstance(value, dict) else None
            yield (f"[{name}]" if isinstance(name, str) else index), value


def _inside(place: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{place}[{key}]"
    return f"{place}{key}" if key.startswith("[") or not place else f"{place}.{key}"
