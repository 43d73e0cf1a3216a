"""What `deploy` does without scipy and onnx, held against scipy and onnx."""

import numpy as np
import onnx
import pytest
from scipy import stats

from deploy.intervals import mcnemar_p, student_quantile, wilson
from tests.deploy import tiny_onnx


@pytest.mark.parametrize("pairs", [(0, 1), (1, 0), (3, 3), (2, 12), (40, 61), (0, 30), (700, 803)])
def test_mcnemar_is_the_exact_binomial_test(pairs):
    expected = stats.binomtest(pairs[0], sum(pairs), 0.5).pvalue
    assert mcnemar_p(*pairs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (7, 11), (9912, 10_000)])
def test_wilson_is_scipys(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 19, 60])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.999])
def test_students_quantile_is_scipys(probability, freedom):
    expected = stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_models_written_without_onnx_pass_its_checker_and_read_back_as_written():
    weights = np.int8([[1, -2], [3, 4]])
    written = tiny_onnx.model(
        [
            ("Flatten", ["x"], ["flat"], {"axis": 1}),
            ("DequantizeLinear", ["w", "scale"], ["wf"]),
            ("Gemm", ["flat", "wf"], ["logits"], {"alpha": 0.5, "transB": 1}),
            ("Softmax", ["logits"], ["scores"]),
            ("Transpose", ["scores"], ["swapped"], {"perm": [1, 0]}),
        ],
        inputs={"x": ("float32", ("batch", 1, 2))},
        outputs={"swapped": ("float32", (2, "batch"))},
        initializers={"w": weights, "scale": np.float32(0.1)},
        metadata={"lightship.labels": '["a", "ü"]'},
    )
    model = onnx.load_from_string(written)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), weights)
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "lightship.labels": '["a", "ü"]'
    }
    assert [a.f for a in model.graph.node[2].attribute if a.name == "alpha"] == [0.5]
    assert model.opset_import[0].version == 17
