import importlib

import pytest

from deploy.errors import (
    BundleError,
    MissingExtraError,
    ParityError,
    UserError,
    as_given,
    naming_what_was_given,
    needs_extra,
)


def test_a_missing_import_names_the_extra_to_install():
    pattern = r"pip install 'lightship\[report\]'"
    with pytest.raises(MissingExtraError, match=pattern) as caught, needs_extra("report"):
        importlib.import_module("a_package_that_nobody_has")
    assert str(caught.value).startswith("a_package_that_nobody_has is not installed")
    assert "\n" not in str(caught.value)


def test_what_else_goes_wrong_inside_keeps_its_own_error():
    with pytest.raises(ZeroDivisionError), needs_extra("report"):
        1 / 0  # noqa: B018  (the point is that it raises)


def test_an_error_names_what_was_given_and_keeps_its_kind():
    given = {"/scratch/1-a.onnx": "a.lship", "/scratch/1-a.onnx.ort": "b.lship"}
    with pytest.raises(BundleError) as caught, naming_what_was_given(given):
        raise BundleError("/scratch/1-a.onnx.ort: is not /scratch/1-a.onnx")
    assert str(caught.value) == "b.lship: is not a.lship"


def test_what_was_given_may_read_like_the_name_of_another_file():
    given = {"0-1-b.onnx": "1-b.onnx", "1-b.onnx": "b.onnx"}
    assert as_given("./0-1-b.onnx: is cut off", given) == "1-b.onnx: is cut off"
    assert as_given("./1-b.onnx: is cut off", given) == "b.onnx: is cut off"
    assert as_given("nothing", {}) == "nothing"


def test_a_missing_extra_is_the_users_to_mend_and_a_broken_promise_is_not():
    assert issubclass(MissingExtraError, UserError)
    assert not issubclass(ParityError, UserError)
