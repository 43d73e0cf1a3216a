import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.quantize.outputs import (
    distance,
    kl_divergence,
    noise_share,
    output_error,
    outputs_of,
    probabilities,
    sqnr_db,
)
from deploy.errors import UserError
from tests.compress.quantize.networks import images, network, regression


def test_logits_become_probabilities_and_probabilities_stay():
    assert probabilities(np.array([[0.0, 0.0]])).tolist() == [[0.5, 0.5]]
    assert probabilities(np.array([[0.9, 0.1]])).tolist() == [[0.9, 0.1]]


def test_a_divergence_is_zero_for_equals_and_known_by_hand_for_others():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_outputs_do_not_depend_on_how_samples_are_parted():
    x = images(50)
    np.testing.assert_allclose(
        outputs_of(network(), x), outputs_of(network(), x, [slice(0, 7), slice(7, 50)]), rtol=1e-5
    )


def test_a_model_that_overflows_has_no_outputs_to_judge():
    """NaN would count as the first class, and so as right where that is the truth."""
    x = images(10)
    x[7] = 3e38
    with pytest.raises(UserError, match="got nan for 1 of 10 samples, the first of them sample 7"):
        outputs_of(network(), x)


def test_minus_infinity_is_an_output_where_it_may_be_a_logarithm():
    model = regression()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "dense/bias")
    bias.raw_data = np.float32([-np.inf, 0, 0]).tobytes()
    assert np.isneginf(outputs_of(model, images(3), logarithms=True)[:, 0]).all()
    assert output_error("classification", model, model, images(3), [slice(0, 3)]) == 0
    for kind in ("multi_label", "regression", "reconstruction"):
        with pytest.raises(UserError, match="got -inf for 3 of 3 samples"):
            output_error(kind, model, model, images(3), [slice(0, 3)])


def test_labels_diverge_as_so_many_coins_do():
    """One label of two keeps its probability, the other goes from a half to a quarter."""
    before, after = np.array([[0.5, 0.9]]), np.array([[0.25, 0.9]])
    coin = kl_divergence(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]))
    assert distance("multi_label", before, after) == pytest.approx(coin / 2)


def test_an_output_that_happens_to_add_up_to_one_is_a_value_all_the_same():
    before = np.array([[1.0], [1.0005]])
    assert distance("regression", before, before + 0.001) > 1


def test_the_noise_of_several_targets_is_the_mean_of_their_own_shares():
    before = np.array([[-1.0, 0.0], [1.0, 2000.0]])
    after = before + np.array([0.1, 0.0])
    assert noise_share(before, after) == pytest.approx(0.01 / 2)
    assert sqnr_db(noise_share(before[:, :1], after[:, :1])) == pytest.approx(20)


def test_a_target_that_never_moves_is_left_out_beside_others():
    before = np.array([[5.0, -1.0], [5.0, 1.0]])
    assert noise_share(before, before + 0.1) == pytest.approx(0.01)
    assert noise_share(before[:, :1], before[:, :1] + 0.1) == pytest.approx(1e10)
    assert noise_share(before[:, :1], before[:, :1]) == 0


def test_a_target_that_float32_rounds_to_and_fro_does_not_decide_the_ranking():
    rng = np.random.default_rng(0)
    before = np.column_stack([rng.normal(size=500), 100 + 7.6e-6 * rng.integers(0, 2, 500)])
    noisy, quiet = (
        before + rng.normal(size=before.shape) * sizes for sizes in ([0.3, 1e-3], [0.01, 2e-3])
    )
    assert noise_share(before, noisy) == pytest.approx(0.3**2, rel=0.2)
    assert noise_share(before, quiet) == pytest.approx(0.01**2, rel=0.2)


@given(share=st.floats(-1e4, 1e4), unit=st.floats(1e-3, 1e3))
def test_neither_the_unit_of_a_target_nor_its_distance_from_zero_changes_its_noise(share, unit):
    """As long as it moves by more than a 100 000th of that distance."""
    rng = np.random.default_rng(0)
    before, noise = rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) / 10
    moved = unit * (before + share)
    assert noise_share(moved, moved + unit * noise) == pytest.approx(
        noise_share(before, before + noise), rel=1e-6
    )
