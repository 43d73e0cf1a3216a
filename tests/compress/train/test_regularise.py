import msgspec
import numpy as np
import pytest
import tf_keras
from sklearn.linear_model import Lasso

from compress.export.to_onnx import to_onnx
from compress.train.fit import Fit, fit
from compress.train.optimizers import Adam, GradientDescent, RmsProp, Sgd
from compress.train.regularise import Regularise, dropping, kernels, limited
from deploy.errors import UserError
from tests.compress.train.tiny import everything, fitted_line, line, numbers

layers = tf_keras.layers


def test_full_batch_descent_reaches_the_closed_form_of_ridge_regression(monkeypatch):
    task, l2 = line(), 0.1
    got, intercept, history = fitted_line(
        task,
        GradientDescent(learning_rate=0.1),
        Regularise(l2=l2),
        epochs=150,
        batch_size=16,  # four chunks, the last one smaller
        monkeypatch=monkeypatch,
    )
    x, y = task.train.x.astype(float), task.train.y[:, 0].astype(float)
    centred = x - x.mean(axis=0)
    # Hoerl and Kennard (1970): the minimum of mean((xw + b − y)²) + l2 |w|², its intercept free.
    wanted = np.linalg.solve(centred.T @ centred / len(x) + l2 * np.eye(5), centred.T @ y / len(x))
    assert np.allclose(got, wanted, atol=1e-3)
    assert intercept == pytest.approx(y.mean() - x.mean(axis=0) @ wanted, abs=1e-3)
    assert history.epochs[-1]["penalty"] == pytest.approx(l2 * np.sum(wanted**2), rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "epochs"),
    [
        (GradientDescent(learning_rate=0.1), 200),
        (Sgd(learning_rate=0.03, momentum=0.8), 300),
        (Adam(learning_rate=0.05), 300),
        (RmsProp(learning_rate=0.01, rho=0.99), 500),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_l1_has_the_zeros_and_the_weights_of_lasso(monkeypatch, optimizer, epochs):
    task, alpha = line(), 0.1
    lasso = Lasso(alpha=alpha).fit(task.train.x, task.train.y[:, 0])
    wanted = lasso.coef_
    assert 0 < np.sum(wanted == 0) < len(wanted)  # the test is about something
    # Lasso makes half of the mean squared error small, the loop all of it.
    got, _, _ = fitted_line(
        task,
        optimizer,
        Regularise(l1=2 * alpha),
        epochs=epochs,
        batch_size=60,
        monkeypatch=monkeypatch,
    )
    assert list(got == 0) == list(wanted == 0)
    assert np.allclose(got, wanted, atol=5e-3)


def test_chunks_of_any_size_make_the_same_full_batch_step():
    def trained(batch_size):
        model = everything_without_noise()
        config = Fit(epochs=3, batch_size=batch_size, optimizer=GradientDescent())
        fit(model, numbers(), config, seed=0)
        return model.get_weights()

    for one, many in zip(trained(1000), trained(7), strict=True):
        assert np.allclose(one, many, atol=1e-6)


def everything_without_noise():
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            layers.Dense(8, activation="relu", input_shape=(6,)),
            layers.Dense(3, activation="softmax"),
        ]
    )


def test_the_loss_is_reported_without_the_penalty_and_the_penalty_beside_it():
    def first(regularise):
        config = Fit(epochs=1, batch_size=90, regularise=regularise)
        return fit(model, numbers(), config, seed=0).epochs[0]

    model = everything_without_noise()
    weights = [weight for weight in model.get_weights() if weight.ndim == 2]
    by_hand = sum(0.01 * np.abs(w).sum() + 0.02 * np.square(w).sum() for w in weights)
    start = model.get_weights()
    plain = first(Regularise())
    model.set_weights(start)
    regularised = first(Regularise(l1=0.01, l2=0.02))
    assert regularised["penalty"] == pytest.approx(by_hand, rel=1e-5)
    assert regularised["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert "penalty" not in plain


def test_the_penalty_of_the_networks_own_layers_counts_too():
    tf_keras.utils.set_random_seed(7)
    own = tf_keras.regularizers.L2(0.5)
    model = tf_keras.Sequential(
        [layers.Dense(3, activation="softmax", input_shape=(6,), kernel_regularizer=own)]
    )
    kernel = model.get_weights()[0]
    epoch = fit(model, numbers(), Fit(epochs=1, batch_size=90), seed=0).epochs[0]
    assert epoch["penalty"] == pytest.approx(0.5 * np.square(kernel).sum(), rel=1e-5)


def test_no_unit_has_weights_of_a_larger_norm_than_max_norm():
    model = everything_without_noise()
    config = Fit(epochs=2, batch_size=30, optimizer=Adam(learning_rate=0.1))
    fit(
        model,
        numbers(),
        msgspec.structs.replace(config, regularise=Regularise(max_norm=0.5)),
        seed=0,
    )
    norms = np.concatenate([np.linalg.norm(w, axis=0) for w in model.get_weights() if w.ndim == 2])
    assert norms.max() == pytest.approx(0.5, abs=1e-5)
    assert norms.max() < 0.5 + 1e-5


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (layers.Conv2D(4, 3), (8, 8, 2), (0, 1, 2)),
        (layers.DepthwiseConv2D(3), (8, 8, 2), (0, 1)),
        (layers.Conv2DTranspose(4, 3), (8, 8, 2), (0, 1, 3)),
        (layers.Embedding(5, 3), (4,), (1,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_the_norm_of_a_unit_runs_over_the_weights_into_it(layer, shape, axes):
    model = tf_keras.Sequential([layers.Input(shape), layer])
    ((weight, limit),) = limited(model, 1e-3)
    norms = np.sqrt(np.sum(np.square(limit(weight).numpy()), axis=axes))
    assert np.allclose(norms, 1e-3)


def test_weight_decay_of_any_optimizer_takes_its_share_of_kernels_alone():
    model = everything_without_noise()
    before = model.get_weights()
    before[1] += 1
    model.set_weights(before)
    regularise = Regularise(weight_decay=1e8)
    config = Fit(epochs=1, batch_size=90, optimizer=Sgd(learning_rate=1e-9), regularise=regularise)
    fit(model, numbers(), config, seed=0)
    after = model.get_weights()
    assert np.allclose(after[0], 0.9 * before[0], atol=1e-6)
    assert np.allclose(after[1], before[1], atol=1e-6)


@pytest.mark.parametrize(
    ("clip", "size"),
    [
        ({"clip_global_norm": 1e-3}, lambda moved: np.sqrt(sum(np.sum(m**2) for m in moved))),
        ({"clip_norm": 1e-3}, lambda moved: max(np.sqrt(np.sum(m**2)) for m in moved)),
        ({"clip_value": 1e-3}, lambda moved: max(np.abs(m).max() for m in moved)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_clipped_gradient_is_as_large_as_it_may_be(clip, size):
    model = everything_without_noise()
    before = model.get_weights()
    optimizer = Sgd(learning_rate=1.0, momentum=0.0)
    config = Fit(epochs=1, batch_size=90, optimizer=optimizer, regularise=Regularise(**clip))
    fit(model, numbers(), config, seed=0)
    moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
    assert size(moved) == pytest.approx(1e-3, rel=1e-3)


def nested():
    """A model inside a model, a layer used twice, and a sum: what can be in the way of surgery."""
    tf_keras.utils.set_random_seed(7)
    inner_input = layers.Input((8,))
    shared = layers.Dense(8, activation="relu", name="shared")
    inner = tf_keras.Model(inner_input, shared(shared(inner_input)), name="inner")
    x = layers.Input((6,))
    first = layers.Dense(8, name="first")(x)
    first = layers.ReLU(name="relu")(first)
    out = layers.Dense(3, name="last")(layers.Add()([first, inner(first)]))
    return tf_keras.Model(x, layers.Softmax()(out))


@pytest.mark.parametrize(("where", "calls"), [("head", 1), ("activations", 3)])
def test_dropout_is_added_to_a_nested_network_and_leaves_no_trace(where, calls):
    model = nested()
    names, before = [layer.name for layer in model.layers], to_onnx(model)
    dropped = []

    def drop(values):
        dropped.append(values.shape)
        return values * 0

    config = Regularise(dropout=0.5, dropout_at=where)
    x = numbers().train.x[:2]
    plain = model(x).numpy()
    with dropping(model, config, drop):
        zeroed = model(x).numpy()
    assert len(dropped) == calls
    assert np.allclose(zeroed, 1 / 3)  # nothing reaches the last layer
    assert np.array_equal(model(x).numpy(), plain)
    assert [layer.name for layer in model.layers] == names
    assert [node.op_type for node in to_onnx(model).graph.node] == [
        node.op_type for node in before.graph.node
    ]


def test_dropout_changes_what_is_learned_and_the_trained_network_has_none():
    def trained(dropout):
        model = nested()
        regularise = Regularise(dropout=dropout, dropout_at="activations")
        fit(model, numbers(), Fit(epochs=2, batch_size=30, regularise=regularise), seed=0)
        return model

    with_it, without = trained(0.5), trained(0.0)
    x = numbers().validation.x
    assert not np.allclose(with_it(x), without(x))
    assert np.array_equal(with_it(x, training=True), with_it(x, training=False))
    assert "Dropout" not in {node.op_type for node in to_onnx(with_it).graph.node}
    copy = tf_keras.models.clone_model(with_it)
    copy.set_weights(with_it.get_weights())
    assert np.array_equal(copy(x), with_it(x))


class Opaque(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("model", "where", "complaint"),
    [
        (Opaque, "head", "order of the layers of a subclassed model is unknown"),
        (
            lambda: tf_keras.Sequential([layers.Dense(3, activation="softmax", input_shape=(6,))]),
            "activations",
            "no activation before its last layer",
        ),
    ],
)
def test_a_network_that_cannot_have_dropout_is_refused_with_the_reason(model, where, complaint):
    config = Fit(epochs=1, batch_size=30, regularise=Regularise(dropout=0.5, dropout_at=where))
    with pytest.raises(UserError, match=complaint):
        fit(model(), numbers(), config, seed=0)


def test_kernels_are_what_has_two_axes_and_neither_shifts_nor_scales():
    model = everything()
    assert [tuple(weight.shape) for weight in kernels(model)] == [(6, 8), (8, 3)]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"clip_norm": 1.0, "clip_value": 1.0}, "clipped in one way"),
        ({"dropout": 1.0}, "< 1.0"),
        ({"l1": -1.0}, ">= 0.0"),
        ({"max_norm": 0.0}, "> 0.0"),
    ],
)
def test_a_mistake_in_what_regularises_is_named(fields, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert({"epochs": 1, "regularise": fields}, Fit)


def test_a_second_weight_decay_beside_that_of_adamw_is_refused():
    with pytest.raises(msgspec.ValidationError, match="adamw's own weight_decay"):
        msgspec.convert(
            {"epochs": 1, "optimizer": {"kind": "adamw"}, "regularise": {"weight_decay": 0.1}}, Fit
        )
