"""What is found in a config before anything is loaded."""

import pytest

from compress.networks.embedded_code import embedded_code


def dense(**more):
    return {"class_name": "Dense", "module": "keras.layers", "config": {"name": "d"}, **more}


@pytest.mark.parametrize(
    "module",
    [
        "keras", "keras.layers", "keras.initializers", "keras.src.ops.numpy",
        "keras.src.engine.functional", "tf_keras.src.layers.core.tf_op_layer",
    ],
)  # fmt: skip
def test_keras_own_layers_are_safe(module):
    assert list(embedded_code({"layers": [dense(module=module)]})) == []


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"class_name": "Lambda", "config": {"name": "twice"}}, "the Lambda layer 'twice'"),
        (
            {"class_name": "TimeDistributed", "config": {"layer": {"class_name": "Lambda", "config": {"name": "in"}}}},
            "the Lambda layer 'in'",
        ),
        (dense(class_name="TorchModuleWrapper"), "the TorchModuleWrapper layer 'd'"),
        ({"class_name": "__lambda__", "config": {"value": "4wE="}}, "a Python lambda stored as bytecode"),
        (dense(module="os"), "of the module 'os'"),
        (dense(module="my_net.layers"), "of the module 'my_net.layers'"),
        (dense(module="keras.utils"), "of the module 'keras.utils'"),
        (dense(module="keras.src.utils.file_utils"), "of the module 'keras.src.utils.file_utils'"),
        (dense(module="keras_evil.layers"), "of the module 'keras_evil.layers'"),
        (dense(module="builtins", class_name="function", config="exec"), "the function 'exec'"),
        (dense(module=None, registered_name="Mine>Dense"), "the registered object 'Mine>Dense'"),
        ({"class_name": "TFOpLambda", "config": {"name": "w", "function": "io.write_file"}}, "the layer 'w'"),
        ({"class_name": "ClassMethod", "config": {"name": "c", "cls_ref": "data.Dataset"}}, "the layer 'c'"),
    ],
)  # fmt: skip
def test_code_is_found_wherever_it_lies(entry, reason):
    (found,) = embedded_code({"class_name": "Sequential", "config": {"layers": [dense(), entry]}})
    assert reason in found


@pytest.mark.parametrize("function", ["__operators__.add", "math.multiply", "nn.relu6", "reshape"])
def test_arithmetic_of_tensorflow_is_safe(function):
    entry = {"class_name": "TFOpLambda", "config": {"name": "op", "function": function}}
    assert list(embedded_code(entry)) == []


def test_a_custom_loss_is_no_reason_to_refuse_because_it_is_not_loaded():
    loss = {"class_name": "function", "module": "builtins", "config": "my_loss"}
    assert list(embedded_code(dense(compile_config={"loss": loss}))) == []
