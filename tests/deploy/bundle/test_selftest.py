import numpy as np
import pytest

from deploy.bundle.container import GOLDEN, MODEL, write_container
from deploy.bundle.golden import Golden
from deploy.bundle.golden import encode as encode_golden
from deploy.bundle.opened import open_bundle
from deploy.bundle.selftest import selftest
from deploy.errors import BundleError, UserError
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_opened import rebuilt, replaced


def test_a_sound_bundle_passes(lship, folder):
    for path in (lship, folder):
        found = selftest(path)
        assert found.passed
        assert (found.samples, found.same_class, found.largest_difference) == (12, 12, 0)
        assert "passes: all digests are right, 12 of 12" in found.sentence


def with_scores(lship, tmp_path, change):
    scores = open_bundle(lship).golden.scores.copy()
    change(scores)
    golden = encode_golden(Golden(x=open_bundle(lship).golden.x, scores=scores))
    write_container(rebuilt(lship, **{GOLDEN: golden}), tmp_path / "other.lship")
    return selftest(tmp_path / "other.lship")


def test_another_top_class_fails(lship, tmp_path):
    def change(scores):
        scores[3] = scores[3, ::-1]

    found = with_scores(lship, tmp_path, change)
    assert not found.passed
    assert found.same_class == 11
    assert "fails: all digests are right, 11 of 12" in found.sentence


def test_a_score_beyond_the_tolerance_fails_though_every_class_is_right(lship, tmp_path):
    def change(scores):
        scores[5] += 2 * open_bundle(lship).manifest.golden.tolerance

    found = with_scores(lship, tmp_path, change)
    assert (found.passed, found.same_class) == (False, 12)


def test_a_nan_fails(lship, tmp_path):
    broken = tiny_onnx.linear(np.eye(3) * np.nan, metadata=tiny.ABOUT.to_props())
    write_container(rebuilt(lship, **{MODEL: broken}), tmp_path / "nan.lship")
    found = selftest(tmp_path / "nan.lship")
    assert (found.passed, found.largest_difference) == (False, None)


def test_a_nan_fails_even_where_a_nan_is_expected(lship, tmp_path):
    broken = tiny_onnx.linear(np.eye(3) * np.nan, metadata=tiny.ABOUT.to_props())
    x = open_bundle(lship).golden.x
    golden = encode_golden(Golden(x=x, scores=np.full((12, 3), np.nan, np.float32)))
    write_container(rebuilt(lship, **{MODEL: broken, GOLDEN: golden}), tmp_path / "nan.lship")
    found = selftest(tmp_path / "nan.lship")
    assert (found.passed, found.same_class) == (False, 12)


def test_another_class_fails_however_wide_the_tolerance(lship, tmp_path):
    golden = open_bundle(lship).golden
    turned = encode_golden(Golden(x=golden.x, scores=golden.scores[:, [1, 2, 0]].copy()))
    wide = replaced("golden", tolerance=100.0)
    write_container(rebuilt(lship, wide, **{GOLDEN: turned}), tmp_path / "wide.lship")
    found = selftest(tmp_path / "wide.lship")
    assert (found.passed, found.same_class) == (False, 0)


def test_a_damaged_bundle_fails_and_is_believed_in_nothing(lship, tmp_path):
    content = bytearray(lship.read_bytes())
    content[100] ^= 1
    (tmp_path / "bad.lship").write_bytes(content)
    found = selftest(tmp_path / "bad.lship")
    assert (found.passed, found.bundle) == (False, None)
    assert "is damaged" in found.sentence


def test_a_model_that_does_not_open_fails(lship, tmp_path):
    broken = tiny.model().replace(b"Gemm", b"Gemn")
    write_container(rebuilt(lship, **{MODEL: broken}), tmp_path / "bad.lship")
    assert "cannot open it" in selftest(tmp_path / "bad.lship").sentence


def test_nothing_to_test_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="no such file") as caught:
        selftest(tmp_path / "none.lship")
    assert not isinstance(caught.value, BundleError)
