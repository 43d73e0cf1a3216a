"""Which network a command line names."""

import pytest

from compress.networks import (
    DsCnn,
    KerasFile,
    LeNet5,
    LeNet300100,
    Mlp,
    MobileNetV1,
    PythonFunction,
    ResNet8,
    build,
    parse_network,
)
from deploy.errors import UserError


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("mlp", Mlp()),
        ("lenet_300_100", LeNet300100()),
        ("lenet_5", LeNet5()),
        ("resnet_8", ResNet8()),
        ("mobilenet_v1", MobileNetV1()),
        ("ds_cnn", DsCnn()),
        ("keras:a folder/b.keras", KerasFile(path="a folder/b.keras")),
        ("keras:C:/b.h5", KerasFile(path="C:/b.h5")),
        ("nets.small:make", PythonFunction(function="nets.small:make")),
    ],
)
def test_a_name_a_file_and_a_function_are_told_apart(text, network):
    assert parse_network(text) == network


def test_trust_goes_into_the_config_of_a_file():
    assert parse_network("keras:b.keras", trust_code=True) == KerasFile(
        path="b.keras", trust_code=True
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lenet5", r"'lenet5' is not known: did you mean lenet_5\? there are mlp, lenet_300_100,"),
        ("transformer", r"'transformer' is not known: there are mlp"),
        ("", r"'' is not known"),
        ("keras:", r"'keras:' is not known.*keras:PATH"),
        ("model.keras", r"a file is written keras:model.keras"),
        ("my-nets:make", r"'my-nets:make': needs module:function"),
        (":make", r"':make': needs module:function"),
    ],
)
def test_what_is_no_network_is_refused_with_what_there_is(text, message):
    with pytest.raises(UserError, match=message):
        parse_network(text)


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_one_class_is_nothing_to_tell_apart(classes):
    with pytest.raises(UserError, match=f"classes: .* at least 2, got {classes}"):
        build(Mlp(), input_shape=(4,), classes=classes, seed=0)
