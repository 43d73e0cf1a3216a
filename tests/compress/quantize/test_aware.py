"""Training with int8 rounding in the loop, and the file that comes of it."""

import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from compress import steps
from compress.data.task import Task
from compress.export.proven import Export
from compress.export.to_onnx import to_onnx
from compress.networks import load_keras
from compress.quantize.as_trained import require_as_planned, require_as_trained
from compress.quantize.aware import (
    QuantizeAware,
    _grid_before,
    _nudged,
    learned,
    quantize_aware,
)
from compress.quantize.fold import fold_batch_norm
from compress.quantize.learned_ranges import INPUT
from compress.quantize.static import QuantizeStatic, quantize_static
from compress.steps import exported, keras_step, reasons_left_alone
from compress.train.fit import Fit, fit
from compress.train.optimizers import Adam, Sgd
from deploy.errors import ParityError, UserError
from deploy.graph import array_of
from deploy.kernels import int8_layers, why_not_int8
from deploy.session import open_model

FINE_TUNE = Fit(epochs=1, batch_size=32, optimizer=Adam(learning_rate=1e-4))
STEP = QuantizeAware(fine_tune=FINE_TUNE, target="x86-vnni")


def plain():
    return [
        layers.Conv2D(8, 3, activation="relu", name="conv1"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(3, activation="softmax", name="scores"),
    ]


def normed():
    return [
        layers.Conv2D(8, 3, use_bias=False, name="conv1"),
        layers.BatchNormalization(name="bn1"),
        layers.ReLU(6.0, name="relu1"),
        layers.DepthwiseConv2D(3, padding="same", name="dw"),
        layers.BatchNormalization(name="bn2"),
        layers.Activation("relu", name="relu2"),
        layers.GlobalAveragePooling2D(name="mean"),
        layers.Dense(3, name="scores"),
        layers.Softmax(name="softmax"),
    ]


def model_of(stack, task: Task, epochs=2):
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential([layers.Input(task.input_shape), *stack])
    fit(model, task, Fit(epochs=epochs, batch_size=16, optimizer=Adam(learning_rate=0.01)), seed=0)
    return model


def residual(task: Task):
    """Branches, an Add, a Concatenate, a model in the model and a layer called twice."""
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input(task.input_shape)
    inner = tf_keras.Sequential(
        [layers.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="conv"), layers.ReLU()],
        name="inner",
    )
    shared = layers.Conv2D(4, 1, name="shared")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU()(x)
    y = layers.Add(name="add")([inner(x), shared(x)])
    y = layers.Concatenate(name="both")([shared(y), x])
    y = layers.Flatten()(layers.AveragePooling2D(name="mean")(y))
    model = tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="scores")(y))
    fit(model, task, Fit(epochs=2, batch_size=16, optimizer=Adam(learning_rate=0.01)), seed=0)
    return model


def trained_for_int8(model, task, step=STEP):
    made, history = keras_step(model, step, task, seed=0)
    assert len(history.epochs) == step.fine_tune.epochs
    return made


def answers(model, x):
    if isinstance(model, onnx.ModelProto):
        opened = open_model(model.SerializeToString())
        return opened.run(opened.cast(x))
    return np.asarray(model(x, training=False))


def classes(model, x):
    return answers(model, x).argmax(1)


def weights(model):
    return {tensor.name: array_of(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def made(tiny_task):
    """A network that was trained, trained for int8, and its file."""
    model = model_of(normed(), tiny_task)
    aware = trained_for_int8(model, tiny_task)
    return model, aware, exported(aware, STEP, Export(), tiny_task)[0]


def test_the_file_chooses_the_classes_that_keras_chose(made, tiny_task):
    _, aware, file = made
    different = classes(file, tiny_task.test.x) != classes(aware, tiny_task.test.x)
    assert different.sum() <= 1  # a tie may fall to either side


def test_channels_of_very_different_sizes_do_not_ruin_the_training(tiny_task, monkeypatch):
    """As folded BatchNorms leave them: one learning rate is too large for some and too small for others."""
    model = model_of(plain(), tiny_task, epochs=4)
    sizes = np.geomspace(1e-2, 1e2, 8, dtype=np.float32)
    conv, scores = model.get_layer("conv1"), model.get_layer("scores")
    kernel, bias = conv.get_weights()
    conv.set_weights([kernel * sizes, bias * sizes])
    kernel, bias = scores.get_weights()
    uneven = kernel.reshape(-1, 8, 3) / sizes[:, None]
    scores.set_weights([uneven.reshape(kernel.shape), bias])
    fine_tune = Fit(epochs=1, batch_size=16, optimizer=Sgd(learning_rate=0.02, momentum=0.9))
    step = QuantizeAware(fine_tune=fine_tune, target="x86-vnni")

    def loss():
        _, history = keras_step(model, step, tiny_task, seed=0)
        return history.epochs[0]["loss"]

    even = loss()
    monkeypatch.setattr("compress.quantize.aware.balanced", lambda model: model)
    assert even < loss() / 10


def test_every_layer_runs_as_int8(made):
    _, _, file = made
    assert set(int8_layers(file, target="x86-vnni")) == {"conv1", "dw", "scores"}
    assert why_not_int8(file, target="x86-vnni") == {}


def test_the_file_is_no_larger_than_that_of_post_training_quantization(made, tiny_task):
    model, _, file = made
    after = quantize_static(to_onnx(model), QuantizeStatic(target="x86-vnni"), tiny_task)
    # A few bytes of names: a layer without a name of its own is numbered.
    assert len(file.SerializeToString()) <= len(after.SerializeToString()) + 8


def test_the_weights_lie_on_one_grid_a_channel(made):
    _, aware, _ = made
    kernel = aware.get_layer("conv1").kernel.numpy()
    scale = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(kernel / scale, np.rint(kernel / scale), atol=1e-3)


@pytest.mark.parametrize("step", [STEP, QuantizeAware(fine_tune=FINE_TUNE, keep_clusters=True)])
def test_the_biases_are_those_that_the_file_stores(step, tiny_task):
    """The file adds them in steps of the products, which are large where weights are."""
    model = model_of(normed(), tiny_task)
    for layer in (model.get_layer("conv1"), model.get_layer("dw")):
        kernel, *rest = layer.get_weights()
        kernel[..., 0] *= 20
        layer.set_weights([kernel, *rest])
    aware = trained_for_int8(model, tiny_task, step)
    file, _ = exported(aware, step, Export(), tiny_task)
    stored = weights(file)
    biases = {n: b for n, b in stored.items() if b.dtype == np.int32 and not n.endswith("_point")}
    assert len(biases) == 3
    for name, bias in biases.items():
        step_of_sums = stored[f"{name}_scale"].astype(np.float64)
        trained = aware.get_layer(name.split("/")[0]).bias.numpy()
        assert np.abs(bias - trained / step_of_sums).max() < 0.01


def test_a_bias_lies_on_the_grid_of_the_call_that_feeds_it():
    """One pooling layer is called for two branches: each dense layer is given its own branch."""
    image = tf_keras.Input((8, 8, 1))
    pool, flatten = layers.MaxPooling2D(2), layers.Flatten()
    left, right = (layers.Conv2D(2, 3, activation="relu", name=n)(image) for n in ("a", "b"))
    given = [flatten(pool(branch)) for branch in (left, right)]
    heads = [layers.Dense(3, name=f"head_{n}")(x) for n, x in zip("ab", given, strict=True)]
    model = tf_keras.Model(image, layers.Add()(heads))
    assert [_grid_before(model.get_layer(f"head_{n}")) for n in "ab"] == ["a", "b"]
    assert _grid_before(model.get_layer("a")) == INPUT


def test_the_saved_model_is_plain_keras(made, tiny_task, tmp_path):
    _, aware, _ = made
    aware.save(tmp_path / "aware.keras")
    again = load_keras(tmp_path / "aware.keras")
    np.testing.assert_array_equal(
        np.asarray(again(tiny_task.test.x)), np.asarray(aware(tiny_task.test.x))
    )


def test_the_model_that_is_trained_on_is_left_alone(tiny_task):
    model = model_of(plain(), tiny_task, epochs=1)
    before = model.get_weights()
    trained_for_int8(model, tiny_task)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_equal_seeds_give_equal_weights(tiny_task):
    model = model_of(plain(), tiny_task, epochs=1)
    first, second = (trained_for_int8(model, tiny_task).get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_branches_nested_and_shared_layers_become_int8(tiny_task):
    model = residual(tiny_task)
    aware = trained_for_int8(model, tiny_task)
    file, _ = exported(aware, STEP, Export(), tiny_task)
    assert why_not_int8(file, target="x86-vnni") == {}
    assert {"stem", "inner/conv", "scores"} <= set(int8_layers(file, target="x86-vnni"))


@pytest.mark.parametrize("target", ["x86-avx2", "arm64"])
def test_other_targets_get_their_own_grid(target, tiny_task):
    step = QuantizeAware(fine_tune=FINE_TUNE, target=target)
    aware = trained_for_int8(model_of(plain(), tiny_task), tiny_task, step)
    file, _ = exported(aware, step, Export(), tiny_task)
    largest = max(
        np.abs(w.astype(int)).max()
        for w in weights(file).values()
        if w.dtype == np.int8 and w.ndim > 1
    )
    assert largest == (64 if target == "x86-avx2" else 127)
    zero_points = {w.dtype for name, w in weights(file).items() if "conv1:0_zero_point" in name}
    assert zero_points <= {np.dtype(np.int8 if target == "arm64" else np.uint8)}


def test_zeros_stay_zero_down_to_the_bytes(tiny_task):
    model = model_of(plain(), tiny_task)
    layer = model.get_layer("conv1")
    kernel, bias = layer.get_weights()
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.6)] = 0
    layer.set_weights([kernel, bias])
    file, _ = exported(trained_for_int8(model, tiny_task), STEP, Export(), tiny_task)
    (stored,) = (w for name, w in weights(file).items() if name.startswith("conv1/kernel_quant"))
    assert (stored == 0).mean() >= (kernel == 0).mean()
    zeros = (kernel == 0).transpose(3, 2, 0, 1)
    assert (stored[zeros] == 0).all()


def test_clusters_stay_few_down_to_the_bytes(tiny_task):
    model = model_of(plain(), tiny_task)
    for name in ("conv1", "scores"):
        layer = model.get_layer(name)
        kernel, bias = layer.get_weights()
        centres = np.quantile(kernel, np.linspace(0.05, 0.95, 6)).astype(np.float32)
        nearest = np.abs(kernel[..., None] - centres).argmin(-1)
        layer.set_weights([centres[nearest], bias])
    step = QuantizeAware(fine_tune=FINE_TUNE, target="x86-vnni", keep_clusters=True)
    file, _ = exported(trained_for_int8(model, tiny_task, step), step, Export(), tiny_task)
    kernels = [w for name, w in weights(file).items() if "kernel_quantized" in name]
    assert len(kernels) == 2
    assert all(len(np.unique(kernel)) <= 6 for kernel in kernels)
    assert why_not_int8(file, target="x86-vnni") == {}


def test_an_excluded_layer_stays_float_and_is_the_only_one(tiny_task):
    step = QuantizeAware(fine_tune=FINE_TUNE, target="x86-vnni", exclude=("conv1",))
    model = model_of(normed(), tiny_task)
    aware = trained_for_int8(model, tiny_task, step)
    file, _ = exported(aware, step, Export(), tiny_task)
    assert set(int8_layers(file, target="x86-vnni")) == {"dw", "scores"}
    assert reasons_left_alone(model, step, aware)["conv1"] == "excluded by 'conv1'"


def test_a_layer_that_nobody_knows_stays_float_with_the_reason(tiny_task):
    stack = [
        layers.Conv2DTranspose(4, 3, name="up"),
        layers.SeparableConv2D(4, 3, name="sep"),
        *plain(),
    ]
    model = model_of(stack, tiny_task, epochs=1)
    aware = trained_for_int8(model, tiny_task)
    file, _ = exported(aware, STEP, Export(), tiny_task)
    reasons = reasons_left_alone(model, STEP, aware)
    assert set(reasons) == {"up", "sep"}
    assert "no int8 kernel that training could imitate" in reasons["sep"]
    assert {"conv1", "scores"} <= set(int8_layers(file, target="x86-vnni"))


@pytest.mark.parametrize(
    ("exclude", "line"), [("nothing", "no layer is named 'nothing'"), ("*", "no layer is left")]
)
def test_an_exclusion_of_nothing_or_all_is_refused(exclude, line, tiny_task):
    step = QuantizeAware(fine_tune=FINE_TUNE, exclude=(exclude,))
    model, _ = fold_batch_norm(tf_keras.Sequential([layers.Input(tiny_task.input_shape), *plain()]))
    with pytest.raises(UserError, match=line):
        quantize_aware(model, step, tiny_task, seed=0)


def test_a_file_with_other_weights_than_were_trained_is_refused(made, tiny_task):
    _, aware, file = made
    float_model, _ = learned(aware, STEP)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(file)
    (tensor,) = (t for t in wrong.graph.initializer if t.name.startswith("conv1/kernel_quant"))
    values = array_of(tensor).copy()
    values.flat[0] = values.flat[0] - 1 if values.flat[0] > 0 else values.flat[0] + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ParityError, match=r"'conv1'.*1 steps beside"):
        require_as_trained(wrong, to_onnx(float_model), aware, tiny_task.test.x)


def test_the_export_says_how_often_the_file_answers_as_keras(made, tiny_task):
    model, aware, file = made
    _, agreement = exported(aware, STEP, Export(), tiny_task)
    same = classes(file, tiny_task.test.x) == classes(aware, tiny_task.test.x)
    assert agreement == same.mean()
    assert exported(model, None, Export(), tiny_task)[1] is None


def test_a_file_that_chooses_other_classes_is_refused(made, tiny_task):
    _, aware, file = made
    float_model, found = learned(aware, STEP)
    mirrored = tf_keras.Sequential([aware, layers.Lambda(lambda p: p[:, ::-1])])
    with pytest.raises(ParityError, match="choose different classes"):
        require_as_trained(file, to_onnx(float_model), mirrored, tiny_task.test.x)
    assert found.one_scale is False


class Differing:
    """Answers as a Keras model does, but for another class of the first few samples."""

    def __init__(self, keras, few):
        self.keras, self.few = keras, few

    def predict(self, x, **how):
        answers = self.keras.predict(x, **how).copy()
        answers[: self.few] = np.roll(answers[: self.few], 1, axis=-1)
        return answers


def test_the_agreement_counts_the_samples_that_are_answered_otherwise(made, tiny_task):
    _, aware, file = made
    plain = to_onnx(learned(aware, STEP)[0])
    x = tiny_task.test.x
    same = classes(file, x) == classes(aware, x)
    x = x[same]  # a tie may fall to either side
    for few in (0, 3):
        assert require_as_trained(file, plain, Differing(aware, few), x) == 1 - few / len(x)
    with pytest.raises(ParityError, match=f"for 5 of {len(x)} samples"):
        require_as_trained(file, plain, Differing(aware, 5), x)
    assert require_as_trained(file, plain, aware, x, chooses_class=False) is None


def test_the_input_keeps_its_own_grid_where_the_first_layer_brings_it_into_form(tiny_task):
    """A convolution of one channel that no ReLU follows: its file begins by a Reshape of its name."""
    stack = [
        layers.Conv2D(4, 3, name="conv1"),
        layers.MaxPooling2D(name="pool"),
        layers.Flatten(name="flatten"),
        layers.Dense(3, activation="softmax", name="scores"),
    ]
    aware = trained_for_int8(model_of(stack, tiny_task), tiny_task)
    file, _ = exported(aware, STEP, Export(), tiny_task)
    _, found = learned(aware, STEP)
    first, after, *_ = (node for node in file.graph.node if node.op_type == "QuantizeLinear")
    stored = weights(file)
    for node, name in ((first, "(input)"), (after, "conv1")):
        low, high = found.ranges[name]
        assert stored[node.input[1]] == pytest.approx((high - low) / 255)
    np.testing.assert_allclose(
        answers(file, tiny_task.test.x), answers(aware, tiny_task.test.x), atol=0.02
    )


def test_a_file_with_fewer_int8_kernels_than_planned_is_refused(made, tiny_task):
    model, _, file = made
    floats = QuantizeStatic(target="x86-vnni", exclude=("dw",), exclusion="structural")
    fewer = quantize_static(to_onnx(model), floats, tiny_task)
    with pytest.raises(
        ParityError, match=r"2 of 3 planned int8 kernels .* layer 'dw': the file has it"
    ):
        require_as_planned(fewer, file, target="x86-vnni")
    require_as_planned(file, file, target="x86-vnni")


def test_a_file_that_training_made_larger_is_refused(made):
    _, _, file = made
    longer = onnx.ModelProto()
    longer.CopyFrom(file)
    longer.graph.node[0].doc_string = "more"
    with pytest.raises(ParityError, match=r"takes [\d,]+ bytes, more than the [\d,]+ of"):
        require_as_planned(longer, file, target="x86-vnni")


def test_how_protobuf_writes_a_zero_point_makes_no_file_larger(made):
    """A number of 128 takes a byte more than one of 127, a negative one ten."""
    _, _, file = made
    other = onnx.ModelProto()
    other.CopyFrom(file)
    for tensor in other.graph.initializer:
        if tensor.name.endswith("zero_point") and tensor.data_type == onnx.TensorProto.UINT8:
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, [], [200]))
    assert other.ByteSize() > file.ByteSize()
    require_as_planned(other, file, target="x86-vnni")


def test_the_export_compares_with_post_training_quantization(made, tiny_task, monkeypatch):
    _, aware, _ = made
    real, made_with = steps.quantize_static, []

    def smaller(model, static, task, **more):
        made_with.append(set(more))
        file = real(model, static, task, **more)
        if "learned" not in more:
            file.graph.node[0].name = ""
        return file

    monkeypatch.setattr(steps, "quantize_static", smaller)
    with pytest.raises(ParityError, match="of quantizing after training"):
        exported(aware, STEP, Export(), tiny_task)
    assert made_with == [{"learned", "ranges"}, {"ranges"}]


@pytest.mark.parametrize("ends", [(0.0, 6.0), (-1.3, 2.7), (-3.0, 0.0), (0.0, 0.0)])
def test_the_range_that_is_kept_is_the_one_that_tensorflow_rounds_to(ends):
    low, high = _nudged(*ends)
    x = tf.linspace(ends[0] - 0.1, ends[1] + 0.1, 301)
    if ends != (0.0, 0.0):
        got = tf.quantization.fake_quant_with_min_max_args(x, min=low, max=high)
        expected = tf.quantization.fake_quant_with_min_max_vars(x, *ends)
        # A tie may fall to either side.
        assert (np.abs(got - expected) < 1e-5).mean() > 0.99
        np.testing.assert_allclose(got, expected, atol=(high - low) / 254)
    assert low <= 0 <= high
