"""Measure and ship models with numpy and ONNX Runtime alone."""
