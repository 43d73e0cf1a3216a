"""``lightship serve`` as its owner meets it before it serves."""

import socket
import subprocess
import sys

import pytest

from tests.deploy.bundle.test_commands import one_line

NEEDED = ("starlette", "uvicorn", "prometheus_client", "httptools")


def test_without_the_extra_it_says_what_to_install(bundles, monkeypatch):
    for name in [*sys.modules]:
        if name.startswith("deploy.serve."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    said = one_line("serve", bundles[0])
    assert "this needs the extra 'serve', install it with: pip install 'lightship[serve]'" in said


def test_no_other_command_imports_the_server():
    code = (
        "import sys, deploy.cli, deploy.bundle.runtime, deploy.bundle.selftest;"
        f"print([name for name in {NEEDED} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def extra():
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")


@pytest.mark.usefixtures("extra")
def test_what_cannot_be_served_is_one_line(bundles, tmp_path):
    assert "no such file" in one_line("serve", tmp_path / "none.lship")
    (tmp_path / "bad.lship").write_bytes(bundles[0].read_bytes()[:-5])
    assert "is no bundle, or is cut off" in one_line("serve", tmp_path / "bad.lship")
    assert "is served already" in one_line("serve", bundles[0], bundles[0])


@pytest.mark.usefixtures("extra")
def test_an_address_that_is_taken_or_not_ours_is_one_line(bundles):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot listen there" in one_line(
            "serve", bundles[0], "--port", port
        )
    assert "cannot listen there" in one_line("serve", bundles[0], "--host", "192.0.2.1")


@pytest.mark.usefixtures("extra")
def test_a_certificate_that_is_none_is_one_line(bundles, tmp_path):
    (tmp_path / "x.pem").write_text("no PEM")
    words = ("--tls-cert", tmp_path / "x.pem")
    assert "one needs the other" in one_line("serve", bundles[0], *words)
    said = one_line("serve", bundles[0], *words, "--tls-key", tmp_path / "none.pem")
    assert "must be a PEM certificate and its key" in said


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("keys", "why"),
    [("", "holds no key"), ("short\n", "16 printable ASCII"), ("with a space in it 123", "spaces"),
     ("schlüssel-schlüssel", "ASCII")],
)  # fmt: skip
def test_a_key_that_guards_nothing_is_one_line(bundles, tmp_path, keys, why):
    (tmp_path / "keys").write_text(keys, encoding="utf-8")
    assert why in one_line("serve", bundles[0], "--api-key-file", tmp_path / "keys")


@pytest.mark.usefixtures("extra")
def test_a_key_that_is_set_and_empty_is_a_mistake(bundles, monkeypatch):
    monkeypatch.setenv("LIGHTSHIP_API_KEY", "")
    assert "$LIGHTSHIP_API_KEY: holds no key" in one_line("serve", bundles[0])


def test_a_bundle_that_is_signed_as_asked_is_served(serving, tmp_path):
    pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")
    from tests.deploy.bundle.test_signature import make, write_keys

    private, public = write_keys(tmp_path / "keys")
    with serving(make(tmp_path, "m.lship", "--sign", private), "--public-key", public) as server:
        assert server.ready["models"][0]["name"] == "colours"


def test_who_is_reachable_from_outside_is_told_what_that_means(serving, bundles):
    with serving(bundles[0], "--host", "0.0.0.0") as server:  # noqa: S104  # what the test is about
        code, said = server.stop()
    assert code == 0
    assert said.startswith("warning: 0.0.0.0 is reachable from outside and everyone is answered")


def test_what_is_served_is_said_in_json(serving, bundles):
    with serving(*bundles) as server:
        assert server.ready["models"][1] == {
            "name": "colours", "version": "2.0.0", "merged": True, "why_not": None,
        }  # fmt: skip
