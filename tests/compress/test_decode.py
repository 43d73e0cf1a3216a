"""What does not fit a typed value is said with its place, the rule and what was got."""

import datetime as dt
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from compress.decode import decode, in_words
from deploy.errors import UserError

Count = Annotated[int, Meta(ge=2, lt=1000)]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Red(msgspec.Struct, tag_field="kind", tag="red"):
    depth: int


class Blue(msgspec.Struct, tag_field="kind", tag="blue"):
    pass


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    counts: Literal["auto"] | dict[str, Count] = "auto"
    deep: dict[str, dict[str, int]] = {}
    names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    short: Annotated[str, Meta(max_length=3, pattern="^[a-z]+$")] = "a"
    some: Annotated[tuple[int, ...], Meta(min_length=1)] = (1,)
    whole: int = 0
    wanted: bool = False
    way: Literal["up", "down"] | None = None
    inner: Inner | bool = False
    nothing: Nothing | None = None
    colours: tuple[Red | Blue, ...] = ()
    required: Annotated[Red | Blue | None, Meta(title="t")] = None


COUNTS = "must be 'auto' or a table of whole numbers, ≥ 2, < 1,000"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"counts": 4}, f"counts: {COUNTS}, got 4"),
        ({"counts": "four"}, f"counts: {COUNTS}, got 'four'"),
        ({"counts": ["a"]}, f"counts: {COUNTS}, got ['a']"),
        ({"counts": {"a": 4, "b.c": "x"}}, "counts.b.c: must be a whole number, ≥ 2, < 1,000, got 'x'"),
        ({"counts": {"a": 1}}, "counts.a: must be a whole number, ≥ 2, < 1,000, got 1"),
        ({"deep": {"a": {"x": 1}, "b": {"y": []}}}, "deep.b.y: must be a whole number, got []"),
        ({"names": "a"}, "names: must be a list of texts, got 'a'"),
        ({"names": ["a", 1]}, "names[1]: must be a text, got 1"),
        ({"names": ("a", 1)}, "names[1]: must be a text, got 1"),
        ({"size": [3]}, "size: must be a list of 2 whole numbers, got [3]"),
        ({"short": "long"}, "short: must be a text, at most 3 characters, matching '^[a-z]+$', got 'long'"),
        ({"some": []}, "some: must be a list of whole numbers, at least 1 of them, got []"),
        ({"whole": True}, "whole: must be a whole number, got true"),
        ({"whole": 1.5}, "whole: must be a whole number, got 1.5"),
        ({"whole": dt.date(2026, 1, 2)}, "whole: must be a whole number, got 2026-01-02"),
        ({"whole": "9" * 80}, f"whole: must be a whole number, got '{'9' * 59}…"),
        ({"wanted": "yes"}, "wanted: must be true or false, got 'yes'"),
        ({"way": "upp"}, "way: no such value 'upp'; there are up, down (did you mean up?)"),
        ({"way": 1}, "way: no such value 1; there are up, down"),
        ({"inner": 3}, "inner: must be a table or true or false, got 3"),
        ({"inner": {"share": 0}}, "inner.share: must be a number, > 0, ≤ 1, got 0"),
        ({"inner": {"shore": 0}}, "inner: unknown key 'shore'; there are share (did you mean share?)"),
        ({"colours": "red"}, "colours: must be a list of tables with kind = red, blue, got 'red'"),
        ({"colours": ["red"]}, "colours[0]: must be a table with kind = red, blue, got 'red'"),
        ({"colours": [{"kind": "rot"}]}, "colours[0].kind: no such kind 'rot'; there are blue, red"),
        ({"colours": [{"kind": 1}]}, "colours[0].kind: no such kind 1; there are blue, red"),
        ({"colours": [{}]}, "colours[0]: key 'kind' is missing; there are red, blue"),
        ({"required": {"kind": "red"}}, "required: key 'depth' is missing; it must be a whole number"),
        ({"colours": [{"kind": "a - at b"}]}, "colours[0].kind: no such kind 'a - at b'; there are"),
        ({"whole": "1 - at `$.way`"}, "whole: must be a whole number, got '1 - at `$.way`'"),
        ({"counts": {1: 2}}, "counts: its keys must be text"),
        ({1: 2}, "its keys must be text"),
        ({"nothing": {"a": 1}}, "nothing: unknown key 'a'; it takes none"),
        (3, "must be a table, got 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_the_place_the_rule_and_what_was_got(value, line):
    with pytest.raises(UserError) as caught:
        decode(value, Outer, where="here")
    assert str(caught.value).startswith(f"here: {line}")


def test_a_rule_of_the_value_itself_is_said_in_its_own_words():
    class Even(msgspec.Struct):
        number: int

        def __post_init__(self):
            if self.number % 2:
                raise ValueError(f"number must be even, got {self.number}")

    with pytest.raises(UserError, match=r"^here: number must be even, got 3$"):
        decode({"number": 3}, Even, where="here")


def test_a_type_may_be_put_in_the_words_of_a_page():
    words = in_words(
        Literal["up", "down"] | Red | Blue | None,
        quoted="`{}`".format,
        tables=lambda structs: " & ".join(struct.__name__ for struct in structs),
    )
    assert words == "Red & Blue or `up`, `down`"
