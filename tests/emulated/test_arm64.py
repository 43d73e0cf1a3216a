"""A bundle made on this machine answers the same on 64-bit Arm."""

import json
import platform

import numpy as np
import pytest

from compress.data.sources import Data
from compress.data.splits import load_task
from compress.export.metadata import with_metadata
from compress.export.proven import Export, export
from compress.networks import LeNet5, build
from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.layout import laid_out
from compress.quantize.static import QuantizeStatic
from compress.quantize.storage import WeightOnly
from compress.steps import onnx_step
from compress.train.fit import Fit, fit
from deploy.bundle.make import bundle_model
from deploy.evalset import EvalSet
from deploy.kernels import INT8_OPERATORS
from deploy.session import ModelMetadata, open_model
from tests.compress.quantize.applying import apply
from tests.compress.quantize.networks import images, network, task_with
from tests.emulated.processors import RASPBERRY_PI, on_arm64, said_by

pytestmark = pytest.mark.emulated

STEPS = (
    None,
    QuantizeStatic(target="arm64"),
    QuantizeStatic(target="arm64", per_channel=False, exclude=("stem",)),
    QuantizeStatic(target="x86-vnni"),
    QuantizeStatic(target="x86-avx2"),
    QuantizeDynamic(target="arm64"),
    WeightOnly(),
)


def bundled(model, x, folder):
    """Bundle a model with samples that are labelled by what it says of them itself."""
    content = model.SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    y = open_model(content).scores(x).argmax(axis=1)
    EvalSet(x=x, y=y).save(folder / "set.npz")
    bundle_model(folder / "m.onnx", folder / "set.npz", folder / "m.lship")
    return folder / "m.lship"


def selftested(lship, pi="4"):
    done = on_arm64("-m", "deploy", "selftest", lship, "--json", pi=pi)
    found = json.loads(done.stdout)
    assert found["passed"], found["sentence"]
    assert found["same_class"] == found["samples"] > 0
    return found


def test_what_is_played_is_another_processor_and_an_older_onnx_runtime():
    script = "import platform, onnxruntime; print(platform.machine(), onnxruntime.__version__)"
    machine, release = said_by(on_arm64("-c", script)).split()
    assert machine == "aarch64" != platform.machine()
    assert release.startswith("1.25.")


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_golden_outputs_hold_on_arm(step, tmp_path):
    model = network()
    if step is not None:
        model = onnx_step(model, step, task_with(images()), seed=0).model
    lship = bundled(model, images(seed=2), tmp_path)
    for pi in RASPBERRY_PI:
        selftested(lship, pi)


@pytest.mark.parametrize("target", ["arm64", "x86-vnni"])
def test_what_is_laid_out_answers_there_as_what_it_was_made_of(target, tmp_path):
    model = apply(network(), QuantizeStatic(target=target))
    made = laid_out(model, {"stem": 4, "conv": 2})
    np.save(tmp_path / "x.npy", images(20, seed=2))
    answers = []
    for name, one in (("plain", model), ("laid", made)):
        (tmp_path / f"{name}.onnx").write_bytes(one.SerializeToString())
        script = (
            "import sys, json, numpy as np; from pathlib import Path; "
            "from deploy.session import open_model; "
            "print(json.dumps(open_model(Path(sys.argv[1])).run(np.load(sys.argv[2])).tolist()))"
        )
        told = said_by(on_arm64("-c", script, tmp_path / f"{name}.onnx", tmp_path / "x.npy"))
        answers.append(json.loads(told))
    assert answers[0] == answers[1]


def test_every_layer_quantized_for_arm_runs_as_an_int8_kernel_there(tmp_path):
    model = onnx_step(network(), QuantizeStatic(target="arm64"), task_with(images()), seed=0).model
    bundled(model, images(seed=2), tmp_path)
    script = (
        "import sys, onnxruntime as ort; from deploy.record import SessionOptions; "
        "from deploy.session import ort_options; settings = ort_options(SessionOptions()); "
        "settings.optimized_model_filepath = sys.argv[2]; "
        "ort.InferenceSession(sys.argv[1], sess_options=settings)"
    )
    said_by(on_arm64("-c", script, tmp_path / "m.onnx", tmp_path / "running.onnx"))
    import onnx

    kinds = [node.op_type for node in onnx.load(tmp_path / "running.onnx").graph.node]
    assert sum(kind in INT8_OPERATORS for kind in kinds) == 3, kinds
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(kinds)


def test_a_trained_lenet_5_in_int8_gives_the_same_labels_there(tmp_path):
    task = load_task(Data(source="mnist-sample"), seed=0)
    keras = build(LeNet5(), input_shape=task.input_shape, classes=10, seed=0)
    fit(keras, task, Fit(epochs=1), seed=0)
    exported = export(keras, Export(), task.validation.x[:64])
    int8 = onnx_step(exported, QuantizeStatic(target="arm64"), task, seed=0).model
    about = ModelMetadata(preprocess=task.preprocess, labels=task.labels)
    lship = bundled(with_metadata(int8, about), task.test.raw[:400], tmp_path)
    found = selftested(lship)
    assert found["samples"] == 12
    np.save(tmp_path / "x.npy", task.test.raw[:100])
    there = json.loads(
        said_by(on_arm64("-m", "deploy", "predict", lship, tmp_path / "x.npy", "--json"))
    )
    from deploy import load

    here = load(lship).predict(task.test.raw[:100]).labels
    same = sum(answer["label"] == label for answer, label in zip(there, here, strict=True))
    assert same >= 99  # one step of int8 may decide between two near scores


def test_a_damaged_bundle_is_refused_there_too(tmp_path):
    lship = bundled(network(), images(seed=2), tmp_path)
    content = bytearray(lship.read_bytes())
    content[len(content) // 2] ^= 1
    lship.write_bytes(content)
    done = on_arm64("-m", "deploy", "selftest", lship)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert "is damaged" in done.stdout
