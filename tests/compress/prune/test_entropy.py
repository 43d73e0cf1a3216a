import msgspec
import numpy as np
import pytest
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compress.prune.entropy import (
    EntropyPrune,
    bits_by_code,
    entropy_prune,
    order_0_bits,
    why_not_coded,
)
from compress.train.fit import Fit, TrainingFiles
from compress.train.optimizers import Adam
from compress.train.regularise import Regularise
from deploy.errors import UserError

layers = tf_keras.layers
FAST = Fit(epochs=2, batch_size=16, optimizer=Adam(learning_rate=0.03))
FIT = Fit(epochs=4, batch_size=32, optimizer=Adam(learning_rate=3e-3))


def step(price_per_bit=0.01, **fields):
    return EntropyPrune(**{"price_per_bit": price_per_bit, "fine_tune": FIT} | fields)


def network():
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1), name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
            layers.Flatten(name="flatten"),
            layers.Dense(16, activation="relu", name="dense1"),
            layers.Dense(3, activation="softmax", name="dense2"),
        ],
        name="tiny",
    )


def coded(model):
    """Kernels and biases of the layers that have kernels."""
    return [w.numpy() for layer in model.layers if layer.name[:2] != "bn" for w in layer.weights]


def bits(model):
    return sum(order_0_bits(weight) for weight in coded(model))


def same_weights(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class StopError(Exception):
    """What stops a training from outside."""


@pytest.fixture(scope="module")
def made(tiny_task):
    return entropy_prune(network(), step(), tiny_task, seed=0)


def test_every_weight_is_a_whole_number_of_its_tensors_steps(made):
    model, _ = made
    for weight in coded(model):
        sizes = np.unique(np.abs(weight[weight != 0]).astype(np.float64))
        if len(sizes):
            # The step divides the smallest size; small codes occur in each of these tensors.
            shares = [sizes / (sizes[0] / whole) for whole in (1, 2, 3, 4)]
            assert min(np.abs(share - np.round(share)).max() for share in shares) < 1e-4


def test_the_result_is_a_plain_model_with_the_names_of_the_original(made):
    model, _ = made
    original = network()
    assert [(x.name, type(x)) for x in model.layers] == [(x.name, type(x)) for x in original.layers]
    assert [w.name for w in model.weights] == [w.name for w in original.weights]
    assert not model.losses
    assert all("call" not in layer.__dict__ for layer in model.layers)


def test_the_model_gives_what_the_last_validation_saw(made, tiny_task):
    model, history = made
    answers = model(tiny_task.validation.x, training=False).numpy().argmax(axis=1)
    accuracy = float(np.mean(answers == tiny_task.validation.y))
    assert accuracy == pytest.approx(history.epochs[-1]["val_accuracy"])
    assert accuracy > 0.8


def test_normalisation_is_trained_and_not_coded(made):
    model, _ = made
    original, trained = network().get_layer("bn1"), model.get_layer("bn1")
    assert not np.array_equal(original.get_weights()[2], trained.get_weights()[2])
    assert why_not_coded("bn1", trained, step()) is not None


def test_a_higher_price_leaves_fewer_bits_and_fewer_weights(made, tiny_task):
    cheap, _ = made
    dear, _ = entropy_prune(network(), step(0.2), tiny_task, seed=0)
    assert bits(dear) < 0.8 * bits(cheap)
    assert bits(cheap) < bits(network()) / 2
    assert sum((w != 0).sum() for w in coded(dear)) < sum((w != 0).sum() for w in coded(cheap))


def test_pruning_leaves_its_input_alone(tiny_task):
    model = network()
    before = model.get_weights()
    entropy_prune(model, step(fine_tune=Fit(epochs=1, batch_size=96)), tiny_task, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not model.losses


def test_the_penalty_of_the_history_is_the_price_of_the_bits_of_a_sample(tiny_task):
    still = Fit(epochs=1, batch_size=96, optimizer=Adam(learning_rate=1e-12))
    model, history = entropy_prune(
        network(), step(0.5, fine_tune=still, rise=0.0, levels=100), tiny_task, seed=0
    )
    # Between two codes the price is on a line, and signs share theirs: near, and not below.
    paid = history.epochs[0]["penalty"] * len(tiny_task.train) / 0.5
    assert bits(model) < paid < 1.15 * bits(model)


def test_a_training_that_was_killed_goes_on_to_the_same_bits(tiny_task, tmp_path):
    asked = step(updates_per_epoch=1)
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)

    def stop(end):
        if end.epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        entropy_prune(network(), asked, tiny_task, seed=0, files=files, on_epoch=stop)
    seen = []
    resumed, _ = entropy_prune(
        network(), asked, tiny_task, seed=0, files=files, on_epoch=seen.append
    )
    assert [end.epoch for end in seen] == [2, 3, 4]
    assert same_weights(resumed, entropy_prune(network(), asked, tiny_task, seed=0)[0])


def test_layers_used_twice_and_layers_of_inner_models_are_coded_and_paid_for_once(tiny_task):
    tf_keras.utils.set_random_seed(7)
    shared = layers.Dense(16, activation="relu", name="shared")
    inner = tf_keras.Sequential(
        [layers.Input((16,)), layers.Dense(16, name="inner1")], name="inner"
    )
    image = tf_keras.Input((8, 8, 1))
    x = inner(shared(shared(layers.Dense(16, name="dense1")(layers.Flatten()(image)))))
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x))
    still = Fit(epochs=1, batch_size=96, optimizer=Adam(learning_rate=1e-12))
    pruned, history = entropy_prune(
        model, step(0.5, fine_tune=still, rise=0.0, levels=100), tiny_task, seed=0
    )
    weights = [weight.numpy() for weight in pruned.weights]
    assert all(len(np.unique(weight)) < 210 for weight in weights)
    paid = history.epochs[0]["penalty"] * len(tiny_task.train) / 0.5
    assert paid < 1.15 * sum(order_0_bits(weight) for weight in weights)


def test_a_skipped_layer_keeps_its_free_weights(tiny_task):
    brief = Fit(epochs=1, batch_size=96)
    pruned, _ = entropy_prune(network(), step(skip=("dense*",), fine_tune=brief), tiny_task, seed=0)
    kernel = pruned.get_layer("dense1").kernel.numpy()
    assert len(np.unique(kernel)) == kernel.size
    assert why_not_coded("dense1", pruned.get_layer("dense1"), step(skip=("dense*",))) == (
        "skipped: 'dense*'"
    )


def test_it_trains_beside_decay_limits_and_dropout(tiny_task):
    fine_tune = Fit(
        epochs=1,
        batch_size=96,
        regularise=Regularise(l2=1e-4, max_norm=1.0, dropout=0.2, dropout_at="activations"),
    )
    _, history = entropy_prune(network(), step(fine_tune=fine_tune), tiny_task, seed=0)
    assert np.isfinite(history.epochs[0]["loss"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("conv1", None),
        ("depthwise", None),
        ("bn1", "layers of type BatchNormalization cannot be coded"),
        ("flatten", "has no weights"),
    ],
)
def test_a_layer_left_alone_has_its_reason(name, reason):
    assert why_not_coded(name, network().get_layer(name), step()) == reason


def test_frozen_layers_and_models_have_their_reasons():
    frozen = network().get_layer("dense1")
    frozen.trainable = False
    assert why_not_coded("dense1", frozen, step()) == "is frozen: trainable = False"
    assert why_not_coded("tiny", network(), step()) == "is a model: its layers are coded one by one"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"skip": ("fc*",)}, r"skip: no layer is named 'fc\*'; there are conv1, bn1"),
        ({"skip": ("*",)}, r"nothing is left to code \(conv1: skipped: '\*'"),
        (
            {"price_per_bit": 1e3, "levels": 1, "rise": 0.0, "fine_tune": FAST},
            "nothing is left of '.*': bits are too dear; lower price_per_bit",
        ),
    ],
)
def test_a_step_that_does_not_fit_the_model_is_refused(tiny_task, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        entropy_prune(network(), step(**fields), tiny_task, seed=0)


def test_a_model_without_an_input_shape_is_refused(tiny_task):
    model = tf_keras.Sequential([layers.Flatten(), layers.Dense(3, activation="softmax")])
    with pytest.raises(UserError, match="has no known input shape"):
        entropy_prune(model, step(), tiny_task, seed=0)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"price_per_bit": 0}, r"> 0.*\$\.price_per_bit"),
        ({"rise": 1.5}, r"<= 1.*\$\.rise"),
        ({"levels": 128}, r"<= 127.*\$\.levels"),
        ({"final_sparsity": 0.9}, "unknown field `final_sparsity`"),
    ],
)
def test_a_mistake_in_the_step_is_named_with_its_place(fields, complaint):
    settings = {"kind": "entropy_prune", "price_per_bit": 0.1, "fine_tune": {"epochs": 1}} | fields
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(settings, EntropyPrune)


codes = arrays.arrays(np.int64, st.integers(1, 300), elements=st.integers(-127, 127))


@given(codes)
def test_prices_are_those_of_a_code_that_can_be_decoded_and_more_frequent_codes_cost_less(values):
    bits = bits_by_code(values)
    assert np.sum(2.0**-bits) == pytest.approx(1, abs=1e-5)  # Kraft, with equality
    counts = np.array([np.sum(np.abs(values) == abs(code)) for code in range(-127, 128)])
    counts[127] *= 2  # 0 is its own negative
    assert (np.diff(bits[np.argsort(counts, kind="stable")]) <= 1e-6).all()


@given(codes)
def test_no_prices_bill_less_than_the_entropy(values):
    billed = float(bits_by_code(values)[values + 127].sum())
    assert billed >= order_0_bits(values) - 1e-3
