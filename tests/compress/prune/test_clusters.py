"""Kernels whose weights share values: how they are found, that training moves them, that the file has them."""

import numpy as np
import pytest
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compress.export.facts import layer_facts
from compress.export.proven import Export
from compress.prune.clusters import Cluster, _share, centres, cluster, why_not_clustered
from compress.prune.kernels import kernel_of
from compress.steps import exported, keras_step, reasons_left_alone, require_kept
from compress.train.fit import Fit, TrainingFiles, fit
from compress.train.optimizers import Adam, Sgd
from compress.train.regularise import Regularise
from deploy.errors import ParityError, UserError
from deploy.record import LayerFacts
from tests.compress.quantize.test_aware import normed

layers = tf_keras.layers
BRIEFLY = Fit(epochs=1, batch_size=64, optimizer=Adam(learning_rate=0.01))


def step(**fields):
    return Cluster(**{"clusters": 6, "fine_tune": BRIEFLY, **fields})


def network():
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


def half_empty():
    model = network()
    for name in ("conv", "scores"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
        model.get_layer(name).set_weights([kernel, bias])
    return model


def kernels(model):
    return {
        layer.name: layer.kernel.numpy() for layer in model.layers if kernel_of(layer) is not None
    }


def facts(name, **fields):
    given = {"name": name, "kind": "Conv", "parameters": 90, "zeros": 0, "bits": 32, **fields}
    return LayerFacts(**given)


@given(
    weights=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-2, 2, width=16)),
    count=st.integers(2, 9),
    initial=st.sampled_from(["linear", "kmeans_plus_plus", "density"]),
)
def test_centres_are_few_rising_and_no_weight_would_rather_have_another_mean(
    weights, count, initial
):
    found = centres(weights, count, initial=initial, seed=[0])
    assert 1 <= len(found) <= count
    assert np.all(np.diff(found) > 0)
    if len(np.unique(weights)) <= count:
        assert np.array_equal(found, np.unique(weights))
    nearest = np.searchsorted((found[1:] + found[:-1]) / 2, weights, side="right")
    for at, centre in enumerate(found):
        members = weights[nearest == at].astype(np.float64)
        assert np.isclose(members.mean(), centre, atol=1e-6)


def test_where_k_means_begins_decides_what_it_finds():
    weights = np.concatenate([np.zeros(90), [0.1, 0.2, 0.3], [5.0, 9.0]])
    linear = centres(weights, 3, initial="linear", seed=[0])
    assert linear.round(2).tolist() == [0.01, 5.0, 9.0]
    crowd = np.linspace(0, 1, 99)
    even = centres(np.append(crowd, 50.0), 3, initial="density", seed=[0])
    assert even[-1] == pytest.approx(
        50.0
    )  # k-means leaves the quantiles where a weight lies far off
    drawn = [centres(crowd, 4, initial="kmeans_plus_plus", seed=[at]).tolist() for at in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert np.allclose(drawn[0], drawn[2], atol=0.05)


def test_a_step_moves_a_shared_value_by_the_mean_of_its_gradients():
    layer = layers.Dense(2, use_bias=False)
    layer.build((None, 2))
    layer.kernel.assign([[1.0, 1.0], [5.0, 5.0]])
    shared = _share(layer, step(clusters=2), count=2, seed=[0])
    import tensorflow as tf

    with tf.GradientTape() as tape:
        objective = tf.reduce_sum(layer(np.float32([[3.0, 10.0]])) * [1.0, 3.0])
    # by weight 3, 9, 10, 30: the two that are 1 get 6, the two that are 5 get 20
    gradient = tape.gradient(objective, shared.values)
    assert np.array_equal(gradient, [[6, 6], [20, 20]])
    assert np.array_equal(layer.kernel, shared.values)


def test_every_kernel_has_few_values_that_training_moved(tiny_task):
    model = network()
    before = model.get_weights()
    made, history = cluster(model, step(per_layer={"scores": 3}), tiny_task, seed=0)
    found = kernels(made)
    assert len(np.unique(found["conv"])) <= 6
    assert len(np.unique(found["scores"])) <= 3
    begin = centres(kernels(model)["conv"], 6, initial="linear", seed=[0])
    assert np.abs(np.unique(found["conv"]) - begin).max() > 1e-3
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert len(history.epochs) == 1
    assert [layer.name for layer in made.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize(
    "fine_tune",
    [
        Fit(epochs=2, batch_size=64, optimizer=Sgd(learning_rate=0.05, momentum=0.9)),
        Fit(epochs=1, batch_size=64, regularise=Regularise(l1=1e-3, l2=1e-3, max_norm=0.5)),
    ],
    ids=["momentum", "regularised"],
)
def test_zeros_stay_where_they_are_and_count_as_one_value(tiny_task, fine_tune):
    model = half_empty()
    made, _ = cluster(model, step(fine_tune=fine_tune), tiny_task, seed=0)
    for name, kernel in kernels(made).items():
        assert np.all(kernel[kernels(model)[name] == 0] == 0)
        assert len(np.unique(kernel)) <= 6


def test_zeros_may_move_where_that_is_asked_for(tiny_task):
    made, _ = cluster(half_empty(), step(keep_zeros=False), tiny_task, seed=0)
    assert np.count_nonzero(kernels(made)["conv"]) == kernels(made)["conv"].size


def test_what_is_trained_is_what_is_returned(tiny_task):
    seen = []
    made, history = cluster(network(), step(), tiny_task, seed=0, on_epoch=seen.append)
    answers = np.asarray(made(tiny_task.validation.x, training=False))
    loss = -np.mean(np.log(answers[np.arange(len(answers)), tiny_task.validation.y]))
    assert history.epochs[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_a_killed_clustering_goes_on_to_the_same_bits(tiny_task, tmp_path):
    class StopError(Exception):
        pass

    def stop(end):
        if end.epoch == 1:
            raise StopError

    long = step(fine_tune=Fit(epochs=2, batch_size=64))
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)
    with pytest.raises(StopError):
        cluster(network(), long, tiny_task, seed=0, files=files, on_epoch=stop)
    seen = []
    resumed, _ = cluster(
        network(), long, tiny_task, seed=0, files=files, on_epoch=lambda end: seen.append(end.epoch)
    )
    whole, _ = cluster(network(), long, tiny_task, seed=0)
    assert seen == [1, 2]  # the last step of the first was written down
    assert all(
        np.array_equal(a, b)
        for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True)
    )


def test_the_file_has_no_more_values_than_asked_for_though_batchnorm_was_there(tiny_task):
    model = tf_keras.Sequential([layers.Input(tiny_task.input_shape), *normed()])
    fit(model, tiny_task, BRIEFLY, seed=0)
    made, _ = keras_step(model, step(), tiny_task, seed=0)
    found = {f.name: f for f in layer_facts(exported(made, step(), Export(), tiny_task)[0], {})}
    why = reasons_left_alone(model, step(), made)
    assert {name for name, layer in found.items() if layer.distinct > 6} == {"dw"}
    assert why["dw"] == "layers of type DepthwiseConv2D cannot be clustered"
    assert {found["conv1"].distinct, found["scores"].distinct} <= set(range(2, 7))
    assert found["conv1"].shares_values


def test_a_file_that_holds_more_values_is_refused():
    artifact = type("Artifact", (), {"layers": (facts("conv", distinct=7),)})
    with pytest.raises(ParityError, match="'conv' holds 7 distinct weights in the file, where 6"):
        require_kept(artifact, step(), None)
    artifact.layers = (facts("conv", distinct=7, note="skipped: 'conv'"), facts("d", distinct=6))
    require_kept(artifact, step(), None)


def test_what_cannot_be_clustered_says_why(tiny_task):
    frozen = layers.Dense(3, name="frozen", trainable=False)
    small = layers.Dense(2, name="small")
    depthwise = layers.DepthwiseConv2D(3, name="dw")
    frozen.build((None, 9))
    small.build((None, 3))
    depthwise.build((None, 8, 8, 2))
    said = {
        layer.name: why_not_clustered(layer.name, layer, step(skip=("re*",)))
        for layer in (frozen, small, depthwise, layers.ReLU(name="relu"), layers.Flatten(name="f"))
    }
    assert said == {
        "frozen": "is frozen: trainable = False",
        "small": "has no more than 6 weights",
        "dw": "layers of type DepthwiseConv2D cannot be clustered",
        "relu": "skipped: 're*'",
        "f": "has no kernel to cluster",
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"skip": ("nothing",)}, "skip: no layer is named 'nothing'; there are conv"),
        ({"per_layer": {"nothing": 4}}, "per_layer: no layer is named 'nothing'"),
        ({"per_layer": {"flatten": 4}}, "'flatten' cannot be clustered: has no kernel"),
        ({"skip": ("*",)}, "cluster: nothing is left to cluster"),
    ],
)
def test_names_that_cannot_be_meant_are_one_line(tiny_task, fields, said):
    model = network()
    model.layers[1]._name = "flatten"
    with pytest.raises(UserError) as caught:
        cluster(model, step(**fields), tiny_task, seed=0)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
