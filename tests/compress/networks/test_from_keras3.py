"""Keras 3 models rebuilt in tf-keras."""

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from compress.networks import from_keras3 as module
from compress.networks.from_keras3 import from_keras3
from deploy.errors import UserError

IMAGE = (8, 8, 3)
SERIES = (6, 4)


def randomized(model):
    """Give every weight its own value, so that no mix-up of two goes unseen."""
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.2, 1.0, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def assert_same(model, rebuilt):
    samples = np.random.default_rng(7).normal(size=(3, *model.input_shape[1:])).astype("float32")
    expected = keras.ops.convert_to_numpy(model(samples, training=False))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(
        np.asarray(rebuilt(samples, training=False)), expected, atol=2e-6 * scale
    )
    assert rebuilt.count_params() == model.count_params()


LAYERS = [
    (lambda: layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"), IMAGE),
    (lambda: layers.Conv2D(4, 3, dilation_rate=2, use_bias=False), IMAGE),
    (lambda: layers.Conv2D(6, 1, groups=3, kernel_regularizer="l2", kernel_constraint="max_norm"), IMAGE),
    (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, activation="silu"), IMAGE),
    (lambda: layers.SeparableConv2D(5, 3, activation="elu"), IMAGE),
    (lambda: layers.Conv2DTranspose(5, 3, strides=2, activation="gelu"), IMAGE),
    (lambda: layers.Conv1D(5, 3, padding="causal"), SERIES),
    (lambda: layers.BatchNormalization(epsilon=1e-2, scale=False), IMAGE),
    (lambda: layers.LayerNormalization(axis=[1, 2, 3]), IMAGE),
    (lambda: layers.GroupNormalization(groups=3), IMAGE),
    (layers.UnitNormalization, SERIES),
    (lambda: layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0]), IMAGE),
    (lambda: layers.Rescaling([1.0, 2.0, 3.0], offset=-1.0), IMAGE),
    (lambda: layers.Resizing(4, 4), IMAGE),
    (lambda: layers.CenterCrop(6, 6), IMAGE),
    (lambda: layers.MaxPooling2D(3, strides=2, padding="same"), IMAGE),
    (lambda: layers.AveragePooling2D(2), IMAGE),
    (lambda: layers.GlobalAveragePooling2D(keepdims=True), IMAGE),
    (layers.GlobalMaxPooling1D, SERIES),
    (lambda: layers.ZeroPadding2D(((1, 0), (0, 2))), IMAGE),
    (lambda: layers.Cropping2D(1), IMAGE),
    (lambda: layers.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    (lambda: layers.Reshape((4, 48)), IMAGE),
    (lambda: layers.Permute((2, 1, 3)), IMAGE),
    (layers.Flatten, IMAGE),
    (lambda: layers.Dropout(0.5, seed=3), IMAGE),
    (lambda: layers.SpatialDropout2D(0.5), IMAGE),
    (lambda: layers.GaussianNoise(0.5), IMAGE),
    (layers.RandomFlip, IMAGE),
    (lambda: layers.ReLU(max_value=6.0, negative_slope=0.1, threshold=0.2), IMAGE),
    (lambda: layers.LeakyReLU(negative_slope=0.25), IMAGE),
    (lambda: layers.PReLU(shared_axes=[1, 2]), IMAGE),
    (lambda: layers.ELU(alpha=0.5), IMAGE),
    (lambda: layers.Softmax(axis=1), IMAGE),
    (lambda: layers.Activation("hard_silu"), IMAGE),
    (lambda: layers.Activation("hard_sigmoid"), IMAGE),
    (lambda: layers.Activation(keras.activations.silu), IMAGE),
    (lambda: layers.Dense(5, activation="hard_silu"), SERIES),
    (lambda: layers.Dense(5, activation="softmax"), SERIES),
    (lambda: layers.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d"), SERIES),
    (lambda: layers.LSTM(3, return_sequences=True), SERIES),
    (lambda: layers.GRU(3), SERIES),
    (lambda: layers.Bidirectional(layers.LSTM(3)), SERIES),
    (lambda: layers.TimeDistributed(layers.Dense(3)), SERIES),
    (layers.Identity, SERIES),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=[type(m()).__name__ for m, _ in LAYERS])
def test_a_layer_keeps_its_outputs(make, shape):
    model = randomized(keras.Sequential([layers.Input(shape), make()]))
    assert_same(model, from_keras3(model, where="mine"))


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, y: layers.Add()([x, y]),
        lambda x, y: layers.Subtract()([x, y]),
        lambda x, y: layers.Multiply()([x, y]),
        lambda x, y: layers.Average()([x, y]),
        lambda x, y: layers.Maximum()([x, y]),
        lambda x, y: layers.Concatenate(axis=1)([x, y]),
        lambda x, y: layers.Dot(axes=(1, 1))([x, y]),
        layers.MultiHeadAttention(2, 3),
        lambda x, y: x + y,
        lambda x, y: x * y - x,
        lambda x, _: (3.0 - x) * 2 + 1.0,
        lambda x, _: (x - 3.0) / 4.0,
        lambda x, _: keras.ops.relu(x),
        lambda x, _: keras.ops.silu(2.0 + x),
    ],
)
def test_branches_join_as_they_did(combine):
    x = layers.Input(SERIES)
    y = layers.Dense(4, name="branch")(x)
    model = randomized(keras.Model(x, combine(x, y)))
    assert_same(model, from_keras3(model, where="mine"))


def mixed():
    """Two branches, a shared layer, a nested functional and a nested sequential model used twice."""
    inner_in = layers.Input((8, 8, 4))
    inner_out = layers.Add()([layers.Conv2D(4, 3, padding="same")(inner_in), inner_in])
    inner = keras.Model(inner_in, inner_out, name="residual")
    head = keras.Sequential([layers.Dense(4, activation="relu"), layers.LeakyReLU()], name="head")
    shared = layers.Conv2D(4, 1, name="shared")
    x = layers.Input(IMAGE)
    y = shared(layers.Conv2D(4, 3, padding="same")(x))
    z = shared(layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(4, 1)(x)))
    y, z = head(inner(y)), head(layers.BatchNormalization()(inner(z), training=False))
    y = layers.GlobalAveragePooling2D()(layers.Multiply()([y, z]))
    return keras.Model(x, layers.Dense(3, activation="softmax", name="classes")(y), name="mixed")


def test_shared_and_nested_layers_come_out_flat_with_the_same_outputs():
    model = randomized(mixed())
    rebuilt = from_keras3(model, where="mine")
    assert_same(model, rebuilt)
    names = [layer.name for layer in rebuilt.layers]
    assert "residual_conv2d" in " ".join(names)
    assert rebuilt.name == "mixed"
    assert not any(isinstance(layer, tf_keras.Model) for layer in rebuilt.layers)
    assert len(rebuilt.get_layer("shared").inbound_nodes) == 2


@pytest.mark.parametrize(
    "nest",
    [
        keras.Model,
        lambda x, _: keras.Sequential([x, layers.BatchNormalization()]),
    ],
)
def test_a_frozen_network_inside_another_stays_frozen_while_training(nest):
    x = layers.Input(IMAGE)
    base = nest(x, layers.BatchNormalization()(x))
    outer = layers.Input(IMAGE)
    model = randomized(keras.Model(outer, layers.Conv2D(2, 1)(base(outer, training=False))))
    rebuilt = from_keras3(model, where="mine")
    samples = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype("float32")
    np.testing.assert_allclose(rebuilt(samples, training=True), rebuilt(samples, training=False))


def test_layers_that_are_not_trained_stay_so():
    base = sequential(layers.Dense(2), layers.Dense(2))
    base.layers[0].trainable = False
    rebuilt = from_keras3(base, where="mine")
    assert [layer.trainable for layer in rebuilt.layers if layer.weights] == [False, True]


def test_a_nested_network_with_arithmetic_can_be_used_twice():
    x = layers.Input(SERIES)
    inner = keras.Model(x, layers.Dense(4, activation="hard_silu")(x * 2.0) + x)
    y = layers.Input(SERIES)
    once = inner(y)
    for output in (once, inner(once), inner(once) + once, inner(once) * 2.0):
        model = randomized(keras.Model(y, output))
        assert_same(model, from_keras3(model, where="mine"))


def test_an_output_may_come_from_any_use_of_a_nested_network():
    x = layers.Input(SERIES)
    inner = keras.Model(x, layers.Dense(4)(x))
    y = layers.Input(SERIES)
    first = inner(y)
    model = randomized(keras.Model(y, [first, inner(first)]))
    rebuilt = from_keras3(model, where="mine")
    samples = np.ones((1, *SERIES), "float32")
    for ours, theirs in zip(rebuilt(samples), model(samples), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_rebuilt_model_is_plain_tf_keras(tmp_path):
    model = randomized(
        keras.Sequential([layers.Input(IMAGE), layers.Conv2D(2, 3, activation="hard_silu")])
    )
    from_keras3(model, where="mine").save(tmp_path / "m.keras")
    assert_same(model, tf_keras.models.load_model(tmp_path / "m.keras", compile=False))


def test_regularisers_stay():
    model = keras.Sequential(
        [layers.Input((4,)), layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.25))]
    )
    (dense,) = [x for x in from_keras3(model, where="mine").layers if x.weights]
    assert dense.kernel_regularizer.l2 == pytest.approx(0.25)


def test_mixed_precision_becomes_float32():
    policy = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [layers.Input(IMAGE), layers.Conv2D(2, 3, dtype=policy), layers.Flatten(dtype=policy)]
    )
    rebuilt = from_keras3(model, where="mine")
    assert {layer.compute_dtype for layer in rebuilt.layers} == {"float32"}
    assert rebuilt.output.dtype == "float32"


def sequential(*stack, shape=IMAGE):
    return keras.Sequential([layers.Input(shape), *stack])


class Mine(layers.Dense):
    """A layer of the user's own."""


class Subclassed(keras.Model):
    def call(self, x):
        return x


REFUSED = [
    (lambda: sequential(Mine(3, name="m")), r"the layer 'm' \(Mine\) has no counterpart"),
    (lambda: sequential(layers.RMSNormalization(name="r")), r"'r' \(RMSNormalization\) has no counterpart"),
    (lambda: sequential(layers.Activation("glu", name="g")), r"'g' \(Activation\) has the activation 'glu'"),
    (lambda: sequential(layers.Resizing(4, 2, pad_to_aspect_ratio=True, name="n")), r"'n' .* has pad_to_aspect_ratio=True"),
    (lambda: sequential(layers.LSTM(2, recurrent_activation="hard_sigmoid"), shape=SERIES), "outputs differ by"),
    (lambda: sequential(layers.Conv2D(2, 3), shape=(None, None, 3)), r"only the batch axis may be free"),
    (lambda: keras.Sequential([layers.Dense(2)]), r"has no input shape"),
    (Subclassed, r"Subclassed is a subclassed model"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_tf_keras_cannot_say_is_refused_by_its_name(make, message):
    with pytest.raises(UserError, match=rf"^mine: .*{message}"):
        from_keras3(randomized(make()) if make is not Subclassed else make(), where="mine")


def test_an_operation_without_a_layer_is_refused_by_its_name():
    x = layers.Input(SERIES)
    model = keras.Model(x, keras.ops.cumsum(x, axis=1))
    with pytest.raises(UserError, match=r"^mine: the layer 'cumsum' \(Cumsum\) has no counterpart"):
        from_keras3(model, where="mine")


def test_inputs_that_a_tf_keras_layer_refuses_are_one_line(monkeypatch):
    def refuse(self, inputs):
        raise ValueError("no such\nshape")

    monkeypatch.setattr(tf_keras.layers.Flatten, "call", refuse)
    with pytest.raises(UserError, match=r"^mine: tf-keras cannot rebuild it: .*no such shape"):
        from_keras3(sequential(layers.Flatten()), where="mine")


def test_outputs_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(module._Translation, "copy_weights", lambda _: None)
    with pytest.raises(UserError, match="mine: rebuilt in tf-keras its outputs differ by"):
        from_keras3(randomized(sequential(layers.Dense(3))), where="mine")


def application(name, **settings):
    rng = np.random.default_rng(5)
    model = getattr(keras.applications, name)(weights=None, **settings)
    for layer in model.layers:  # untrained, the outputs would hardly depend on the inputs
        if isinstance(layer, layers.BatchNormalization):
            low, high = [0.8, -0.2, -0.2, 0.5], [1.6, 0.2, 0.2, 1.5]
            layer.set_weights([rng.uniform(a, b, w.shape) for a, b, w in zip(low, high, layer.get_weights(), strict=True)])  # fmt: skip
        elif "Conv" in type(layer).__name__:
            layer.set_weights([2 * w for w in layer.get_weights()])
    return model


def test_a_small_mobilenet_v2_of_keras_translates():
    model = application("MobileNetV2", alpha=0.35, input_shape=(32, 32, 3), classes=5)
    assert_same(model, from_keras3(model, where="mine"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "EfficientNetB0", "MobileNetV3Small"])
def test_the_usual_architectures_translate_at_full_size(name):
    model = application(name, input_shape=(224, 224, 3))
    assert_same(model, from_keras3(model, where="mine"))
