"""The times of nodes: what the profiler adds is taken off, whatever the graph looks like."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.audit.profile import profiles, without_overhead
from deploy.record import SessionOptions
from tests.deploy.tiny_onnx import graph, linear, model

TIMES = st.dictionaries(
    st.text("abc", min_size=1), st.floats(0.0, 1e4, allow_subnormal=False), min_size=1
)


class Stored:
    """A model that is bytes already, where a device has no onnx to parse it."""

    def __init__(self, content):
        self.content = content

    def SerializeToString(self):  # noqa: N802 - as a ModelProto calls it
        return self.content


@given(profiled_us=TIMES, call_us=st.floats(0.0, 1e4))
def test_what_is_left_adds_up_to_the_call_or_was_less_from_the_start(profiled_us, call_us):
    left = without_overhead(profiled_us, call_us)
    total = sum(profiled_us.values())
    assert sum(left.values()) == pytest.approx(min(call_us, total), abs=1e-6 * (1 + total))


@given(profiled_us=TIMES, call_us=st.floats(0.0, 1e4))
def test_the_same_is_taken_from_every_node_that_has_time_left(profiled_us, call_us):
    left = without_overhead(profiled_us, call_us)
    taken = {name: profiled_us[name] - left[name] for name in left}
    assert all(took >= 0 for took in left.values())
    alike = max(taken.values())
    for name, took in left.items():
        assert took == pytest.approx(max(0.0, profiled_us[name] - alike), abs=1e-6)


def test_nodes_of_a_real_profile_add_up_to_no_more_than_the_call():
    weights = np.ones((64, 64), np.float32)
    names = [f"t{index}" for index in range(8)]
    chain = model(
        [("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)],
        inputs={names[0]: ("float32", ("batch", 64))},
        outputs={names[-1]: ("float32", ("batch", 64))},
        initializers={"w": weights},
    )
    (openings,) = profiles([Stored(chain)], SessionOptions(), seed=0)
    for one in openings:
        assert len(one.nodes_us) == 7
        assert 0 < sum(one.nodes_us.values()) <= one.call_us * (1 + 1e-9)


def test_two_models_are_profiled_together():
    ours, theirs = (Stored(linear(np.ones((6, classes)))) for classes in (2, 3))
    first, second = profiles([ours, theirs], SessionOptions(), seed=0)
    assert len(first) == len(second) > 1


def test_a_node_that_runs_several_times_a_call_counts_as_often():
    body = graph(
        [("Identity", ["going"], ["go_on"]), ("Mul", ["before", "before"], ["after"])],
        inputs={"turn": ("int64", ()), "going": ("bool", ()), "before": ("float32", ("batch", 4))},
        outputs={"go_on": ("bool", ()), "after": ("float32", ("batch", 4))},
    )
    looped = model(
        [("Loop", ["turns", "", "x"], ["y"], {"body": body})],
        inputs={"x": ("float32", ("batch", 4))},
        outputs={"y": ("float32", ("batch", 4))},
        initializers={"turns": np.int64(3)},
    )
    (openings,) = profiles([Stored(looped)], SessionOptions(), seed=0)
    assert any("mul" in name for name in openings[0].nodes_us)
