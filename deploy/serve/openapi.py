"""The server's own description, OpenAPI 3.1."""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

import numpy as np

from deploy.record import TaskKind
from deploy.serve.served import Models, Served

Schema = dict[str, Any]

_PARAMETERS: Schema = {"type": "object", "description": "Extensions; what is unknown is ignored."}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_TENSOR: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "-1: any number of samples.",
        },
    },
}
_METADATA: Schema = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        "parameters": {
            "type": "object",
            "description": "Ours: version, task, unit (of a regression), labels (names of classes, "
            "labels or targets), scores (probabilities, logits, values or reconstruction), digest.",
        },
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape", "data"],
                "properties": {
                    **_TENSOR["properties"],
                    "data": {"type": "array", "description": "Flat, in row order."},
                },
            },
        },
    },
}
_WHY = {
    400: "The request is not what the model takes.",
    401: "There is no API key, or another.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    503: "Too many requests wait; try again after the seconds in Retry-After.",
}
_ANSWERS: dict[TaskKind, str] = {
    "classification": "the name of the best class, the probability of each, and the graph's own "
    "scores",
    "multi_label": "the probability of each label; a sample has those of one half or more",
    "regression": "the value of each target, in the unit that the metadata states",
    "reconstruction": "the anomaly score: more is less usual",
}
_HEADER = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "Bytes of JSON, where binary tensors follow it.",
}


def describe(models: Models, *, needs_key: bool) -> Schema:
    """Return the description of a server of these models, as JSON would have it."""
    paths: Schema = {
        "/v2": {"get": _get("The server's name and version", _object("name", "version"))},
        "/v2/health/live": {"get": _get("Is the server alive?", _object("live"), public=True)},
        "/v2/health/ready": {"get": _get("Would it answer?", _object("ready"), public=True)},
        "/v2/repository/index": {
            "post": _get("All models", {"type": "array", "items": _object("name", "version")})
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus",
                "responses": {
                    "200": {
                        "description": "Its text format.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                },
            }
        },
    }
    for model in models:
        newest = models.find(model.name, None) is model
        for path in _paths(model) if newest else _paths(model)[1:]:
            paths[path] = {"get": _get("What the model takes and gives", _ref("ModelMetadata"))}
            paths[f"{path}/ready"] = {"get": _get("Would it answer?", _object("name", "ready"))}
            paths[f"{path}/infer"] = {"post": _infer(model)}
    if needs_key:
        for operations in paths.values():
            for operation in operations.values():
                if operation.get("security") is None:
                    operation["responses"]["401"] = _refused(401)
    schemes: Schema = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lightship",
            "version": importlib.metadata.version("lightship"),
            "description": "The Open Inference Protocol v2. Models take raw samples, as a camera "
            "or a data set gives them: preprocessing is the server's.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": _ERROR,
                "Tensor": _TENSOR,
                "ModelMetadata": _METADATA,
                "Answer": _ANSWER,
            },
            **({"securitySchemes": schemes} if needs_key else {}),
        },
        **({"security": [{"bearer": []}, {"key": []}]} if needs_key else {}),
    }


def _paths(model: Served) -> tuple[str, str]:
    path = f"/v2/models/{model.name}"
    return path, f"{path}/versions/{model.version}"


def _infer(model: Served) -> Schema:
    statuses = (400, 404, 408, 413, 415, 503)
    task = model.runtime.metadata.goal.task
    names = ", ".join(f"`{spec.name}`" for spec in model.outputs)
    return {
        "summary": f"Ask {model.name} {model.version}",
        "description": f"Answers with {_ANSWERS[task]}: {names}.",
        "parameters": [_HEADER],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _question(model),
                    **({"example": _sample(model)} if _is_small(model) else {}),
                }
            },
        },
        "responses": {
            "200": {
                "description": "The answer. Binary tensors, where asked for, follow the JSON.",
                "content": {
                    "application/json": {"schema": _ref("Answer")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **{str(status): _refused(status) for status in statuses},
        },
    }


def _question(model: Served) -> Schema:
    tensor, dtype = model.input, np.dtype(model.runtime.metadata.raw.dtype)
    element: Schema = {"type": "boolean"} if dtype.kind == "b" else {"type": "number"}
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        element = {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    nested: Schema = element
    for axis in reversed(tensor.shape):
        nested = {"type": "array", "items": nested, "minItems": axis, "maxItems": axis}
    given = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": tensor.name},
            "datatype": {"const": tensor.datatype},
            "shape": {
                "type": "array",
                "prefixItems": [
                    {"type": "integer", "minimum": 1},
                    *({"const": axis} for axis in tensor.shape),
                ],
                "minItems": 1 + len(tensor.shape),
                "maxItems": 1 + len(tensor.shape),
            },
            "parameters": {
                "type": "object",
                "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
            },
            "data": {
                "type": "array",
                "minItems": 1,
                "description": "Nested, or flat in row order.",
                "anyOf": [{"items": element}, {"items": nested}],
            },
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": [spec.name for spec in model.outputs]},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                **_PARAMETERS,
                "properties": {
                    "binary_data_output": {"type": "boolean"},
                    "timeout": {
                        "type": "integer",
                        "minimum": 0,
                        "description": "Microseconds in the queue, at most.",
                    },
                },
            },
            "inputs": {"type": "array", "items": given, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
        },
    }


def _is_small(model: Served) -> bool:
    return math.prod(model.input.shape) <= 4096


def _sample(model: Served) -> Schema:
    """Return a request that is answered: one sample of zeros."""
    zero = False if model.input.datatype == "BOOL" else 0
    tensor = {
        "name": model.input.name,
        "datatype": model.input.datatype,
        "shape": [1, *model.input.shape],
        "data": [zero] * math.prod(model.input.shape),
    }
    return {"inputs": [tensor], "outputs": [{"name": model.outputs[0].name}]}


def _get(summary: str, schema: Schema, *, public: bool = False) -> Schema:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "Yes.", "content": {"application/json": {"schema": schema}}}
        },
        **({"security": []} if public else {}),
    }


def _object(*names: str) -> Schema:
    return {"type": "object", "required": list(names)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _refused(status: int) -> Schema:
    return {
        "description": _WHY[status],
        "content": {"application/json": {"schema": _ref("Error")}},
    }
