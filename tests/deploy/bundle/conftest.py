import pytest

from deploy.bundle.make import bundle_model
from tests.deploy.bundle import tiny


@pytest.fixture(scope="session")
def lship(tmp_path_factory):
    """A bundle file that no test may change."""
    folder = tmp_path_factory.mktemp("bundle")
    bundle_model(*tiny.write_model(folder / "colours"), folder / "colours.lship")
    return folder / "colours.lship"


@pytest.fixture
def folder(tmp_path):
    """A bundle folder of the test's own."""
    bundle_model(*tiny.write_model(tmp_path / "colours"), tmp_path / "unpacked")
    return tmp_path / "unpacked"
