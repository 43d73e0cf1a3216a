import importlib

import pytest

from deploy.errors import MissingExtraError, ParityError, UserError, needs_extra


def test_a_missing_import_names_the_extra_to_install():
    pattern = r"pip install 'lightship\[report\]'"
    with pytest.raises(MissingExtraError, match=pattern) as caught, needs_extra("report"):
        importlib.import_module("a_package_that_nobody_has")
    assert str(caught.value).startswith("a_package_that_nobody_has is not installed")
    assert "\n" not in str(caught.value)


def test_what_else_goes_wrong_inside_keeps_its_own_error():
    with pytest.raises(ZeroDivisionError), needs_extra("report"):
        1 / 0  # noqa: B018  (the point is that it raises)


def test_a_missing_extra_is_the_users_to_mend_and_a_broken_promise_is_not():
    assert issubclass(MissingExtraError, UserError)
    assert not issubclass(ParityError, UserError)
