"""Model files and the records beside them."""

from importlib import metadata

import pytest

from compress.artifacts import stack_versions
from deploy.errors import MissingExtraError


def test_where_the_stack_is_not_installed_the_extra_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(MissingExtraError, match="the extra 'compress'"):
        stack_versions()
