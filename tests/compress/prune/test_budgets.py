import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.prune.budgets import (
    without_smallest,
    zeros_asked,
    zeros_by_sensitivity,
    zeros_by_size,
)

kernels = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.integers(-9, 9), min_size=1, max_size=40).map(lambda values: np.array(values) / 3),
    min_size=1,
)
shares = st.floats(0, 0.999)


def lawful(counts, kernels, sparsity):
    assert list(counts) == list(kernels)
    assert sum(counts.values()) == zeros_asked(kernels, sparsity)
    assert all(0 <= counts[name] < kernels[name].size for name in kernels)


@given(kernels, shares, st.booleans())
def test_budgets_by_size_sum_to_what_was_asked_and_leave_a_weight_in_each_layer(
    kernels, sparsity, lamp
):
    lawful(zeros_by_size(kernels, sparsity, lamp=lamp), kernels, sparsity)


@given(kernels, shares, st.lists(st.floats(0, 5), min_size=11, max_size=11))
def test_budgets_by_sensitivity_sum_to_what_was_asked_however_the_losses_lie(
    kernels, sparsity, losses
):
    def loss_without(name, share):
        return losses[int(10 * share)] * (1 + "abcd".index(name))

    lawful(zeros_by_sensitivity(kernels, sparsity, loss_without=loss_without), kernels, sparsity)


@given(kernels, shares)
def test_a_global_budget_is_what_one_threshold_for_all_weights_gives(kernels, sparsity):
    counts = zeros_by_size(kernels, sparsity, lamp=False)
    stays = [
        np.sort(np.abs(kernel))[counts[name] : -1]
        for name, kernel in kernels.items()
        if kernel.size > 1
    ]
    goes = [np.sort(np.abs(kernel))[: counts[name]] for name, kernel in kernels.items()]
    smallest = min((part.min() for part in stays if part.size), default=np.inf)
    assert max((part.max() for part in goes if part.size), default=0) <= smallest


def test_lamp_asks_a_layer_of_small_weights_for_no_more_than_a_layer_of_large_ones():
    layer = np.linspace(1, 2, 50)
    same = {"large": 100 * layer, "small": layer}
    assert zeros_by_size(same, 0.5, lamp=True) == {"large": 25, "small": 25}
    assert zeros_by_size(same, 0.5, lamp=False) == {"large": 1, "small": 49}


def test_the_layer_whose_zeros_cost_less_gives_more():
    both = {"delicate": np.ones(1000), "sturdy": np.ones(1000)}

    def loss_without(name, share):
        return (100 if name == "delicate" else 1) * share**4

    counts = zeros_by_sensitivity(both, 0.6, loss_without=loss_without)
    assert sum(counts.values()) == 1200
    assert counts["sturdy"] > 800
    # Each alone costs the same, up to the straight lines between what was measured.
    costs = [loss_without(name, count / 1000) for name, count in counts.items()]
    assert costs[0] == pytest.approx(costs[1], rel=0.5)


def test_a_layer_that_costs_infinitely_much_gives_only_what_no_other_can():
    def loss_without(name, share):
        return np.nan if name == "deadly" and share else share

    both = {"deadly": np.ones(100), "sturdy": np.ones(900)}
    counts = zeros_by_sensitivity(both, 0.5, loss_without=loss_without)
    assert counts == {"deadly": 0, "sturdy": 500}


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=30), st.data())
def test_the_smallest_weights_go_and_no_others_change(values, data):
    kernel = np.array(values, dtype=np.float32)
    zeros = data.draw(st.integers(0, kernel.size))
    left = without_smallest(kernel, zeros=zeros)
    gone = np.flatnonzero(left != kernel)
    assert len(gone) + np.sum(kernel == 0) >= zeros or zeros == 0
    assert len(gone) <= zeros
    stay = left[left != 0]
    assert not len(gone) or not len(stay) or np.abs(kernel[gone]).max() <= np.abs(stay).min()
