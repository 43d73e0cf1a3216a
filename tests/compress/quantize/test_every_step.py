import logging

import numpy as np
import onnx
import pytest

from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.static import QuantizeStatic
from compress.quantize.storage import ToFloat16, WeightOnly
from deploy.graph import weighted_nodes
from tests.compress.quantize.applying import apply, run
from tests.compress.quantize.networks import images, network

STEPS = [
    QuantizeStatic(target="x86-vnni"),
    QuantizeStatic(target="x86-vnni", calibration="percentile", percentile=99.9),
    QuantizeStatic(target="x86-avx2", per_channel=False),
    QuantizeStatic(target="arm64", exclude=("stem",)),
    QuantizeDynamic(target="x86-vnni"),
    QuantizeDynamic(target="x86-vnni", convolutions=True),
    ToFloat16(),
    WeightOnly(),
]
every_step = pytest.mark.parametrize("step", STEPS, ids=repr)


@every_step
def test_the_input_is_left_alone(step):
    model = network()
    before = model.SerializeToString()
    apply(model, step)
    assert model.SerializeToString() == before


@every_step
def test_the_same_step_gives_the_same_bytes(step):
    assert apply(network(), step).SerializeToString() == apply(network(), step).SerializeToString()


@every_step
def test_names_batch_and_metadata_are_kept(step):
    before, after = network(), apply(network(), step)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.metadata_props == before.metadata_props
    assert {found.node.name for found in weighted_nodes(after.graph)} == {"stem", "conv", "dense"}
    onnx.checker.check_model(after, full_check=True)


@every_step
def test_the_scores_stay_close(step):
    x = images(seed=2)
    np.testing.assert_allclose(run(apply(network(), step), x), run(network(), x), atol=0.05)


@every_step
def test_nothing_is_logged_printed_or_left_behind(step, caplog, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    apply(network(), step)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert logging.root.manager.disable == logging.NOTSET
