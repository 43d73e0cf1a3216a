"""What a ``.tflite`` file computes in int8, by the types in it."""

from __future__ import annotations

from pathlib import Path

from deploy.audit.found import Audit, AuditedLayer
from deploy.machine import this_target
from deploy.record import SessionOptions
from deploy.session import open_model
from deploy.tflite import computes_in_int8, layer_name, macs_of, read_tflite


def audit_tflite(path: Path, options: SessionOptions) -> Audit:
    """Return the audit of a ``.tflite`` file, as ``audit`` does."""
    opened = open_model(path, options)
    model = read_tflite(path.read_bytes())
    layers = []
    for op, weight in model.weighted():
        int8 = computes_in_int8(model, op, weight)
        layers.append(
            AuditedLayer(
                name=layer_name(op, model, weight),
                kind=op.kind,
                macs=macs_of(model, op, weight),
                kernel=op.kind,
                int8=int8,
                why_not=None if int8 else f"its weights are {weight.dtype} where it multiplies",
                remedy=None if int8 else 'convert with form = "int8"',
                time_us=None,
                reference_us=None,
            )
        )
    macs = sum(layer.macs or 0 for layer in layers)
    in_int8 = sum(layer.macs or 0 for layer in layers if layer.int8)
    count, share = sum(layer.int8 for layer in layers), in_int8 / macs if macs else 0.0
    return Audit(
        model=str(path),
        against=None,
        onnxruntime=None,
        litert=opened.runtime_version,
        target=this_target(),
        session=options,
        layers=tuple(layers),
        macs=macs,
        int8_macs=in_int8,
        int8_layers=count,
        conversions=sum(op.kind in {"QUANTIZE", "DEQUANTIZE"} for op in model.operators),
        pairs_left=0,
        layout_changes=0,
        float_islands=(),
        times=None,
        reference_times=None,
        speedup=None,
        verdict=(
            f"{count} of {len(layers)} layers with weights multiply int8 ({share:.1%} of the "
            "MACs), by the types in the file; LiteRT does not tell its kernels or their times: "
            "see lightship bench"
        ),
    )
