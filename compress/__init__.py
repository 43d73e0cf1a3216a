"""Train, prune, quantize and export networks; TensorFlow is imported only inside functions."""

import os

# TensorFlow takes oneDNN's kernels by itself on recent Intel processors alone; they are faster on
# others too (docs/training.md). Read when TensorFlow is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
