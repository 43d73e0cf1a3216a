import numpy as np
import pytest

from compress.quantize import calibrate as module
from compress.quantize.calibrate import calibrate
from deploy.errors import UserError
from tests.compress.quantize.networks import images, network


def ranges(x, *, model=None, method="minmax", percentile=99.99, operators=("Conv", "Relu")):
    found = calibrate(
        network() if model is None else model,
        x,
        method=method,
        percentile=percentile,
        operators=operators,
    )
    return {
        name: tuple(float(np.squeeze(end)) for end in data.range_value)
        for name, data in found.items()
    }


def test_minmax_is_the_smallest_and_largest_value_over_all_batches():
    x = images(70)  # three batches
    x[0, 0, 0, 0], x[69, 0, 0, 0] = -7, 9
    assert ranges(x)["to_nchw:0"] == (-7, 9)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_an_outlier_does_not_stretch_the_range(method):
    x = images(70)
    x[3, 0, 0, 0] = 1000
    found = ranges(x, method=method, percentile=99.0, operators=("Transpose",))
    low, high = found["image"]
    assert low < 0.1
    assert 0.9 < high < 600


def test_percentile_cuts_each_end_by_itself():
    """A symmetric range would reach to -1 for one negative outlier, and waste half its steps."""
    x = images(70)
    x[3, 0, 0, 0] = -1000
    found = ranges(x, method="percentile", percentile=99.0, operators=("Transpose",))
    low, high = found["image"]
    assert low > -0.6  # one bin of (1 + 1000) / 2048
    assert 0.9 < high < 1.6


def test_one_batch_is_held_in_memory_at_a_time(monkeypatch):
    sizes = []
    real = module._Once

    def spy(inputs):
        sizes.append(len(inputs["image"]))
        return real(inputs)

    monkeypatch.setattr(module, "_Once", spy)
    ranges(images(70), method="percentile")
    assert sizes == [32, 32, 6]


def test_no_temporary_file_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ranges(images())
    assert not list(tmp_path.iterdir())


def test_nan_in_a_sample_is_refused_by_its_number():
    x = images()
    x[5, 1, 1, 0] = np.nan
    with pytest.raises(UserError, match="got NaN or infinity in sample 5 of 40"):
        ranges(x)


def test_samples_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"shape \(8, 8, 2\) .* got \(2, 8, 8\)"):
        ranges(images().transpose(0, 3, 1, 2))


def test_no_sample_is_refused():
    with pytest.raises(UserError, match="at least one sample"):
        ranges(images(0))


def test_weights_that_overflow_are_refused_by_the_tensor_they_break():
    model = network()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "stem/bias")
    bias.raw_data = np.full(8, np.inf, np.float32).tobytes()
    with pytest.raises(UserError, match="tensor 'stem:0' takes values that are NaN or infinite"):
        ranges(images(), model=model)
