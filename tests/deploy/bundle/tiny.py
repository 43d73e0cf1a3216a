"""A run with one bundled variant, small enough to check by hand: which of three values is largest."""

import msgspec
import numpy as np

from deploy.evalset import EvalSet
from deploy.preprocess import Reshape, Scale
from deploy.record import sha256_of
from deploy.session import ModelMetadata
from tests.deploy import tiny_onnx
from tests.deploy.report.example import example

LABELS = ("red", "green", "blue")
ABOUT = ModelMetadata(
    step={"kind": "quantize_static"},
    parent="ab" * 32,
    preprocess=(Reshape(shape=(3,)), Scale(factor=1 / 255)),
    labels=LABELS,
    data="colours",
    data_licence="CC0",
    versions={"numpy": "2.0"},
)


def model(about=ABOUT, **settings) -> bytes:
    return tiny_onnx.linear(8 * np.eye(3), metadata=about.to_props(), **settings)


def samples(count=60) -> EvalSet:
    """Images of one pixel row, whose class is the brightest of three channels."""
    y = np.arange(count) % 3
    x = np.random.default_rng(0).integers(0, 90, (count, 1, 3), dtype=np.uint8)
    x[np.arange(count), 0, y] += 150
    return EvalSet(x=x, y=y)


def write_model(folder, content=None):
    """Write model.onnx and test.npz; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model() if content is None else content)
    samples().save(folder / "test.npz")
    return folder / "model.onnx", folder / "test.npz"


def write_run(folder):
    """Write the run folder of the example; its baseline and pruned-int8 are the tiny model."""
    results = example()
    variants = []
    for variant in results.variants:
        path = folder / "variants" / variant.name / "model.onnx"
        content = model(msgspec.structs.replace(ABOUT, step=variant.step))
        write_model(path.parent, content)
        changed = msgspec.structs.replace(
            variant, path=f"variants/{variant.name}/model.onnx", sha256=sha256_of(path)
        )
        variants.append(changed)
    results = msgspec.structs.replace(results, variants=tuple(variants))
    (folder / "results.json").write_bytes(msgspec.json.encode(results))
    samples().save(folder / "test.npz")
    return results
