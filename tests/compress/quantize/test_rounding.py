import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.quantize.rounding import Moments, layer_error, learned, nearest, widest_scale


def moments_of(x, plain=None):
    plain = x if plain is None else plain
    count = x.shape[1]
    transposed = x.transpose(0, 2, 1)
    return Moments(second=transposed @ x / count, cross=transposed @ plain / count)


@given(
    seed=st.integers(0, 2**16),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 6),
    levels=st.sampled_from([1, 3, 7, 127]),
    per_channel=st.booleans(),
)
@settings(max_examples=60)
def test_learned_rounding_never_costs_more_than_nearest_rounding(
    seed, groups, outputs, inputs, levels, per_channel
):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(groups, outputs, inputs))
    plain = rng.normal(size=(groups, 50, inputs)) @ rng.normal(size=(groups, inputs, inputs)) + 1
    seen = moments_of(plain + rng.normal(size=plain.shape) / 10, plain)
    steps, scale = learned(weights, seen, levels, per_channel=per_channel)
    assert np.abs(steps).max() <= levels
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert scale.shape == ((groups, outputs, 1) if per_channel else (1, 1, 1))
    widest = widest_scale(weights, levels, per_channel=per_channel)
    naive = nearest(weights, widest, levels) * widest
    # The ridge counts too: what is least is the error and a hundredth of the distance.
    ridge = 0.01 * np.trace(seen.second, axis1=1, axis2=2)[:, None, None] / inputs

    def cost(rounded):
        apart = ((rounded - weights) ** 2).sum(axis=2, keepdims=True)
        return float((layer_error(weights, rounded, seen) + ridge * apart).sum())

    assert cost(steps * scale) <= cost(naive) + 1e-9 * abs(cost(naive)) + 1e-9


def test_two_inputs_that_move_together_share_their_rounding():
    """0.4 and 0.4 are 0 and 0 when rounded each by itself: a sum of 0.8 is lost."""
    x = np.repeat(np.linspace(-1, 1, 20)[None, :, None], 3, axis=2)
    weights = np.array([[[0.4, 0.4, 1.0]]])
    steps, scale = learned(weights, moments_of(x), 1, per_channel=True)
    given_sum = float((steps * scale).sum())
    assert abs(given_sum - 1.8) < abs(1.0 - 1.8)


def test_learned_rounding_is_as_good_as_trying_everything_where_inputs_are_independent():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4000, 3))
    weights = np.array([[[0.9, -0.33, 0.21]]])
    seen = moments_of(x)
    steps, scale = learned(weights, seen, 3, per_channel=True)
    tried = [
        float(layer_error(weights, np.array([[grid]]) * scale, seen).item())
        for grid in itertools.product(range(-3, 4), repeat=3)
    ]
    assert float(layer_error(weights, steps * scale, seen).item()) == pytest.approx(min(tried))


def test_an_input_that_never_moves_keeps_the_nearest_step():
    x = np.zeros((1, 10, 2))
    x[:, :, 0] = np.linspace(-1, 1, 10)
    steps, scale = learned(np.array([[[1.0, -0.6]]]), moments_of(x), 7, per_channel=True)
    assert steps[0, 0, 1] == np.rint(-0.6 / scale.item())


def test_a_channel_of_zeros_takes_the_widest_step_of_its_neighbours():
    weights = np.array([[[0.0, 0.0], [3.0, -7.0]]])
    np.testing.assert_array_equal(widest_scale(weights, 7, per_channel=True).ravel(), [1.0, 1.0])
