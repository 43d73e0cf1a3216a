"""How a bundle is opened: everything is checked before anything is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnxruntime as ort

from deploy.bundle.container import CARD, GOLDEN, MANIFEST, MODEL, read_container, sums
from deploy.bundle.golden import Golden
from deploy.bundle.golden import decode as decode_golden
from deploy.bundle.manifest import FileFacts, Manifest, decode
from deploy.bundle.needs import graph_facts
from deploy.errors import BundleError, UserError
from deploy.goals import why_not_metric
from deploy.record import BundleId, SessionOptions
from deploy.session import Model, open_model


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte has been checked.

    Attributes:
        where: the file or folder, as its user wrote it; errors begin with it.
        manifest: what it says of itself.
        model: the bytes of the ONNX model.
        golden: samples with the scores that they have to get.
        card: the model card, Markdown.
        digest: sha256 of ``SHA256SUMS``, the same for the file and the folder.
    """

    where: str
    manifest: Manifest
    model: bytes
    golden: Golden
    card: str
    digest: str

    @property
    def id(self) -> BundleId:
        """Which bundle it is."""
        return BundleId(name=self.manifest.name, version=self.manifest.version, digest=self.digest)

    def session(self, threads: int | None = None) -> Model:
        """Open the model with the options that the manifest tells.

        Args:
            threads: threads of one run, in place of the manifest's.

        Raises:
            UserError: if this machine's ONNX Runtime is older than the model needs.
            BundleError: if it does not open the model, or the model is not what the manifest says.
        """
        least = self.manifest.requires.onnxruntime
        if _release(ort.__version__) < _release(least):
            raise UserError(
                f"{self.where}: needs ONNX Runtime {least} or newer, this is {ort.__version__}; "
                f"install it with: pip install 'onnxruntime>={least}'"
            )
        options = self.manifest.session
        if threads is not None:
            options = msgspec.structs.replace(options, threads=threads)
        return self._open(options)

    def _open(self, options: SessionOptions) -> Model:
        said = self.manifest
        try:
            model = open_model(self.model, options)
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


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and check it: sizes, layout, digests, manifest, graph, golden samples.

    Raises:
        UserError: if nothing is there or it cannot be read.
        BundleError: if it is damaged, is no bundle, or contradicts itself.
    """
    return checked(read_container(path), str(path))


def checked(files: Mapping[str, bytes], where: str) -> Bundle:
    """Return a bundle's files as a bundle, once they are known to agree with each other.

    Raises:
        BundleError: if they do not.
    """
    manifest = decode(files[MANIFEST], where)
    facts = {name: file_facts(files[name]) for name in files if name != MANIFEST}
    if manifest.files != facts:
        raise BundleError(f"{where}: manifest.json lists other files than there are")
    golden = decode_golden(files[GOLDEN], where)
    try:
        graph = graph_facts(files[MODEL])
        card = files[CARD].decode()
    except (UserError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{where}: {MODEL if isinstance(error, UserError) else CARD} {error}"
        ) from error
    asked = (manifest.requires.ir_version, manifest.requires.opsets)
    if (graph.ir_version, graph.opsets) != asked:
        raise BundleError(f"{where}: {MODEL} needs other versions than manifest.json says")
    why_not = _why_not_consistent(manifest, golden)
    if why_not:
        raise BundleError(f"{where}: {why_not}")
    return Bundle(
        where=where,
        manifest=manifest,
        model=files[MODEL],
        golden=golden,
        card=card,
        digest=hashlib.sha256(sums(files)).hexdigest(),
    )


def is_bundle(path: Path) -> bool:
    """Say whether a path looks like a bundle: a folder, or a file that begins as a zip file does."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:  # whoever opens it will say what is wrong
        return path.suffix == ".lship"


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
