"""A Keras 3 model rebuilt in tf-keras, layer by layer."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deploy.errors import UserError

_TOLERANCE = 1e-5
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
_EXPANDED = frozenset({"hard_sigmoid", "hard_silu", "hard_swish"})
"""Activations that tf-keras lacks, or has with another slope (its ``hard_sigmoid``)."""
_ACTIVATION_NAMES = {"silu": "swish"}
"""Where tf-keras knows an activation by another name."""
_UNARY = frozenset({"Relu", "Selu", "Sigmoid", "Silu", "Softmax", "Softplus", "Softsign", "Tanh"})
"""Functions of ``keras.ops`` that are activations of tf-keras."""

Apply = Callable[..., Any]
"""What stands for a layer while the graph is rebuilt: tf-keras tensors in, tf-keras tensor out.

Called as ``apply(*args, training=..., **kwargs)``, where None leaves training to the whole model.
"""


def from_keras3(model: Any, *, where: str) -> Any:
    """Return a ``tf_keras.Model`` with the layers, weights and outputs of a Keras 3 model.

    Nested models are laid out flat, their layers named ``OUTER_INNER``. Mixed precision becomes
    float32, in which its weights are stored. Initialisers are dropped, since the weights are
    copied; regularisers and constraints stay. ``hard_sigmoid`` and ``hard_silu`` become layers
    that tf-keras has.

    Args:
        model: a ``keras.Model`` that is Sequential or Functional.
        where: what the messages call the model.

    Raises:
        UserError: if a layer or a setting of one has no counterpart in tf-keras, or the outputs on
            random inputs differ by more than 1e-5 of the largest output (at least of 1).
    """
    import keras
    import tf_keras

    if not (isinstance(model, keras.Sequential) or _is_functional(model)):
        raise UserError(
            f"{where}: {type(model).__name__} is a subclassed model; "
            f"rebuild it as keras.Sequential or keras.Model(x, y)"
        )
    if not getattr(model, "inputs", None):
        raise UserError(
            f"{where}: has no input shape; start it with keras.layers.Input and save again"
        )
    if any(size is None for x in model.inputs for size in x.shape[1:]):
        shapes = ", ".join(str(tuple(x.shape[1:])) for x in model.inputs)
        raise UserError(f"{where}: only the batch axis may be free, got samples of shape {shapes}")
    translation = _Translation(where)
    try:
        inputs = [tf_keras.Input(x.shape[1:], dtype=x.dtype, name=x.name) for x in model.inputs]
        outputs = translation.through(model, inputs, prefix="")
        rebuilt = tf_keras.Model(inputs, outputs, name=model.name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: tf-keras cannot rebuild it: {_one_line(error)}") from error
    translation.copy_weights()
    _require_same_outputs(model, rebuilt, where)
    return rebuilt


class _Translation:
    """One model on its way to tf-keras; a layer that is used twice is translated once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._applied: dict[int, Apply] = {}
        self._pairs: list[tuple[Any, Any]] = []
        """Each Keras 3 layer with the tf-keras layer that stands for it."""
        self._names: Counter[str] = Counter()

    def through(
        self, model: Any, inputs: list[Any], *, prefix: str, training: bool | None = None
    ) -> Any:
        """Send tf-keras tensors through a Keras 3 model; return its output, or outputs.

        ``training`` goes to every layer: a frozen network inside another is called with False.
        """
        import keras

        if isinstance(model, keras.Sequential):
            (x,) = inputs
            for layer in model.layers:
                x = self._apply_of(layer, prefix)(x, training=training)
            return x
        operations = {operation.name: operation for operation in model.operations}
        config = model.get_config()
        ready = dict(zip(_triples(config["input_layers"]), inputs, strict=True))
        waiting = [
            (entry["name"], index, node)
            for entry in config["layers"]
            for index, node in enumerate(entry["inbound_nodes"])
        ]
        while waiting:
            blocked = []
            for name, index, node in waiting:
                if all(history in ready for history in _histories(node)):
                    outputs = self._apply_of(operations[name], prefix)(
                        *_filled(node["args"], ready),
                        **{"training": training}
                        | {
                            key: _filled(value, ready)
                            for key, value in node["kwargs"].items()
                            # tf-keras passes masks along by itself.
                            if value is not None and key != "mask"
                        },
                    )
                    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
                    ready.update({(name, index, i): y for i, y in enumerate(outputs)})
                else:
                    blocked.append((name, index, node))
            if len(blocked) == len(waiting):
                raise UserError(f"{self._where}: the layers of {model.name!r} do not connect")
            waiting = blocked
        outputs = []
        for name, index, i in _triples(config["output_layers"]):
            # Here alone Keras 3 counts the uses of a nested functional model from 1.
            first = 1 if _is_functional(operations[name]) else 0
            outputs.append(ready[name, index - first, i])
        return outputs[0] if len(outputs) == 1 else outputs

    def copy_weights(self) -> None:
        """Give every tf-keras layer the weights of the layer that it stands for."""
        for source, target in self._pairs:
            try:
                target.set_weights(source.get_weights())
            except ValueError as error:
                raise self._refusal(source, "has other weights in tf-keras") from error
            if hasattr(target, "finalize_state"):
                target.finalize_state()  # Normalization computes what it uses from its weights

    def _apply_of(self, operation: Any, prefix: str) -> Apply:
        key = id(operation)
        if key not in self._applied:
            self._applied[key] = self._translated(operation, prefix)
        return self._applied[key]

    def _translated(self, operation: Any, prefix: str) -> Apply:
        import keras

        name = prefix + operation.name
        if isinstance(operation, keras.Model):

            def nested(x: Any, *, training: bool | None) -> Any:
                inputs = list(x) if isinstance(x, (list, tuple)) else [x]
                return self.through(operation, inputs, prefix=f"{name}_", training=training)

            return nested
        if isinstance(operation, keras.layers.Layer):
            return self._layer(operation, self._unique(name))
        return lambda *operands, training: self._arithmetic(operation, self._unique(name), operands)

    def _unique(self, name: str) -> str:
        """Return the name, or a new one if it is taken: arithmetic that is used twice is two layers."""
        self._names[name] += 1
        times = self._names[name]
        return name if times == 1 else f"{name}_use{times}"

    def _layer(self, layer: Any, name: str) -> Apply:
        import keras
        import tf_keras

        kind = type(layer).__name__
        config = keras.saving.serialize_keras_object(layer)["config"]
        if isinstance(layer, keras.layers.Lambda):  # only a file that is trusted gets here
            return _called(
                tf_keras.layers.Lambda(layer.function, arguments=layer.arguments, name=name)
            )
        target_class = getattr(tf_keras.layers, kind, None)
        if target_class is None or not type(layer).__module__.startswith("keras."):
            raise self._refusal(layer, "has no counterpart in tf-keras")
        activation = _activation_name(config.get("activation"))
        expanded = activation in _EXPANDED
        if expanded:
            config["activation"] = "linear"
        elif activation is not None:
            if not hasattr(tf_keras.activations, activation):
                raise self._refusal(
                    layer, f"has the activation {activation!r}, unknown to tf-keras"
                )
            config["activation"] = activation
        settings, without = _settings(config, type(layer), target_class)
        if without:
            raise self._refusal(layer, f"has {', '.join(without)}, a setting that tf-keras lacks")
        # Its from_config wants the shapes of a built layer; the shapes come with the call anyway.
        make = target_class if kind == "MultiHeadAttention" else _from_config(target_class)
        try:
            target = make(**settings | {"name": name})
        except (TypeError, ValueError) as error:
            raise self._refusal(layer, f"is refused by tf-keras: {_one_line(error)}") from error
        self._pairs.append((layer, target))
        if not expanded:
            return _called(target)
        after = _hard_sigmoid(name) if activation == "hard_sigmoid" else _hard_silu(name)
        before = _called(target)
        return lambda *args, **kwargs: after(before(*args, **kwargs))

    def _arithmetic(self, operation: Any, name: str, operands: tuple[Any, ...]) -> Any:
        """Rebuild ``x + y``, ``2 * x``, ``keras.ops.relu(x)`` … as layers."""
        from tf_keras import layers

        kind = type(operation).__name__
        numbers = [x for x in operands if isinstance(x, (int, float))]
        tensors = [x for x in operands if not isinstance(x, (int, float))]
        if not numbers and kind in {"Add", "Subtract", "Multiply", "Maximum", "Minimum"}:
            return getattr(layers, kind)(name=name)(tensors)
        if not numbers and len(tensors) == 1 and kind in _UNARY:
            return layers.Activation(_activation_name(kind.lower()), name=name)(tensors[0])
        scale_offset = (
            _scale_offset(kind, numbers[0], number_first=operands[0] is numbers[0])
            if len(numbers) == len(tensors) == 1
            else None
        )
        if scale_offset is None:
            raise self._refusal(operation, "has no counterpart in tf-keras")
        return _line(*scale_offset, name=name)(tensors[0])

    def _refusal(self, operation: Any, reason: str) -> UserError:
        return UserError(
            f"{self._where}: the layer {operation.name!r} ({type(operation).__name__}) {reason}; "
            f"replace it, or rebuild the network with tf_keras"
        )


def _scale_offset(kind: str, number: float, *, number_first: bool) -> tuple[float, float] | None:
    """Return arithmetic with a number as ``x * scale + offset``, or None where it is not that."""
    match kind, number_first:
        case "Add", _:
            return 1.0, number
        case "Multiply", _:
            return number, 0.0
        case "Subtract", False:
            return 1.0, -number
        case "Subtract", True:
            return -1.0, number
        case (("Divide" | "TrueDivide"), False):
            return 1.0 / number, 0.0
        case _:
            return None


def _called(layer: Any) -> Apply:
    """Return the layer as an ``Apply``: told of training only where it was said and it listens."""
    listens = "training" in inspect.signature(layer.call).parameters

    def apply(*args: Any, training: bool | None, **kwargs: Any) -> Any:
        if listens and training is not None:
            kwargs["training"] = training
        return layer(*args, **kwargs)

    return apply


def _line(scale: float, offset: float, *, name: str) -> Any:
    """Return the layer ``x * scale + offset``.

    One-entry lists, because tf2onnx's transpose optimiser gives up at an added scalar.
    """
    from tf_keras import layers

    return layers.Rescaling([scale], [offset], name=name)


def _hard_sigmoid(name: str) -> Apply:
    """``min(max(x / 6 + 1/2, 0), 1)``, as ``keras.activations.hard_sigmoid`` of Keras 3."""
    from tf_keras import layers

    slope = _line(1.0 / 6.0, 0.5, name=f"{name}_slope")
    clip = layers.ReLU(max_value=1.0, name=f"{name}_clip")
    return lambda x: clip(slope(x))


def _hard_silu(name: str) -> Apply:
    """``x * hard_sigmoid(x)``, as ``keras.activations.hard_silu`` of Keras 3."""
    from tf_keras import layers

    gate, product = _hard_sigmoid(name), layers.Multiply(name=f"{name}_gate")
    return lambda x: product([x, gate(x)])


def _from_config(layer_class: Any) -> Apply:
    return lambda **settings: layer_class.from_config(settings)


def _settings(
    config: dict[str, Any], source_class: type, target_class: type
) -> tuple[dict[str, Any], list[str]]:
    """Return a layer's config in tf-keras' terms, beside the settings that mean what it lacks."""
    defaults = inspect.signature(vars(source_class).get("__init__", source_class)).parameters
    accepted = _accepted(target_class)
    settings, without = {}, []
    for key, value in config.items():
        target_key = _RENAMED.get((source_class.__name__, key), key)
        if key.endswith("_initializer"):
            continue
        if target_key in accepted:
            settings[target_key] = _in_tf_keras_terms(value)
        elif not (
            value is None
            or value is False
            or (key == "data_format" and value == "channels_last")
            or (key in defaults and defaults[key].default == value)
        ):
            without.append(f"{key}={value!r}")
    return settings, without


def _accepted(layer_class: type) -> set[str]:
    """Return the settings a tf-keras layer class and its bases take by name."""
    return {"name", "trainable", "dtype"}.union(
        *(
            inspect.signature(vars(base)["__init__"]).parameters
            for base in layer_class.__mro__
            if "__init__" in vars(base)
        )
    )


def _in_tf_keras_terms(value: Any) -> Any:
    """Return one value of a config as tf-keras writes it; a wrapped layer is a value as well."""
    if isinstance(value, (list, tuple)):
        return [_in_tf_keras_terms(item) for item in value]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    import keras
    import tf_keras

    kind, config = value["class_name"], value["config"]
    if kind == "DTypePolicy":
        policy = str(config["name"])
        return "float32" if policy.startswith("mixed_") else policy
    source_class, target_class = (getattr(k.layers, kind, None) for k in (keras, tf_keras))
    if source_class is not None and target_class is not None:
        config, _ = _settings(config, source_class, target_class)
    return {"class_name": kind, "config": config}


def _activation_name(activation: Any) -> str | None:
    """Return tf-keras' name of an activation, which a config holds as text or as a dictionary."""
    if activation is None:
        return None
    name = str(activation["config"] if isinstance(activation, dict) else activation)
    return _ACTIVATION_NAMES.get(name, name)


def _is_functional(operation: Any) -> bool:
    """Say whether this is a functional Keras 3 model, whose class Keras 3 does not export."""
    import keras

    return (
        isinstance(operation, keras.Model)
        and not isinstance(operation, keras.Sequential)
        and hasattr(operation, "operations")
    )


def _triples(nested: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the (layer, node, tensor) triples of ``input_layers``, however deep it nests them."""
    if isinstance(nested, (list, tuple)) and len(nested) == 3 and isinstance(nested[0], str):
        name, node, tensor = nested
        yield name, node, tensor
    else:
        for item in nested.values() if isinstance(nested, dict) else nested:
            yield from _triples(item)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _histories(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield where each tensor in a node's arguments comes from."""
    if _is_tensor(value):
        yield tuple(value["config"]["keras_history"])
    elif isinstance(value, dict):
        for item in value.values():
            yield from _histories(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _histories(item)


def _filled(value: Any, ready: dict[tuple[Any, ...], Any]) -> Any:
    """Return a node's arguments with tf-keras tensors in their places."""
    if _is_tensor(value):
        return ready[tuple(value["config"]["keras_history"])]
    if isinstance(value, (list, tuple)):
        return [_filled(item, ready) for item in value]
    return value


def _require_same_outputs(model: Any, rebuilt: Any, where: str) -> None:
    """Compare both models on random samples of the two usual ranges, [-1, 1) and [0, 255).

    Trained weights make this a sharp test; the outputs of an untrained network may hardly depend
    on its inputs, and then agreement says little.
    """
    import keras

    _compute_in_float32(model)
    rng = np.random.default_rng(0)
    inputs = [_random_inputs(rng, x) for x in model.inputs]
    argument = inputs[0] if len(inputs) == 1 else inputs
    expected = [
        keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(argument, training=False))
    ]
    found = [np.asarray(y) for y in keras.tree.flatten(rebuilt(argument, training=False))]
    for y, z in zip(expected, found, strict=True):
        allowed = _TOLERANCE * max(1.0, float(np.max(np.abs(y))))
        difference = float(np.max(np.abs(y - z)))
        if not difference <= allowed:  # NaN fails
            raise UserError(
                f"{where}: rebuilt in tf-keras its outputs differ by {difference:.1e}, "
                f"more than {allowed:.1e}; rebuild the network with tf_keras"
            )


def _random_inputs(rng: np.random.Generator, x: Any) -> np.ndarray[Any, Any]:
    shape = tuple(x.shape[1:])
    if "int" in x.dtype:
        return rng.integers(0, 2, (4, *shape)).astype(x.dtype)
    small, large = rng.uniform(-1, 1, (2, *shape)), rng.uniform(0, 255, (2, *shape))
    return np.concatenate([small, large]).astype(x.dtype)


def _compute_in_float32(model: Any) -> None:
    """Let the layers of a mixed-precision model compute in the type their weights have."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            _compute_in_float32(layer)
        if layer.dtype_policy.name.startswith("mixed_"):
            layer.dtype_policy = "float32"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
