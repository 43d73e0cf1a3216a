import json
import shutil

import pytest
from click.testing import CliRunner

from deploy import load
from deploy.bundle.opened import open_bundle
from deploy.cli import cli
from deploy.errors import BundleError, UserError
from tests.deploy.bundle import tiny

pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def write_keys(folder, key=None):
    """Write a new pair of keys; return the private and the public file."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(exist_ok=True)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "pub.pem").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return folder / "key.pem", folder / "pub.pem"


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def make(folder, name, *words):
    model, data = tiny.write_model(folder / "colours")
    result = invoke("bundle", model, "--data", data, "-o", folder / name, *words)
    assert result.exit_code == 0, result.output
    return folder / name


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize("name", ["m.lship", "m"])
def test_a_signed_bundle_opens_with_its_key(tmp_path, name, curve):
    private, public = write_keys(tmp_path / "keys", ec.generate_private_key(curve))
    bundle = make(tmp_path, name, "--sign", private)
    assert load(bundle, public_key=public).labels == tiny.LABELS
    assert invoke("selftest", bundle, "--public-key", public).exit_code == 0


def test_signing_leaves_the_bytes_of_the_bundle_alone(tmp_path):
    private, _ = write_keys(tmp_path / "keys")
    plain = make(tmp_path, "plain.lship").read_bytes()
    assert make(tmp_path, "signed.lship", "--sign", private).read_bytes() == plain


def test_file_and_folder_have_one_signature(tmp_path):
    private, public = write_keys(tmp_path / "keys")
    file = make(tmp_path, "m.lship", "--sign", private)
    folder = make(tmp_path, "m")
    shutil.copy(f"{file}.sig", f"{folder}.sig")
    open_bundle(folder, public_key=public)


@pytest.fixture
def signed(tmp_path):
    private, public = write_keys(tmp_path / "keys")
    return make(tmp_path, "m.lship", "--sign", private), public


def refusal(bundle, public):
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, public_key=public)
    result = invoke("selftest", bundle, "--public-key", public)
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 1)
    return str(caught.value)


def test_another_key_is_refused(signed, tmp_path):
    _, other = write_keys(tmp_path / "other")
    assert "was not made with the key that fits" in refusal(signed[0], other)


def test_a_missing_signature_is_refused(signed):
    signed[0].with_name("m.lship.sig").unlink()
    assert "is not signed" in refusal(*signed)


def test_the_signature_of_another_bundle_is_refused(signed, tmp_path):
    bundle, public = signed
    other = make(tmp_path, "other.lship", "--name", "other")
    shutil.copy(f"{bundle}.sig", f"{other}.sig")
    assert "is not the bundle that" in refusal(other, public)


def test_a_changed_list_of_files_is_refused_by_the_signature(signed):
    bundle, public = signed
    place = bundle.with_name("m.lship.sig")
    whole = json.loads(place.read_bytes())
    payload = whole["dsseEnvelope"]["payload"]
    whole["dsseEnvelope"]["payload"] = (
        payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    )
    place.write_text(json.dumps(whole))
    assert "was not made with the key" in refusal(bundle, public)


def test_a_changed_file_is_refused(signed):
    bundle, public = signed
    content = bytearray(bundle.read_bytes())
    content[100] ^= 1
    bundle.write_bytes(content)
    assert "is damaged" in refusal(bundle, public)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"no json", b"[" * 10**6, b'{"dsseEnvelope": 1}']
)
def test_what_is_no_signature_is_refused(signed, text):
    signed[0].with_name("m.lship.sig").write_bytes(text)
    assert "is no signature" in refusal(*signed)


def test_keys_that_are_none_are_a_mistake_made_before_any_work(signed, tmp_path):
    bundle, public = signed
    strange, _ = write_keys(tmp_path / "strange", ed25519.Ed25519PrivateKey.generate())
    for key, why in ((public, "no private key"), (strange, "must be a key of the curve")):
        words = ("bundle", tmp_path / "colours/model.onnx", "--data", tmp_path / "colours/test.npz")
        result = invoke(*words, "-o", tmp_path / "new.lship", "--sign", key)
        assert result.exit_code == 2
        assert why in result.stderr
        assert not (tmp_path / "new.lship").exists()
    with pytest.raises(UserError, match="is no public key"):
        open_bundle(bundle, public_key=tmp_path / "none.pem")
