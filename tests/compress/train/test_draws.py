import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from compress.train.draws import Draws, drawing_from, order

layers = tf_keras.layers


def test_an_order_is_one_of_all_samples_and_another_one_in_each_epoch_and_for_each_seed():
    orders = [order(50, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 3


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.5),
        layers.SpatialDropout1D(0.5),
        layers.AlphaDropout(0.5),
        layers.GaussianDropout(0.5),
        layers.GaussianNoise(1.0),
        layers.LSTM(4, dropout=0.5, recurrent_dropout=0.5, return_sequences=True),
        layers.TimeDistributed(layers.Dropout(0.5)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_draws_draws_by_seed_and_step(layer):
    model = tf_keras.Sequential([layers.Input((6, 4)), layer])
    x = np.ones((3, 6, 4), np.float32)
    own = [part.__dict__.get("_random_generator") for part in model._flatten_layers()]

    def outputs(seed, step):
        draws = Draws()

        @tf.function
        def call():
            draws.begin(tf.constant([seed, step], tf.int64))
            with drawing_from(model, draws):
                return model(x, training=True)

        return call().numpy()

    first, again = outputs(3, 8), outputs(3, 8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, outputs(3, 9))
    assert not np.array_equal(first, outputs(4, 8))
    assert [part.__dict__.get("_random_generator") for part in model._flatten_layers()] == own


def test_two_layers_of_a_network_draw_different_numbers():
    model = tf_keras.Sequential([layers.Input((100,)), layers.Dropout(0.5), layers.Dropout(0.5)])
    draws = Draws()
    draws.begin(tf.constant([0, 0], tf.int64))
    with drawing_from(model, draws):
        kept = np.mean(model(np.ones((10, 100), np.float32), training=True).numpy() > 0)
    assert 0.2 < kept < 0.3  # a half of a half
