"""Train, prune, quantize and export networks; TensorFlow is imported only inside functions."""
