"""What the doctor says of a machine."""

import importlib.util
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.doctor import EXTRAS, examine

ROOT = Path(__file__).resolve().parents[2]


def test_every_extra_that_a_user_can_install_is_looked_for():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [*EXTRAS, "dev"] == [*project["optional-dependencies"]]


def test_each_extra_is_installed_or_told_how_to_be(monkeypatch):
    absent = {"httptools", "prometheus_client", "cryptography"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else sys)
    lines = CliRunner().invoke(cli, ["doctor"]).stdout.splitlines()
    assert [line.removeprefix("extra").strip() for line in lines if line.startswith("extra")] == [
        *(f"{extra}: installed" for extra in EXTRAS if extra not in {"serve", "sign"}),
        "serve: lacks httptools, prometheus_client; install it with: pip install 'lightship[serve]'",
        "sign: lacks cryptography; install it with: pip install 'lightship[sign]'",
    ]
    assert examine().missing["serve"] == ("httptools", "prometheus_client")
