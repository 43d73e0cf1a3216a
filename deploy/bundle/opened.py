"""How a bundle is opened: everything is checked before anything is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnxruntime as ort

from deploy.bundle.container import (
    CARD,
    GOLDEN,
    LIMITS,
    MANIFEST,
    MODEL,
    ORT,
    PACKED,
    TFLITE,
    model_name,
    read_container,
    sums_of,
)
from deploy.bundle.golden import Golden
from deploy.bundle.golden import decode as decode_golden
from deploy.bundle.manifest import FileFacts, Manifest, decode
from deploy.errors import BundleError, MissingExtraError, UserError
from deploy.goals import why_not_metric
from deploy.litert import litert_version
from deploy.needs import graph_facts, operator_versions
from deploy.ort_format import is_ort
from deploy.packing.packed import PackingError, unpack
from deploy.record import BundleId, SessionOptions
from deploy.session import Model, open_model, require_startable
from deploy.tflite import is_tflite, read_tflite


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte has been checked.

    Attributes:
        where: the file or folder, as its user wrote it; errors begin with it.
        manifest: what it says of itself.
        model: the bytes of the model, unpacked.
        model_name: what its file is called once unpacked, by whose ending its format is known.
        golden: samples with the scores that they have to get.
        card: the model card, Markdown.
        digest: sha256 of ``SHA256SUMS``, the same for the file and the folder.
    """

    where: str
    manifest: Manifest
    model: bytes
    model_name: str
    golden: Golden
    card: str
    digest: str

    @property
    def model_sha256(self) -> str:
        """The digest of the model, unpacked."""
        return (self.manifest.unpacked or self.manifest.files[self.model_name]).sha256

    @property
    def id(self) -> BundleId:
        """Which bundle it is."""
        return BundleId(name=self.manifest.name, version=self.manifest.version, digest=self.digest)

    def session(self, threads: int | None = None) -> Model:
        """Open the model with the options that the manifest tells.

        Args:
            threads: threads of one run, in place of the manifest's.

        Raises:
            UserError: if this machine's runtime is older than the model needs, or cannot use so many
                threads.
            MissingExtraError: if it is a LiteRT model and LiteRT is not installed.
            BundleError: if it does not open the model, or the model is not what the manifest says.
        """
        needs = self.manifest.requires
        self._require("ONNX Runtime", "onnxruntime", needs.onnxruntime, ort.__version__)
        if needs.litert is not None:
            self._require("LiteRT", "ai-edge-litert", needs.litert, litert_version())
        options = self.manifest.session
        if threads is not None:
            require_startable(threads)  # here: it is no fault of the bundle
            options = msgspec.structs.replace(options, threads=threads)
        return self._open(options)

    def _require(self, name: str, package: str, least: str | None, here: str | None) -> None:
        """Refuse a runtime that is too old; one that is missing is met when the model is opened."""
        if least is not None and here is not None and _release(here) < _release(least):
            raise UserError(
                f"{self.where}: needs {name} {least} or newer, this is {here}; "
                f"install it with: pip install '{package}>={least}'"
            )

    def _open(self, options: SessionOptions) -> Model:
        said = self.manifest
        try:
            model = open_model(self.model, options)
        except MissingExtraError:
            raise
        except UserError as error:
            raise BundleError(f"{self.where}: {error}") from error
        model.where = self.where
        graph = (model.input_name, model.input_shape, str(model.input_dtype), model.fixed_batch)
        promised = (said.input.name, said.input.shape, said.input.dtype, said.input.batch)
        if graph != promised or model.output_name != said.output.name:
            raise BundleError(f"{self.where}: the model takes {graph}, manifest.json {promised}")
        model.metadata = msgspec.structs.replace(
            model.metadata, preprocess=said.preprocess, labels=said.labels, goal=said.goal
        )
        return model


def open_bundle(path: Path, *, public_key: Path | None = None) -> Bundle:
    """Read a bundle and check it: sizes, layout, digests, manifest, graph, golden samples.

    Args:
        path: a ``.lship`` file, or a folder.
        public_key: whose signature it has to bear, a PEM file; None asks for none.

    Raises:
        UserError: if nothing is there or it cannot be read.
        BundleError: if it is damaged, is no bundle, or contradicts itself, or its signature is
            missing, of other files or by another key.
    """
    files = read_container(path)
    if public_key is not None:
        from deploy.bundle.signature import require_signed  # here: few ask for it

        require_signed(files, path, public_key)
    return checked(files, str(path))


def checked(files: Mapping[str, bytes], where: str) -> Bundle:
    """Return a bundle's files as a bundle, once they are known to agree with each other.

    Raises:
        BundleError: if they do not.
    """
    manifest = decode(files[MANIFEST], where)
    facts = {name: file_facts(files[name]) for name in files}
    if manifest.files != {name: facts[name] for name in facts if name != MANIFEST}:
        raise BundleError(f"{where}: manifest.json lists other files than there are")
    golden = decode_golden(files[GOLDEN], where)
    model = model_name(files)
    content = files[model]
    if (model == PACKED) != (manifest.unpacked is not None):
        raise BundleError(f"{where}: manifest.json and {model} disagree on whether it is packed")
    if manifest.unpacked is not None:
        model, content = MODEL, _unpacked(content, manifest.unpacked, where)
    try:
        fits = _needs_what_it_says(model, content, manifest)
        card = files[CARD].decode()
    except (UserError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{where}: {model if isinstance(error, UserError) else CARD} {error}"
        ) from error
    if not fits:
        raise BundleError(f"{where}: {model} needs other versions than manifest.json says")
    why_not = _why_not_consistent(manifest, golden)
    if why_not:
        raise BundleError(f"{where}: {why_not}")
    return Bundle(
        where=where,
        manifest=manifest,
        model=content,
        model_name=model,
        golden=golden,
        card=card,
        digest=hashlib.sha256(sums_of({name: facts[name].sha256 for name in facts})).hexdigest(),
    )


def _unpacked(packed: bytes, said: FileFacts, where: str) -> bytes:
    """Return the model in ``model.lsp``; room is made for what the manifest says, and no more."""
    try:
        model = unpack(packed, f"{where}: {PACKED}", min(said.size_bytes, LIMITS[MODEL]))
    except PackingError as error:
        raise BundleError(str(error)) from error
    if file_facts(model) != said:
        raise BundleError(f"{where}: {PACKED} holds another model than manifest.json says")
    return model


def _needs_what_it_says(name: str, model: bytes, manifest: Manifest) -> bool:
    """Say whether a model asks of its runtime what the manifest tells.

    Raises:
        UserError: if the bytes are no model of that name's format.
    """
    needs = manifest.requires
    if (needs.litert is None) == (needs.onnxruntime is None):
        return False
    if name == TFLITE:
        said = operator_versions(read_tflite(model))
        return needs.litert is not None and needs.operators == said
    if needs.onnxruntime is None or is_tflite(model[:8]):
        return False
    if name == ORT:
        return is_ort(model[:8])  # its versions are those of the ONNX file that it was made from
    graph = graph_facts(model)
    return (graph.ir_version, graph.opsets) == (needs.ir_version, needs.opsets)


def is_bundle(path: Path, *, public_key: Path | None = None) -> bool:
    """Say whether a path looks like a bundle: a folder, or a file that begins as a zip file does.

    Raises:
        BundleError: if it does not, and a signature is asked for.
    """
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            found = file.read(4) == b"PK\3\4"
    except OSError:  # whoever opens it will say what is wrong, and ask for the signature
        return path.suffix == ".lship"
    if not found and public_key is not None:
        raise BundleError(
            f"{path}: is no bundle, and only a bundle bears a signature; give one that "
            "lightship bundle --sign made, or leave --public-key out"
        )
    return found


def file_facts(content: bytes) -> FileFacts:
    """Return size and digest of a file's bytes."""
    return FileFacts(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _why_not_consistent(manifest: Manifest, golden: Golden) -> str | None:
    raw, outputs, task = manifest.raw, manifest.output.shape, manifest.goal.task
    why_not = why_not_metric(task, manifest.goal.metric)
    if why_not is not None:
        return why_not
    if task == "reconstruction":
        if outputs != manifest.input.shape:
            return f"has outputs of shape {outputs} for inputs of {manifest.input.shape}"
    elif (
        len(outputs) != 1
        or len(manifest.labels) != outputs[0]
        or (task == "classification" and outputs[0] < 2)
    ):
        return f"has {len(manifest.labels)} labels for scores of shape {outputs}"
    samples = manifest.golden.samples
    if golden.x.shape != (samples, *raw.shape) or golden.x.dtype != raw.dtype:
        return f"golden.npz holds samples {golden.x.shape}, not {samples} of {raw.shape}"
    if golden.scores.shape != (samples, *outputs) or golden.scores.dtype.kind != "f":
        return f"golden.npz holds scores {golden.scores.shape} for {samples} samples"
    return None


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor version.

    >>> _release("1.20.1") < _release("1.25")
    True
    """
    return tuple(int(part) for part in version.split(".")[:2])
