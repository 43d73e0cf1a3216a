"""What a model file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import needs_extra
from deploy.session import ModelMetadata, open_model


def with_metadata(model: Any, metadata: ModelMetadata) -> Any:
    """Return a copy of a ``ModelProto`` that carries ``metadata`` in its ``metadata_props``.

    Our entries are replaced as a whole; entries of other makers stay.
    """
    twin = type(model)()
    twin.CopyFrom(model)
    props = metadata.to_props()
    foreign = [entry for entry in model.metadata_props if not entry.key.startswith("lightship.")]
    del twin.metadata_props[:]
    twin.metadata_props.extend(foreign)
    for key, text in props.items():
        twin.metadata_props.add(key=key, value=text)
    return twin


def load_onnx(path: Path) -> Any:
    """Read an ONNX file as a ``ModelProto``, weights included.

    Raises:
        UserError: if the file is missing or is no model that ONNX Runtime can open.
    """
    with needs_extra("compress"):
        import onnx
    open_model(path)  # refuses what is no model in one line, and what could not be measured anyway
    return onnx.load(str(path))
