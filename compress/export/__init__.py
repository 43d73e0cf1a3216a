"""Keras model in, ONNX model out, with the same numbers."""

from compress.export.facts import layer_facts
from compress.export.metadata import with_metadata
from compress.export.parity import require_parity
from compress.export.tidy import tidy
from compress.export.to_onnx import to_onnx

__all__ = ["layer_facts", "require_parity", "tidy", "to_onnx", "with_metadata"]
