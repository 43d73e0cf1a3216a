"""The times of nodes: what the profiler adds is taken off, whatever the graph looks like."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.audit.profile import _BLOCK, _ROUNDS, _typical, profiles, without_overhead
from deploy.record import SessionOptions
from tests.deploy.tiny_onnx import graph, linear, model

try:
    import onnx
except ModuleNotFoundError:
    onnx = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="a device has no onnx: nothing to audit with")
TIMES = st.dictionaries(
    st.text("abc", min_size=1), st.floats(0.0, 1e4, allow_subnormal=False), min_size=1
)


class Stored:
    """A model that is bytes already, where a device has no onnx to parse it."""

    def __init__(self, content):
        self.content = content

    def SerializeToString(self):  # noqa: N802 - as a ModelProto calls it
        return self.content


@given(profiled_us=TIMES, kernels_us=st.floats(0.0, 1e4))
def test_what_is_left_adds_up_to_what_the_nodes_took_or_was_less_from_the_start(
    profiled_us, kernels_us
):
    left = without_overhead(profiled_us, kernels_us)
    total = sum(profiled_us.values())
    assert sum(left.values()) == pytest.approx(min(kernels_us, total), abs=1e-6 * (1 + total))


@given(profiled_us=TIMES, kernels_us=st.floats(0.0, 1e4))
def test_the_same_is_taken_from_every_node_that_has_time_left(profiled_us, kernels_us):
    left = without_overhead(profiled_us, kernels_us)
    taken = {name: profiled_us[name] - left[name] for name in left}
    assert all(took >= 0 for took in left.values())
    alike = max(taken.values())
    for name, took in left.items():
        assert took == pytest.approx(max(0.0, profiled_us[name] - alike), abs=1e-6)


@needs_onnx
def test_equal_nodes_of_a_real_profile_share_what_a_call_takes_beyond_one_of_nothing():
    weights = np.ones((256, 256), np.float32)
    names = [f"t{index}" for index in range(8)]
    chain = model(
        [("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)],
        inputs={names[0]: ("float32", ("batch", 256))},
        outputs={names[-1]: ("float32", ("batch", 256))},
        initializers={"w": weights},
    )
    (openings,) = profiles([Stored(chain)], SessionOptions(), seed=0)
    for one in openings:
        assert len(one.nodes_us) == 7
        assert all(took > 0 for took in one.nodes_us.values())
        assert sum(one.nodes_us.values()) < one.call_us


@needs_onnx
def test_two_models_are_profiled_together():
    ours, theirs = (Stored(linear(np.ones((6, classes)))) for classes in (2, 3))
    first, second = profiles([ours, theirs], SessionOptions(), seed=0)
    assert len(first) == len(second) > 1


@needs_onnx
def test_what_runs_inside_of_a_node_counts_as_that_node_alone():
    body = graph(
        [("Identity", ["going"], ["go_on"]), ("Mul", ["before", "before"], ["after"])],
        inputs={"turn": ("int64", ()), "going": ("bool", ()), "before": ("float32", ("batch", 4))},
        outputs={"go_on": ("bool", ()), "after": ("float32", ("batch", 4))},
    )
    looped = model(
        [
            ("Loop", ["turns", "", "x"], ["y"], {"body": body}),
            ("MatMul", ["y", "w"], ["z"]),
        ],
        inputs={"x": ("float32", ("batch", 4))},
        outputs={"z": ("float32", ("batch", 4))},
        initializers={"turns": np.int64(50), "w": np.ones((4, 4), np.float32)},
    )
    (openings,) = profiles([Stored(looped)], SessionOptions(), seed=0)
    for one in openings:
        assert sorted(one.nodes_us) == ["loop0", "matmul1"]
        assert one.nodes_us["loop0"] > 0.5 * one.call_us


def test_a_node_that_wrote_many_events_pays_for_each():
    left = without_overhead({"loop": 100.0, "conv": 12.0}, 20.0, {"loop": 22.0, "conv": 1.0})
    assert left == pytest.approx({"loop": 12.0, "conv": 8.0})


def test_nodes_of_one_name_take_what_they_take_together():
    calls = _ROUNDS * _BLOCK
    assert _typical([3, 5] * calls) == 8
    assert _typical([4] * calls) == 4
    assert _typical([4] * (calls // 7)) == pytest.approx(4 / 7)


def test_calls_that_find_the_caches_cold_are_left_out():
    block = [1000, *[10] * (_BLOCK - 1)]
    assert _typical([500] * _BLOCK + block * (_ROUNDS - 1)) == 10
