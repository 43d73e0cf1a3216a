"""Keras model in, ONNX model out, with the same numbers."""
