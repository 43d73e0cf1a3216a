"""An export that is proven on the spot: same samples, same numbers."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.export.parity import require_parity
from compress.export.to_onnx import NEWEST_OPSET, OLDEST_OPSET, to_onnx
from deploy.errors import UserError
from deploy.record import Record
from deploy.session import open_model


class Export(Record, frozen=True):
    """How a Keras model becomes ONNX."""

    opset: Annotated[int, Meta(ge=OLDEST_OPSET, le=NEWEST_OPSET)] = 17
    tolerance: Annotated[float, Meta(gt=0, le=1)] = 1e-4
    """Largest difference from Keras allowed in any output; of outputs above 1, a share of the largest."""


def export(model: Any, settings: Export, samples: npt.NDArray[Any]) -> Any:
    """Return a tf-keras model as an ``onnx.ModelProto`` that gives the same numbers.

    Args:
        model: a built tf-keras model; left alone.
        settings: opset and tolerance.
        samples: real preprocessed samples ``(n, ...)`` on which Keras and ONNX Runtime, opened as
            it ships, are compared.

    Raises:
        UserError: if the model cannot be exported, or takes other samples than these.
        ParityError: if any output differs by more than the tolerance, as ``require_parity`` has it.
    """
    exported = to_onnx(model, opset=settings.opset)

    def keras(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(model(x, training=False))

    opened = open_model(exported.SerializeToString())
    if samples.shape[1:] != opened.input_shape:
        raise UserError(
            f"model {model.name!r}: takes samples of shape {opened.input_shape}, but those of the "
            f"data have {samples.shape[1:]} after preprocessing; give the data that it was made for"
        )
    require_parity(keras, opened.run, opened.cast(samples), tolerance=settings.tolerance)
    return exported
