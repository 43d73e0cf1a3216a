"""Which network: a name, a file or a function, turned into a model."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import msgspec
from typing_extensions import assert_never

from compress.networks.autoencoder import Autoencoder, build_autoencoder
from compress.networks.ds_cnn import DsCnn, build_ds_cnn
from compress.networks.fitted import fitted_to_task
from compress.networks.heads import Head
from compress.networks.keras_file import KerasFile, load_keras
from compress.networks.lenet import LeNet5, LeNet300100, build_lenet_5, build_lenet_300_100
from compress.networks.mlp import Mlp, build_mlp
from compress.networks.mobilenet import MobileNetV1, build_mobilenet_v1
from compress.networks.python_function import PythonFunction, call_function
from compress.networks.resnet import ResNet8, build_resnet_8
from deploy.errors import UserError, needs_extra

Network = (
    Mlp
    | LeNet300100
    | LeNet5
    | ResNet8
    | MobileNetV1
    | DsCnn
    | Autoencoder
    | KerasFile
    | PythonFunction
)

_REFERENCES = (Mlp(), LeNet300100(), LeNet5(), ResNet8(), MobileNetV1(), DsCnn(), Autoencoder())


def build(  # noqa: C901  (one case a network)
    network: Network,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    head: Head = Head(),
) -> Any:
    """Return the network as an uncompiled ``tf_keras.Model`` that gives what the task asks for.

    That is one probability a class, one a label, one value a target, or the sample anew.

    Sets the global seeds of Python, numpy and TensorFlow: the same seed gives the same weights.
    A network from a file keeps the weights of the file.

    Args:
        network: which one.
        input_shape: shape of one preprocessed sample, without the batch axis.
        classes: how many classes, at least 2; or how many labels or targets.
        seed: seed of the initial weights.
        head: what it ends in. A network from a file answers in the targets' unit already.

    Raises:
        UserError: if the network cannot take samples of this shape, or the user's own network
            cannot be had or does not fit the task.
        MissingExtraError: if TensorFlow is not installed.
    """
    if classes < 2 and head.task == "classification":
        raise UserError(f"classes: a classifier needs at least 2, got {classes}")
    with needs_extra("compress"):
        import tf_keras
    tf_keras.utils.set_random_seed(seed)
    match network:
        case Mlp():
            return build_mlp(network, input_shape=input_shape, classes=classes, head=head)
        case LeNet300100():
            return build_lenet_300_100(network, input_shape=input_shape, classes=classes, head=head)
        case LeNet5():
            return build_lenet_5(network, input_shape=input_shape, classes=classes, head=head)
        case ResNet8():
            return build_resnet_8(network, input_shape=input_shape, classes=classes, head=head)
        case MobileNetV1():
            return build_mobilenet_v1(network, input_shape=input_shape, classes=classes, head=head)
        case DsCnn():
            return build_ds_cnn(network, input_shape=input_shape, classes=classes, head=head)
        case Autoencoder():
            return build_autoencoder(network, input_shape=input_shape, head=head)
        case KerasFile():
            model = load_keras(Path(network.path), trust_code=network.trust_code)
            return fitted_to_task(
                model,
                input_shape=input_shape,
                classes=classes,
                where=network.path,
                head=Head(task=head.task),
            )
        case PythonFunction():
            model = call_function(network, input_shape=input_shape, classes=classes)
            return fitted_to_task(
                model,
                input_shape=input_shape,
                classes=classes,
                where=network.function,
                head=head,
            )
        case _:
            assert_never(network)


def parse_network(text: str, *, trust_code: bool = False) -> Network:
    """Return the network that a command line names.

    Args:
        text: the name of a reference network, ``keras:PATH``, or ``module:function``.
        trust_code: goes into the config of a ``keras:PATH``.

    Raises:
        UserError: if the name is not known, or what stands around the colon is no module and
            function.

    >>> parse_network("lenet_5")
    LeNet5()
    >>> parse_network("keras:model.keras")
    KerasFile(path='model.keras', trust_code=False)
    >>> parse_network("nets.small:make")
    PythonFunction(function='nets.small:make')
    """
    known = {_kind(reference): reference for reference in _REFERENCES}
    prefix, colon, rest = text.partition(":")
    if text in known:
        return known[text]
    if prefix == "keras" and rest:
        return KerasFile(path=rest, trust_code=trust_code)
    if colon and prefix != "keras":
        try:
            return msgspec.convert({"kind": "function", "function": text}, PythonFunction)
        except msgspec.ValidationError:
            raise UserError(
                f"network {text!r}: needs module:function in Python names, such as nets.small:make"
            ) from None
    if text.endswith((".keras", ".h5", ".hdf5")):
        raise UserError(f"network {text!r}: a file is written keras:{text}")
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"network {text!r} is not known: {hint}"
        f"there are {', '.join(known)}, keras:PATH and module:function"
    )


def _kind(network: Network) -> str:
    return str(network.__struct_config__.tag)
