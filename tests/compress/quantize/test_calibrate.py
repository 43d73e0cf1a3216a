import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.calibrate import (
    METHODS,
    Histogram,
    batches,
    calibrate,
    least_error,
    observe,
    quantization_error,
)
from deploy.errors import UserError
from tests.compress.quantize.networks import SHAPE, images, network


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


class Streamed:
    """Samples that exist only while they are looked at, in slices."""

    def __init__(self, x):
        self.x, self.shape, self.asked = x, x.shape, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, part):
        assert isinstance(part, slice)
        self.asked.append(len(self.x[part]))
        return self.x[part]


@pytest.mark.parametrize(("method", "passes"), [("minmax", 1), ("percentile", 2), ("mse", 2)])
def test_one_batch_of_a_stream_is_asked_for_at_a_time(method, passes):
    stream = Streamed(images(70))
    assert ranges(stream, method=method) == ranges(images(70), method=method)
    assert stream.asked == [32, 32, 6] * passes


def test_a_late_outlier_adds_no_bin():
    """ONNX Runtime keeps the width of the first batch's bins: this would take 2e9 of them."""
    x = images(70)
    x[69, 0, 0, 0] = 1e6
    model = network()
    seen = observe(model, x, batches(model, x), operators=["Transpose", "Relu"], histograms=True)
    assert {len(histogram.counts) for histogram in seen.histograms.values()} == {2048}
    assert seen.histograms["image"].counts.sum() == x.size


def with_input(dtype=TensorProto.FLOAT, shape=("batch", *SHAPE), *, extra=()):
    """Return the network with another input, or several."""
    model = network()
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("image", dtype, shape))
    model.graph.input.extend(extra)
    return model


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_a_model_that_takes_one_sample_at_a_time_gets_the_same_ranges(method):
    alone = with_input(shape=(1, *SHAPE))
    del alone.graph.output[:]
    alone.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 3)))
    single = ranges(images(5), model=alone, method=method, operators=("Transpose",))
    together = ranges(images(5), method=method, operators=("Transpose",))
    assert single["image"] == pytest.approx(together["image"], rel=0.01)


def test_samples_of_another_type_are_cast_as_the_device_casts_them():
    bytes_ = (images() * 255).astype(np.uint8)
    assert ranges(bytes_) == ranges(bytes_.astype(np.float32))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_input(TensorProto.UINT8), "'image' must be float32, got uint8; use weight-only"),
        (with_input(TensorProto.INT64), "'image' must be float32, got int64"),
        (with_input(shape=(4, *SHAPE)), r"free or 1, .* got \[4, 8, 8, 2\]"),
        (with_input(shape=("n", "height", 8, 2)), r"no other free axis, got \[0, 0, 8, 2\]"),
        (with_input(shape=()), r"batch axis in front .* got \[\]"),
        (
            with_input(extra=[helper.make_tensor_value_info("size", TensorProto.FLOAT, (1,))]),
            "must have one input, got 2",
        ),
    ],
)
def test_a_model_that_cannot_be_given_samples_is_refused(model, message):
    with pytest.raises(UserError, match=f"^calibration: .*{message}"):
        ranges(images(), model=model)


def test_weights_that_an_old_file_lists_as_inputs_are_no_inputs():
    bias = helper.make_tensor_value_info("stem/bias", TensorProto.FLOAT, (8,))
    assert ranges(images(), model=with_input(extra=[bias])) == ranges(images())


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


# Each method by itself.


@given(
    hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(0, 50),
)
def test_the_range_of_mse_never_has_a_larger_error_than_minmax(values, zeros):
    values = np.concatenate([values, np.zeros(zeros)])
    reach = float(np.abs(values).max()) or 1.0
    counts, edges = np.histogram(values, 2048, range=(-reach, reach))
    histogram = Histogram(counts=counts, edges=edges, zeros=int((values == 0).sum()))
    widest = (float(values.min()), float(values.max()))
    low, high = least_error(histogram, widest)
    all_of_it = (min(widest[0], 0.0), max(widest[1], 0.0))
    assert all_of_it[0] <= low <= 0 <= high <= all_of_it[1]
    assert quantization_error(histogram, low, high) <= quantization_error(histogram, *all_of_it)


def test_mse_rounds_a_tensor_with_a_rare_outlier_better_than_minmax():
    """On the values themselves, not on the model of the error that the search uses."""
    x = np.random.default_rng(0).normal(size=(2048, 8, 8, 2)).astype(np.float32)
    x[5, 0, 0, 0] = 20

    def error(method):
        low, high = ranges(x, method=method, operators=("Transpose",))["image"]
        step = (high - low) / 255
        rounded = np.clip(np.rint((x - low) / step), 0, 255) * step + low
        return float(((x - rounded) ** 2).mean())

    assert error("mse") < 0.9 * error("minmax")


def test_the_moving_average_of_equal_batches_is_minmax():
    x = np.concatenate([images(32)] * 3)
    for name, found in ranges(x, method="moving_average").items():
        assert found == pytest.approx(ranges(x)[name], rel=1e-6)


def test_one_strange_sample_moves_the_average_by_the_share_of_its_batch():
    x = np.zeros((128, 8, 8, 2), np.float32)
    x[40, 0, 0, 0] = 8
    assert ranges(x, method="moving_average", operators=("Transpose",))["image"] == (0, 2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stays_within_what_was_seen(method):
    x = images(70)
    seen = ranges(x)
    for name, (low, high) in ranges(x, method=method).items():
        assert min(seen[name][0], 0) - 1e-6 <= low <= high <= max(seen[name][1], 0) + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_sees_nothing_has_ranges_of_nothing(method):
    assert ranges(np.zeros((3, 8, 8, 2), np.float32), method=method)["to_nchw:0"] == (0, 0)


def test_onnx_runtime_says_nothing_while_a_model_is_calibrated(capfd):
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1), "read by nobody"))
    ranges(images(), model=model)
    assert capfd.readouterr() == ("", "")
