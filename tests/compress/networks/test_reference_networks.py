"""The networks that come with the toolkit."""

import itertools

import msgspec
import numpy as np
import pytest

from compress.networks import (
    DsCnn,
    LeNet5,
    LeNet300100,
    Mlp,
    MobileNetV1,
    Network,
    ResNet8,
    build,
)
from deploy.errors import UserError

PUBLISHED = [
    (Mlp(), (784,), 10, 101_770),
    (Mlp(hidden=()), (784,), 10, 7_850),
    (LeNet300100(), (28, 28), 10, 266_610),
    (LeNet5(), (28, 28, 1), 10, 431_080),
    (ResNet8(), (32, 32, 3), 10, 78_666),
    (MobileNetV1(), (96, 96, 3), 2, 221_794),
    (DsCnn(), (49, 10, 1), 12, 24_908),
]
ON_MNIST = [Mlp(), LeNet300100(), LeNet5(), ResNet8(), MobileNetV1(), DsCnn()]
ON_CIFAR = [ResNet8(), MobileNetV1(), DsCnn()]


def name_of(value):
    return type(value).__name__ if isinstance(value, msgspec.Struct) else None


@pytest.mark.parametrize(("network", "shape", "classes", "count"), PUBLISHED, ids=name_of)
def test_the_parameter_count_is_the_published_one(network, shape, classes, count):
    assert build(network, input_shape=shape, classes=classes, seed=0).count_params() == count


def test_the_wide_mobilenet_is_the_published_one_with_biases():
    # 4,253,864 without biases before batch normalisation (Keras' own MobileNet), whose channels
    # these biases number; its classifier is a convolution of equal size.
    blocks = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    biases = 32 + sum(before + after for before, after in itertools.pairwise([32, *blocks]))
    model = build(MobileNetV1(width=1.0), input_shape=(64, 64, 3), classes=1000, seed=0)
    assert model.count_params() == 4_253_864 + biases


@pytest.mark.parametrize(
    ("network", "shape"),
    [*((n, (28, 28, 1)) for n in ON_MNIST), *((n, (32, 32, 3)) for n in ON_CIFAR)],
    ids=name_of,
)
def test_every_network_gives_one_probability_a_class(network, shape):
    model = build(network, input_shape=shape, classes=7, seed=0)
    outputs = np.asarray(model(np.random.default_rng(0).random((3, *shape)), training=False))
    assert outputs.shape == (3, 7)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)
    assert model.layers[-1].activation.__name__ == "softmax"


@pytest.mark.parametrize("network", ON_MNIST, ids=name_of)
def test_a_seed_decides_the_weights(network):
    def weights(seed):
        model = build(network, input_shape=(28, 28, 1), classes=3, seed=seed)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    first = weights(1)
    np.testing.assert_array_equal(first, weights(1))
    assert not np.array_equal(first, weights(2))


def test_layers_are_named_for_what_they_are():
    model = build(LeNet5(), input_shape=(28, 28, 1), classes=10, seed=0)
    names = [layer.name for layer in model.layers]
    assert names == ["input", "conv1", "pool1", "conv2", "pool2", "flatten", "dense1", "dense2"]


def test_flat_samples_are_not_flattened_again():
    model = build(Mlp(), input_shape=(784,), classes=10, seed=0)
    assert [layer.name for layer in model.layers] == ["input", "dense1", "dense2"]


@pytest.mark.parametrize(("side", "final"), [(28, 2), (32, 2), (64, 2), (96, 3)])
def test_mobilenet_keeps_pixels_for_its_last_layers(side, final):
    model = build(MobileNetV1(), input_shape=(side, side, 1), classes=2, seed=0)
    assert model.get_layer("pool").input_shape[1:3] == (final, final)


@pytest.mark.parametrize(("shape", "kernel"), [((49, 10, 1), (10, 4)), ((32, 32, 3), (4, 4))])
def test_the_stem_of_ds_cnn_is_long_only_where_samples_are(shape, kernel):
    assert (
        build(DsCnn(), input_shape=shape, classes=2, seed=0).get_layer("conv1").kernel_size
        == kernel
    )


@pytest.mark.parametrize(
    ("network", "name", "least"),
    [
        (LeNet5(), "lenet_5", (16, 16, 1)),
        (ResNet8(), "resnet_8", (8, 8, 1)),
        (MobileNetV1(), "mobilenet_v1", (16, 16, 1)),
        (DsCnn(), "ds_cnn", (4, 4, 1)),
    ],
    ids=name_of,
)
def test_a_sample_one_pixel_too_small_is_refused_with_the_least_size(network, name, least):
    build(network, input_shape=least, classes=2, seed=0)
    height, width, _ = least
    with pytest.raises(
        UserError, match=rf"{name}: .*{height} × {width}.* got {height} × {width - 1}"
    ):
        build(network, input_shape=(height, width - 1, 1), classes=2, seed=0)


@pytest.mark.parametrize("shape", [(784,), (28, 28)])
def test_a_convolution_needs_a_channel_axis(shape):
    with pytest.raises(
        UserError, match=r"lenet_5: needs samples of shape \(height, width, channels\), got \("
    ):
        build(LeNet5(), input_shape=shape, classes=10, seed=0)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"kind": "mlp", "hidden": [0]}', r"hidden\[0\]"),
        ('{"kind": "mobilenet_v1", "width": 0}', r"\$.width"),
        ('{"kind": "lenet_5", "filters": 3}', "filters"),
        ('{"kind": "lenet5"}', "lenet5"),
        ('{"kind": "function", "function": "no colon"}', r"\$.function"),
    ],
)
def test_a_bad_config_is_refused_at_its_place(text, place):
    with pytest.raises(msgspec.ValidationError, match=place):
        msgspec.json.decode(text, type=Network)
