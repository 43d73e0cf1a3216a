"""ONNX models in ORT's own format, which a reduced build of ONNX Runtime can open.

The file holds the optimised graph: whoever opens it optimises nothing any more, so no session
option can undo what was excluded from quantization.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from deploy.errors import ParityError, UserError, needs_extra
from deploy.record import SessionOptions
from deploy.session import open_model, random_inputs, start_session
from deploy.tflite import is_tflite

PARITY = 1e-6
"""Largest difference from the ONNX model; layouts of memory may change the order of additions."""
_IDENTIFIER = b"ORTM"
_SAMPLES = 16


def is_ort(start: bytes) -> bool:
    """Say whether bytes begin as an ORT file does; the first 8 are looked at."""
    return start[4:8] == _IDENTIFIER


def to_ort(content: bytes, options: SessionOptions = SessionOptions()) -> bytes:
    """Return an ONNX model as an ORT file with the same answers.

    Optimised with the options that ship, but for the layout of memory that depends on the
    processor (NCHWc): the file runs on every machine, and float convolutions run slower than from
    the ONNX file where that layout pays. ONNX Runtime lays the same graph out in another order
    each time, so equal models do not give equal bytes.

    Args:
        content: the bytes of an ONNX model.
        options: how it ships: what these keep in float stays in float.

    Raises:
        UserError: if ONNX Runtime does not open the model, or cannot keep it in this format.
        ParityError: if a score differs by more than ``PARITY`` from the ONNX model's on random
            inputs.
    """
    import tempfile  # here: who opens a bundle asks this room only whether bytes are an ORT file

    if is_ort(content[:8]):
        raise UserError("model: is in ORT format already; give the ONNX model")
    if is_tflite(content[:8]):
        raise UserError("model: is a LiteRT model, which has no ORT form; give an ONNX model")
    reference = open_model(content, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ort")

        def prepare(settings: ort.SessionOptions) -> None:
            settings.add_session_config_entry("session.save_model_format", "ORT")
            settings.optimized_model_filepath = str(path)

        try:
            start_session(content, options, prepare, disabled_optimizers=["NchwcTransformer"])
        # The exceptions of ONNX Runtime's C extension share no base class below Exception.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model: ONNX Runtime cannot keep it in ORT format: {reason}"
            ) from error
        converted = path.read_bytes()
    made = open_model(converted, options)
    inputs = random_inputs(reference, reference.fixed_batch or _SAMPLES, seed=0)
    expected = np.asarray(reference.run(inputs), np.float64)
    difference = float(np.abs(expected - np.asarray(made.run(inputs), np.float64)).max())
    if not difference <= PARITY * max(1.0, float(np.abs(expected).max())):
        raise ParityError(f"in ORT format the model answers otherwise, by {difference:.3g}")
    return converted


def required_operators(content: bytes) -> str:
    """Return what a reduced build has to be given: the operators and types of an ORT file.

    It goes to ONNX Runtime's ``build.py --include_ops_by_config FILE --enable_reduced_operator_type_support``.

    Raises:
        MissingExtraError: if ``flatbuffers`` is not installed, which comes with the extra.
    """
    import logging
    import tempfile
    import warnings

    with needs_extra("compress"):
        import flatbuffers  # noqa: F401  # what the tool below reads the file with
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with tempfile.TemporaryDirectory() as folder:
        path, config = Path(folder, "model.ort"), Path(folder, "model.config")
        path.write_bytes(content)
        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # it tells of itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file open
            create_config_from_models([path], config, enable_type_reduction=True)
        lines = config.read_text(encoding="utf-8").splitlines()
    # The head names the tool's temporary files and the time.
    return "\n".join(line for line in lines if not line.startswith("#")) + "\n"
