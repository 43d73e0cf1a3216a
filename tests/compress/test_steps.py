import pytest

from compress.quantize.aware import QuantizeAware
from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.static import QuantizeStatic
from compress.quantize.storage import ToFloat16
from compress.steps import aimed, onnx_step
from compress.train.fit import Fit
from deploy.machine import this_target
from tests.compress.quantize.networks import images, network, task_with


@pytest.mark.parametrize("step", [QuantizeStatic(), QuantizeDynamic()], ids=repr)
def test_a_step_that_names_no_target_says_which_machine_it_aimed_at(step):
    made = onnx_step(network(), step, task_with(images()), seed=0)
    assert made.step.target == this_target()


def test_a_target_that_was_named_stays_and_a_step_without_one_is_itself():
    trained = QuantizeAware(fine_tune=Fit(epochs=1))
    assert aimed(trained).target == this_target()
    for step in (QuantizeStatic(target="arm64"), QuantizeDynamic(target="x86-vnni"), ToFloat16()):
        assert aimed(step) is step
