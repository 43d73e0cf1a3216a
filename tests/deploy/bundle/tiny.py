"""A run with one bundled variant, small enough to check by hand: which of three values is largest."""

import msgspec
import numpy as np

from deploy.bundle.make import bundle_model
from deploy.evalset import EvalSet
from deploy.preprocess import Reshape, Scale
from deploy.record import Goal, sha256_of
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


SIDE = 4
GOALS = {
    "multi_label": Goal(task="multi_label", metric="f1_macro"),
    "regression": Goal(task="regression", metric="mae", unit="lux"),
    "reconstruction": Goal(task="reconstruction", metric="roc_auc"),
}


def bundle_of(task, folder):
    """Bundle a model of another task, on images of 4 × 4 bytes; return the .lship file.

    It says which half is lit (multi-label), the mean light (regression), or all but the last row
    of its input, so that light there is an anomaly.
    """
    pixels = SIDE * SIDE
    left = np.tile(np.arange(SIDE) < SIDE // 2, SIDE)
    weights = {
        "multi_label": np.stack([left, ~left], axis=1) * 2,
        "regression": np.full((pixels, 1), 1 / pixels),
        "reconstruction": np.diag(np.arange(pixels) < pixels - SIDE),
    }[task].astype(np.float32)
    names = {"multi_label": ("left", "right"), "regression": ("light",)}
    about = msgspec.structs.replace(
        ABOUT,
        preprocess=(Reshape(shape=(pixels,)), Scale(factor=1 / 255)),
        labels=names.get(task, ("normal", "anomaly")),
        goal=GOALS[task],
    )
    nodes = [("Gemm", ["x", "w", "b"], ["sums" if task == "multi_label" else "scores"])]
    if task == "multi_label":
        nodes.append(("Sigmoid", ["sums"], ["scores"]))
    content = tiny_onnx.model(
        nodes,
        inputs={"x": ("float32", ("batch", pixels))},
        outputs={"scores": ("float32", ("batch", weights.shape[1]))},
        initializers={
            "w": weights,
            "b": np.full(weights.shape[1], -4.0 if task == "multi_label" else 0, np.float32),
        },
        metadata=about.to_props(),
    )
    x = np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE), dtype=np.uint8)
    x[::2, -1] = 0
    truth = {
        "multi_label": np.stack([x[..., :2].mean(axis=(1, 2)), x[..., 2:].mean(axis=(1, 2))], 1)
        > 128,
        "regression": x.mean(axis=(1, 2), keepdims=True)[:, 0] / 255,
        "reconstruction": x[:, -1].any(axis=1),
    }[task]
    y = truth.astype(np.float32 if task == "regression" else np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    EvalSet(x=x, y=y).save(folder / "test.npz")
    bundle_model(folder / "model.onnx", folder / "test.npz", folder / f"{task}.lship")
    return folder / f"{task}.lship"
