"""The model in a bundle as a file, for those who time files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.bundle.opened import is_bundle, open_bundle
from deploy.errors import UserError, naming_what_was_given
from deploy.record import Benched, SessionOptions, sha256_of


@contextlib.contextmanager
def to_bench(
    paths: Sequence[Path],
    session: SessionOptions = SessionOptions(),
    *,
    public_key: Path | None = None,
) -> Iterator[tuple[list[Path], tuple[Benched, ...]]]:
    """Yield a model file for each model or bundle, and what was named by it.

    Models that come in bundles lie in a temporary folder as long as the block lasts; its errors name
    the bundle.

    Args:
        paths: model files and bundles; bundles are checked whole.
        session: the options that are timed; the number of threads is whoever's who times.
        public_key: whose signature each of them has to bear; None asks for none.

    Raises:
        UserError: if a file is missing, a bundle is damaged or not signed as asked, or a bundle
            tells session options other than those that are timed.
    """
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        files, named = _unpacked(paths, Path(scratch), session, public_key)
        given = {str(file.absolute()): str(path) for file, path in zip(files, paths, strict=True)}
        with naming_what_was_given(given):
            yield files, named


def _unpacked(
    paths: Sequence[Path], scratch: Path, session: SessionOptions, public_key: Path | None
) -> tuple[list[Path], tuple[Benched, ...]]:
    files, named = [], []
    for index, path in enumerate(paths):
        if is_bundle(path, public_key=public_key):
            bundle = open_bundle(path, public_key=public_key)
            shipped = bundle.manifest.session
            wanted = shipped.disabled_optimizers
            if wanted != session.disabled_optimizers:
                raise UserError(
                    f"{path}: ships with {', '.join(wanted) or 'no optimizer'} disabled, which "
                    "bench does not time; it would be another model"
                )
            if shipped.exact_sums != session.exact_sums:
                raise UserError(
                    f"{path}: ships with exact_sums {str(shipped.exact_sums).lower()}, which bench does "
                    "not time; it would give other answers"
                )
            if shipped.arena != session.arena:
                raise UserError(
                    f"{path}: ships with the arena {'on' if shipped.arena else 'off'}; time it so: "
                    f"bench {'without' if shipped.arena else 'with'} --no-arena"
                )
            bundle.session()  # refuses a model that is not what the manifest says
            ending = Path(bundle.model_name).suffix
            file = scratch / f"{index}-{bundle.manifest.name}{ending}"
            file.write_bytes(bundle.model)
            sha256, of = bundle.model_sha256, bundle.id
        elif not path.is_file():
            raise UserError(f"{path}: no such file; give an ONNX or .tflite model, or a bundle")
        else:
            file, sha256, of = path, sha256_of(path), None
        files.append(file)
        named.append(Benched(path=str(path), sha256=sha256, bundle=of))
    return files, tuple(named)
