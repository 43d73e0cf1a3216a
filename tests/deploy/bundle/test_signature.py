import json
import re
import shutil
import zipfile

import pytest
from click.testing import CliRunner

from deploy import load, remote
from deploy.bundle.footprint import fitting, footprint
from deploy.bundle.opened import open_bundle
from deploy.cli import cli
from deploy.errors import BundleError, UserError
from deploy.memory import DoesNotFitError
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_commands import one_line

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
    tampered(bundle)
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
        open_bundle(bundle, public_key=tmp_path / "colours/test.npz")


COMMANDS = {
    "serve": ("serve",),
    "bench": ("bench", "--processes", "5", "--batch", "1"),
    "bench-elsewhere": ("bench", "--on", "nowhere"),
    "check": ("check", "--max-size", "1MB"),
}


def tampered(bundle):
    content = bytearray(bundle.read_bytes())
    content[100] ^= 1
    bundle.write_bytes(content)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda bundle: bundle.with_name("m.lship.sig").unlink(), "is not signed"),
        (tampered, "is damaged"),
    ],
    ids=["unsigned", "tampered"],
)
def test_no_command_uses_a_bundle_that_is_not_signed_as_asked(signed, words, change, why):
    if words == ("serve",):
        pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    bundle, public = signed
    change(bundle)
    line = one_line(*words, bundle, "--public-key", public)
    assert line.startswith(f"error: {bundle}: {why}")


@pytest.mark.parametrize("command", ["bench", "check"])
def test_bench_and_check_take_a_bundle_that_is_signed_as_asked(signed, command):
    bundle, public = signed
    result = invoke(*COMMANDS[command], bundle, "--public-key", public)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("words", [("bench",), ("check", "--max-size", "1MB", "--baseline")])
def test_a_model_by_itself_is_refused_where_a_signature_is_asked_for(signed, words):
    bundle, public = signed
    model = bundle.with_name("colours") / "model.onnx"
    line = one_line(*words, model, bundle, "--public-key", public)
    assert line.startswith(f"error: {model}: is no bundle, and only a bundle bears a signature")


def test_a_baseline_has_to_be_signed_as_the_bundle_is(signed, tmp_path):
    bundle, public = signed
    other = make(tmp_path, "other.lship")
    words = ("check", bundle, "--max-size", "1MB", "--baseline", other, "--public-key", public)
    assert f"{other}: is not signed" in one_line(*words)


def test_what_did_not_fit_is_measured_only_if_it_is_signed_as_asked(signed):
    bundle, public = signed
    bundle.with_name("m.lship.sig").unlink()
    with (
        pytest.raises(BundleError, match="is not signed"),
        fitting(bundle, 1 << 40, public_key=public),
    ):
        raise DoesNotFitError("before it came to the signature")


def test_a_bundle_that_was_exchanged_since_it_was_checked_is_not_measured(signed, tmp_path):
    other = open_bundle(make(tmp_path, "other.lship", "--name", "other"))
    with pytest.raises(UserError, match="is another bundle than the one that was checked"):
        footprint(signed[0], digest=other.digest)


@pytest.mark.parametrize("what", ["key", "signature"])
@pytest.mark.parametrize(
    "words",
    [
        ("check", "--max-size", "1MB", "--junit"),
        ("check", "--max-size", "1MB", "--markdown"),
        ("bench", "--out"),
    ],
)
def test_no_result_is_written_over_a_key_or_a_signature(signed, words, what):
    bundle, public = signed
    place = public if what == "key" else bundle.with_name("m.lship.sig")
    before = place.read_bytes()
    line = one_line(*words, place, bundle, "--public-key", public)
    assert f"{place} is taken" in line
    assert place.read_bytes() == before


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_is_sent_to_another_machine_is_what_was_checked(tmp_path, monkeypatch, folder):
    private, public = write_keys(tmp_path / "keys")
    bundle = make(tmp_path, "m.lship", "--sign", private)
    if folder:
        unpacked = tmp_path / "unpacked"
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(unpacked)
        bundle.with_name("m.lship.sig").rename(tmp_path / "unpacked.sig")
        bundle = unpacked

    def sent(there, verb, words, files, **_):
        (copy,) = files.values()
        assert copy != bundle
        assert open_bundle(copy, public_key=public).manifest.name
        raise UserError(f"{copy.name}: it was sent")

    monkeypatch.setattr(remote, "_asked", sent)
    there = remote.Remote(host="nowhere")
    with pytest.raises(UserError, match=f"^{re.escape(str(bundle))}: it was sent"):
        remote.bench_on(there, [bundle], {}, public_key=public, on_line=print)


def test_a_bundle_whose_signature_has_no_place_is_not_written(tmp_path):
    private, _ = write_keys(tmp_path / "keys")
    (tmp_path / "m.lship.sig").mkdir()
    with pytest.raises(AssertionError, match=r"m\.lship\.sig is a folder"):
        make(tmp_path, "m.lship", "--sign", private)
    assert not (tmp_path / "m.lship").exists()


def test_a_key_that_is_not_there_is_said_to_be_missing(signed, tmp_path):
    bundle, _ = signed
    line = one_line("bench", bundle, "--public-key", tmp_path / "none.pem")
    assert "none.pem: cannot be read: No such file or directory" in line
