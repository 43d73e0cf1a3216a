import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.train.space import (
    Choice,
    Log,
    Uniform,
    Whole,
    combinations,
    ends,
    fill,
    grid_points,
    range_of,
    ranges_in,
)
from deploy.errors import UserError

NESTED = {
    "rate": {"log": [0.001, 0.1]},
    "optimizer": {"choice": [{"kind": "adam"}, {"kind": "sgd", "momentum": {"int": [1, 2]}}]},
    "variant": [{"name": "pruned", "sparsity": {"uniform": [0.1, 0.9]}}],
}


def test_ranges_inside_a_choice_have_places_of_their_own():
    assert [place for place, _ in ranges_in(NESTED)] == [
        "rate",
        "optimizer",
        "optimizer(sgd).momentum",
        "variant[pruned].sparsity",
    ]


def test_only_the_ranges_of_the_chosen_table_are_asked_for():
    asked = []

    def pick(place, found):
        asked.append(place)
        return ends(found)[0]

    filled = fill(NESTED, pick)
    assert filled["optimizer"] == {"kind": "adam"}
    assert asked == ["rate", "optimizer", "variant[pruned].sparsity"]
    assert NESTED["rate"] == {"log": [0.001, 0.1]}


def test_a_grid_tries_every_combination_once_and_no_range_that_does_not_exist():
    tables = {"a": NESTED["optimizer"], "b": {"choice": [True, "no"]}}
    found = list(combinations(tables, grid_points))
    assert found == [
        {"a": "adam", "b": True},
        {"a": "adam", "b": "no"},
        {"a": "sgd", "a(sgd).momentum": 1, "b": True},
        {"a": "sgd", "a(sgd).momentum": 1, "b": "no"},
        {"a": "sgd", "a(sgd).momentum": 2, "b": True},
        {"a": "sgd", "a(sgd).momentum": 2, "b": "no"},
    ]


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4))
def test_a_grid_over_independent_choices_is_their_product(sizes):
    tables = {str(i): {"choice": list(range(size))} for i, size in enumerate(sizes)}
    found = [tuple(values.values()) for values in combinations(tables, grid_points)]
    product = 1
    for size in sizes:
        product *= size
    assert len(found) == len(set(found)) == product


@given(
    st.floats(1e-6, 1e3),
    st.floats(1.001, 1e6),
    st.integers(2, 20),
    st.sampled_from([("log", Log), ("uniform", Uniform)]),
)
def test_the_points_of_a_grid_stay_inside_their_range_and_reach_its_ends(low, ratio, count, kind):
    name, of = kind
    high = low * ratio
    points = grid_points("", of(**{name: (low, high)}, points=count))
    assert len(points) == count
    assert (points[0], points[-1]) == (low, high)
    assert all(low <= point <= high for point in points)


def test_tables_without_a_telling_kind_are_labelled_by_what_they_say():
    found = Choice(choice=({"kind": "sgd", "nesterov": True}, {"kind": "sgd"}, [1, 2], 3))
    assert found.labels == ('{"kind":"sgd","nesterov":true}', '{"kind":"sgd"}', "[1,2]", 3)


MISTAKES = {
    "empty log": ({"log": [0.1, 0.1]}, "log needs two numbers above 0, the smaller first"),
    "log from 0": ({"log": [0, 1]}, r"log needs two numbers above 0.*got \{\"log\":\[0,1\]\}"),
    "uniform backwards": ({"uniform": [2, 1]}, "the smaller first"),
    "one end": ({"log": [1]}, "length 2"),
    "int of fractions": ({"int": [0.5, 3]}, "Expected `int`"),
    "a step that misses the end": ({"int": [1, 8], "step": 2}, "step 2 does not lead from 1 to 8"),
    "no choice": ({"choice": ["a"]}, "two values or more, got 1"),
    "a choice twice": ({"choice": [1, 2, 1]}, "has 1 twice"),
    "a choice that Python cannot tell apart": ({"choice": [1, True]}, "has True twice"),
    "two kinds": ({"log": [1, 2], "int": [1, 2]}, "got log and int"),
    "unknown key": ({"log": [1, 2], "pionts": 3}, "pionts"),
}


@pytest.mark.parametrize(("table", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_an_impossible_range_is_one_line_that_names_the_place(table, line):
    with pytest.raises(UserError, match=line) as caught:
        range_of(table, "train.epochs")
    assert str(caught.value).startswith("train.epochs: ")
    assert "\n" not in str(caught.value)


def test_a_grid_over_a_continuous_range_has_to_say_how_many():
    with pytest.raises(UserError, match=r"rate: .* how many values .*points = 5"):
        grid_points("rate", Log(log=(0.1, 1)))


def test_a_grid_over_whole_numbers_steps_from_end_to_end():
    assert grid_points("", Whole(whole=(16, 64), step=16)) == [16, 32, 48, 64]
