"""Proof that an int8 file holds what quantization-aware training has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import ParityError
from deploy.graph import array_of, producers, weighted_nodes
from deploy.kernels import int8_layers, why_not_int8
from deploy.machine import Target
from deploy.session import open_model

Array = npt.NDArray[Any]

AGREEMENT = 0.995
"""Share of the samples on which the file has to choose the class that Keras chooses."""
_FEW = 4
"""Samples that may differ in any case: among few, chance decides whether 0.5 % are reached."""
_APART = 0.05
"""Of outputs that choose no class: mean difference allowed, as a share of their standard deviation."""
_OFF_GRID = 0.05
"""Steps by which a weight may lie beside the grid: float32 rounds its scale; half a step is lost."""


def require_as_trained(
    quantized: Any, plain: Any, keras: Any, samples: Array, *, chooses_class: bool = True
) -> float | None:
    """Return the share of samples on which the int8 file and the Keras model choose one class.

    None where no class is chosen.

    Rounding to int8 has ties, which Keras and ONNX Runtime break differently, and one value that
    goes the other way moves the outputs by a step: outputs are not compared closer than that.

    Args:
        quantized: the int8 ``ModelProto``.
        plain: the float ``ModelProto`` of the trained weights, which lie on the int8 grid.
        keras: the model as it was trained, rounding its activations.
        samples: preprocessed, ``(n, ...)``.
        chooses_class: whether the largest output is the answer; else the values are compared.

    Raises:
        ParityError: if a stored weight is another one than was trained, or the classes of more
            than ``1 - AGREEMENT`` of the samples (of four, where they are few) differ.
    """
    _require_weights(quantized, plain)
    opened = open_model(quantized.SerializeToString())
    inputs = opened.cast(samples)
    expected = np.asarray(keras.predict(samples, batch_size=256, verbose=0))
    batch = opened.fixed_batch or 256
    runs = [opened.run(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    got = np.concatenate(runs)
    if not chooses_class:
        _require_values(got, expected)
        return None
    expected, got = expected.argmax(axis=-1), got.argmax(axis=-1)
    different = int((expected != got).sum())
    if different > max(_FEW, (1 - AGREEMENT) * expected.size):
        raise ParityError(
            f"the int8 file and the Keras model that was trained for it choose different classes "
            f"for {different} of {expected.size} samples, more than {1 - AGREEMENT:.1%}"
        )
    return 1 - different / int(expected.size)


def require_as_planned(quantized: Any, static: Any, *, target: Target | None = None) -> None:
    """Check that a trained int8 file runs what quantizing the same network afterwards would run.

    Training may choose better numbers; it must not cost a kernel or a byte.

    Args:
        quantized: the int8 ``ModelProto`` with what was trained.
        static: the same network, quantized by calibration in the same way.
        target: the machine whose kernels count; None means this one.

    Raises:
        ParityError: if a layer that is an int8 kernel of ``static`` runs in float, or the file is
            larger.
    """
    planned, running = (set(int8_layers(one, target=target)) for one in (static, quantized))
    if missing := sorted(planned - running):
        why = why_not_int8(quantized, target=target).get(missing[0], "the file has it in float")
        raise ParityError(
            f"{len(planned & running)} of {len(planned)} planned int8 kernels are in the optimised "
            f"graph; layer {missing[0]!r}: {why}"
        )
    ours, theirs = _size_bytes(quantized), _size_bytes(static)
    if ours > theirs:
        raise ParityError(
            f"the int8 file takes {ours:,} bytes, more than the {theirs:,} of quantizing after training"
        )


def _size_bytes(model: Any) -> int:
    """Return what nodes and stored values take; not how protobuf writes numbers, which hangs on them."""
    stored = sum(array_of(tensor).nbytes for tensor in model.graph.initializer)
    return stored + sum(int(node.ByteSize()) for node in model.graph.node)


def _require_values(got: Array, expected: Array) -> None:
    """Raise a ParityError if values of outputs lie further apart on average than rounding explains."""
    apart = float(np.abs(got - expected).mean())
    allowed = _APART * max(float(expected.std()), 1e-6)
    if not apart <= allowed:
        raise ParityError(
            f"the outputs of the int8 file and of the Keras model that was trained for it lie {apart:.3g} "
            f"apart on average, more than {allowed:.3g}, {_APART:.0%} of their standard deviation"
        )


def _require_weights(quantized: Any, plain: Any) -> None:
    """Raise a ParityError for the first layer whose stored weights are others than were trained."""
    trained = {found.node.name: array_of(found.weight) for found in weighted_nodes(plain.graph)}
    made_by = producers(quantized.graph)
    stored = {tensor.name: array_of(tensor) for tensor in quantized.graph.initializer}
    for found in weighted_nodes(quantized.graph):
        reader = made_by.get(found.node.input[1])
        expected = trained.get(found.node.name)
        if reader is None or reader.op_type != "DequantizeLinear" or expected is None:
            continue
        scale = stored[reader.input[1]].astype(np.float64)
        axis = next((a.i for a in reader.attribute if a.name == "axis"), 1)
        if scale.ndim and scale.size > 1:
            scale = scale.reshape([-1 if a == axis else 1 for a in range(expected.ndim)])
        steps = np.abs(stored[reader.input[0]].astype(np.float64) - expected / scale)
        if steps.max(initial=0) > _OFF_GRID:
            raise ParityError(
                f"layer {found.node.name!r}: the int8 file holds weights up to {steps.max():.2g} "
                "steps beside those that were trained"
            )
