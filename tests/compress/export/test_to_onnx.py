import numpy as np
import pytest
import tf_keras

from compress.export.parity import require_parity
from compress.export.to_onnx import to_onnx
from deploy.errors import UserError
from deploy.session import open_model

L = tf_keras.layers


def trained(model):
    """Give a model weights and BatchNorm statistics that are not those it starts with."""
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            (weight + rng.uniform(0.1, 0.4, weight.shape)).astype(np.float32)
            for weight in model.get_weights()
        ]
    )
    return model


@pytest.fixture(scope="module")
def lenet():
    return trained(
        tf_keras.Sequential(
            [
                L.Input((8, 8, 1), name="image"),
                L.Conv2D(4, 3, name="conv1"),
                L.MaxPooling2D(2, name="pool1"),
                L.Flatten(name="flatten"),
                L.Dense(6, activation="relu", name="dense1"),
                L.Dense(3, activation="softmax", name="dense2"),
            ]
        )
    )


@pytest.fixture(scope="module")
def residual():
    """Depthwise with bias and BatchNorm, an Add, and one nested model called twice."""
    inner = tf_keras.Sequential(
        [
            L.Input((8, 8, 2)),
            L.DepthwiseConv2D(3, padding="same", name="depthwise"),
            L.BatchNormalization(name="norm"),
            L.ReLU(6.0, name="relu"),
        ],
        name="inner",
    )
    image = L.Input((8, 8, 2), name="image")
    x = L.Add(name="add")([inner(image), inner(inner(image))])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return trained(tf_keras.Model(image, L.Dense(3, activation="softmax", name="scores")(x)))


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def names(proto):
    return [node.name for node in proto.graph.node]


def dimensions(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("network", ["lenet", "residual"])
def test_the_onnx_model_gives_what_keras_gives(network, request):
    model = request.getfixturevalue(network)
    x = np.random.default_rng(1).random((5, *model.input_shape[1:]), dtype=np.float32)
    exported = open_model(to_onnx(model).SerializeToString())
    require_parity(lambda x: model(x).numpy(), exported.run, x, tolerance=1e-5)


def test_input_and_output_keep_their_keras_names_and_only_the_batch_is_free(lenet):
    proto = to_onnx(lenet)
    (graph_input,), (graph_output,) = proto.graph.input, proto.graph.output
    assert (graph_input.name, dimensions(graph_input)) == ("image", ["batch", 8, 8, 1])
    assert (graph_output.name, dimensions(graph_output)) == ("dense2", ["batch", 3])


def test_nodes_and_weights_are_called_as_in_keras(lenet):
    proto = to_onnx(lenet)
    assert {"conv1", "pool1", "dense1", "dense1/relu", "dense2", "dense2/softmax"} <= set(
        names(proto)
    )
    assert {"conv1/kernel", "conv1/bias", "dense1/kernel", "dense1/bias"} <= {
        tensor.name for tensor in proto.graph.initializer
    }


def test_every_name_is_unique(residual):
    proto = to_onnx(residual)
    tensors = [name for node in proto.graph.node for name in node.output]
    tensors += [tensor.name for tensor in proto.graph.initializer]
    assert len(set(names(proto))) == len(names(proto))
    assert len(set(tensors)) == len(tensors)


def test_a_depthwise_convolution_keeps_its_name_when_batchnorm_is_folded_into_it(residual):
    proto = to_onnx(residual)
    assert "BatchNormalization" not in operators(proto)
    assert "inner/depthwise" in names(proto)
    assert not [name for name in names(proto) if "norm" in name]


def test_an_image_of_one_channel_needs_no_transpose_at_the_input(lenet):
    assert operators(to_onnx(lenet)).count("Transpose") == 1  # the one that flattens as Keras does


def test_dense_layers_are_gemms(lenet):
    assert operators(to_onnx(lenet)).count("Gemm") == 2
    assert "MatMul" not in operators(to_onnx(lenet))


def test_equal_models_give_equal_bytes(lenet):
    twin = tf_keras.models.clone_model(lenet)
    twin.set_weights(lenet.get_weights())
    assert to_onnx(lenet).SerializeToString() == to_onnx(twin).SerializeToString()


def test_the_keras_model_is_left_alone(lenet):
    weights = [weight.copy() for weight in lenet.get_weights()]
    to_onnx(lenet)
    assert all(map(np.array_equal, weights, lenet.get_weights()))
    assert (lenet.input_names, lenet.output_names) == (["image"], ["dense2"])


@pytest.mark.parametrize("opset", [13, 18])
def test_the_file_states_the_opset_that_was_asked_for(lenet, opset):
    proto = to_onnx(lenet, opset=opset)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    open_model(proto.SerializeToString())


@pytest.mark.parametrize("opset", [12, 19])
def test_an_opset_out_of_range_is_refused(lenet, opset):
    with pytest.raises(UserError, match=f"opset: must be 13 to 18, got {opset}"):
        to_onnx(lenet, opset=opset)


class Betainc(tf_keras.layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.betainc(1.0 + 0 * x, 2.0 + 0 * x, tf.sigmoid(x))


def test_a_layer_that_onnx_cannot_express_is_named(caplog, capfd):
    model = tf_keras.Sequential([L.Input((4,)), L.Dense(4, name="dense"), Betainc(name="odd")])
    with pytest.raises(UserError, match="layer 'odd': its TensorFlow operator Betainc") as caught:
        to_onnx(model)
    assert "\n" not in str(caught.value)
    assert not caplog.records
    assert "Betainc" not in "".join(capfd.readouterr())


def test_two_outputs_are_refused():
    x = L.Input((4,))
    model = tf_keras.Model(x, [L.Dense(2)(x), L.Dense(2)(x)])
    with pytest.raises(UserError, match="one input and one output, got 1 and 2"):
        to_onnx(model)


def test_a_free_axis_beside_the_batch_is_refused():
    model = tf_keras.Sequential([L.Input((None, None, 1)), L.Conv2D(2, 3)])
    with pytest.raises(UserError, match="only the batch axis may be free"):
        to_onnx(model)


def test_a_model_without_an_input_shape_is_refused():
    with pytest.raises(UserError, match="input shape is not known"):
        to_onnx(tf_keras.Sequential([L.Dense(2)]))
