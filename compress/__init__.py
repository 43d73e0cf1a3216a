"""Train, prune, quantize and export networks; TensorFlow is imported only inside functions."""

import os
import platform

# TensorFlow takes oneDNN's kernels by itself where the processor has AVX512-VNNI; scripts/measure_kernels
# shows what they bring on other x86. Read when TensorFlow is first imported.
if platform.machine() in {"x86_64", "AMD64"}:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
