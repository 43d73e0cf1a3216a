"""What in a saved network's config would run code of its maker when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator

_HOUSES = ("keras", "tf_keras")
_ROOMS = (
    "activations", "constraints", "dtype_policies", "engine", "initializers", "layers",
    "mixed_precision", "models", "ops", "regularizers",
)  # fmt: skip
"""The modules of Keras that define networks. ``utils`` and others hold functions that fetch
files or write them, and a loader calls whatever callable a config names."""

_CODE_LAYERS = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper"})
"""Bytecode, a SavedModel from elsewhere, a pickle."""

_TF_FUNCTIONS = ("__operators__.", "math.", "nn.", "quantization.fake_quant_")
_TF_NAMES = frozenset(
    {"cast", "clip_by_value", "compat.v1.gather", "concat", "expand_dims", "gather", "identity"}
    | {"pad", "repeat", "reshape"}
    | {"slice", "split", "squeeze", "stack", "tile", "transpose", "unstack", "image.resize"}
)
"""What a ``TFOpLambda`` may name: pure arithmetic. ``io.write_file`` is in TensorFlow as well."""


def embedded_code(config: object) -> Iterator[str]:
    """Yield, in order, what in a config would run code; nothing means that loading is safe.

    Args:
        config: a network's config as JSON gives it: dictionaries, lists and plain values. What
            lies under its own ``compile_config`` is passed over: networks are loaded uncompiled.

    >>> list(embedded_code({"class_name": "Lambda", "config": {"name": "twice"}}))
    ["the Lambda layer 'twice'"]
    >>> list(embedded_code({"class_name": "Dense", "module": "keras.layers", "config": {}}))
    []
    """
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key != "compile_config"}
    yield from _inside(config)


def _inside(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        reason = _why_not_safe(value) if "class_name" in value else None
        if reason is not None:
            yield reason
        for child in value.values():
            yield from _inside(child)
    elif isinstance(value, list):
        for child in value:
            yield from _inside(child)


def _why_not_safe(entry: dict[str, object]) -> str | None:
    """Say why loading this object would run code, or None if it would not."""
    kind, config, module = entry["class_name"], entry.get("config"), entry.get("module")
    name = config.get("name") if isinstance(config, dict) else config
    if kind in _CODE_LAYERS:
        return f"the {kind} layer {name!r}"
    if kind == "__lambda__":
        return "a Python lambda stored as bytecode"
    if kind == "ClassMethod" or (
        kind in {"TFOpLambda", "SlicingOpLambda"} and not _is_arithmetic(config)
    ):
        return f"the layer {name!r}, which calls a TensorFlow function that is not plain arithmetic"
    if module is None and ">" in str(entry.get("registered_name")):
        return f"the registered object {entry['registered_name']!r}"
    if module is not None and not _defines_networks(str(module)):
        return f"the {kind} {name!r} of the module {module!r}"
    return None


def _is_arithmetic(config: object) -> bool:
    function = str(config.get("function")) if isinstance(config, dict) else ""
    return function.startswith(_TF_FUNCTIONS) or function in _TF_NAMES


def _defines_networks(module: str) -> bool:
    house, *rooms = module.split(".")
    rooms = [room for room in rooms if room != "src"]
    return house in _HOUSES and (not rooms or rooms[0] in _ROOMS)
