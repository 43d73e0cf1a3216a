"""Who made a bundle: a detached signature in the format of OpenSSF Model Signing, offline.

``model.lship.sig`` lies beside the bundle and is the same for its file and its folder, which
``model_signing verify key`` checks as well (docs/decisions/0009). The format is a DSSE envelope
(https://github.com/secure-systems-lab/dsse, v1.0.0) of an in-toto statement that lists every file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.bundle.container import SUMS, read_container, sums
from deploy.errors import BundleError, UserError, needs_extra

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_LARGEST_BYTES = 1 << 20


def signature_path(bundle: Path) -> Path:
    """Return where the signature of a bundle lies: beside it, with ``.sig`` behind its name."""
    return bundle.with_name(bundle.name + ".sig")


def load_private_key(path: Path) -> Any:
    """Read the private key of an elliptic curve from a PEM file without a password.

    Raises:
        UserError: if it is none.
        MissingExtraError: if ``cryptography`` is not installed.
    """
    return _key(path, private=True)


def sign(files: Mapping[str, bytes], name: str, key: Any) -> bytes:
    """Return the signature of a bundle's files; two signatures of the same files differ.

    Args:
        files: all but ``SHA256SUMS``, by name.
        name: what the model is called.
        key: from ``load_private_key``.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    payload = json.dumps(_statement(files, name)).encode()
    signed = key.sign(_encoded(payload), ec.ECDSA(_hash_of(key)))
    whole = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signed).decode()}],
        },
    }
    return json.dumps(whole).encode() + b"\n"


def write_signature(bundle: Path, name: str, key: Any) -> None:
    """Sign a bundle that lies on disk, checked again; what is signed is what lies there.

    Raises:
        UserError: if the signature cannot be written.
    """
    place = signature_path(bundle)
    try:
        place.write_bytes(sign(read_container(bundle), name, key))
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror}") from error


def require_signed(files: Mapping[str, bytes], bundle: Path, public_key: Path) -> None:
    """Refuse a bundle whose files were not signed, all of them, with the key's other half.

    Args:
        files: all but ``SHA256SUMS``, by name, whose digests have been checked.
        bundle: where they come from; the signature lies beside it.
        public_key: a PEM file.

    Raises:
        UserError: if the key cannot be read.
        BundleError: if there is no signature, or it is of other files or by another key.
        MissingExtraError: if ``cryptography`` is not installed.
    """
    key = _key(public_key, private=False)
    place = signature_path(bundle)
    try:
        with place.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{bundle}: is not signed: {place} cannot be read") from error
    payload = _verified(text[:_LARGEST_BYTES], key, place, public_key)
    try:
        said = json.loads(payload)
        listed = {file["name"]: file["digest"] for file in said["predicate"]["resources"]}
        kinds = {file["algorithm"] for file in said["predicate"]["resources"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError(f"{place}: is no signature of a model") from error
    if kinds != {"sha256"} or listed != _digests(files):
        raise BundleError(f"{bundle}: is not the bundle that {place} signs")


def _verified(text: bytes, key: Any, place: Path, public_key: Path) -> bytes:
    """Return what was signed, once the signature is known to be the key's."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        envelope = json.loads(text)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError(f"{place}: is no signature, or is damaged; get it again") from error
    try:
        key.verify(signed, _encoded(payload), ec.ECDSA(_hash_of(key)))
    except InvalidSignature:
        raise BundleError(f"{place}: was not made with the key that fits {public_key}") from None
    return payload


def _statement(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    digests = _digests(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values()))
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": digest}
                for file, digest in digests.items()
            ],
        },
    }


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    whole = {**files, SUMS: sums(files)}
    return {name: hashlib.sha256(whole[name]).hexdigest() for name in sorted(whole)}


def _encoded(payload: bytes) -> bytes:
    """Return what is signed: type and payload, each with its length in front."""
    return f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def _key(path: Path, *, private: bool) -> Any:
    with needs_extra("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    what = "private" if private else "public"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give a PEM file") from error
    try:
        key = (
            serialization.load_pem_private_key(text, None)
            if private
            else serialization.load_pem_public_key(text)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: is no {what} key in PEM without a password") from error
    kind = ec.EllipticCurvePrivateKey if private else ec.EllipticCurvePublicKey
    if not isinstance(key, kind) or key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        raise UserError(f"{path}: must be a key of the curve P-256, P-384 or P-521")
    return key


def _hash_of(key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    sizes: dict[int, Any] = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}
    return sizes[key.curve.key_size]()


def _hint(public_key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    pem = public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()
