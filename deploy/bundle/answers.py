"""Answers to samples, as a person reads them and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.bundle.manifest import Manifest
from deploy.bundle.runtime import Predictions
from deploy.errors import UserError


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one sample: in a line, and as data."""

    text: str
    data: dict[str, Any]


def answers_in_words(predictions: Predictions, about: Manifest, *, top: int = 1) -> list[Answer]:
    """Return what a bundle answered to each sample.

    Args:
        predictions: the answers.
        about: says the task, the labels and the unit.
        top: how many classes a classifier names, the likeliest first.

    Raises:
        UserError: if an answer is NaN.
    """
    labels, unit = about.labels, about.goal.unit
    if np.isnan(predictions.scores).any():
        raise UserError("the model answered NaN; look for NaN or huge numbers in the samples")
    match about.goal.task:
        case "classification":
            return [_classes(row, labels, top) for row in predictions.probabilities]
        case "multi_label":
            return [
                _labels(row, labels, given)
                for row, given in zip(predictions.scores, predictions.label_sets, strict=True)
            ]
        case "regression":
            return [_values(row, labels, unit) for row in predictions.scores]
        case "reconstruction":
            return [
                Answer(f"anomaly score {row[0]:.6g}", {"anomaly_score": float(row[0])})
                for row in predictions.scores
            ]


def _classes(shares: Any, labels: tuple[str, ...], top: int) -> Answer:
    best = [(labels[i], float(shares[i])) for i in (-shares).argsort(kind="stable")[:top]]
    return Answer(
        "  ".join(f"{label} {share:.1%}" for label, share in best),
        {
            "label": best[0][0],
            "top": [{"label": label, "probability": share} for label, share in best],
        },
    )


def _labels(shares: Any, labels: tuple[str, ...], given: tuple[str, ...]) -> Answer:
    share_of = {label: float(share) for label, share in zip(labels, shares, strict=True)}
    return Answer(
        "  ".join(f"{label} {share_of[label]:.1%}" for label in given) or "no label",
        {"labels": list(given), "probabilities": share_of},
    )


def _values(row: Any, labels: tuple[str, ...], unit: str) -> Answer:
    values = {label: float(value) for label, value in zip(labels, row, strict=True)}
    suffix = f" {unit}" if unit else ""
    return Answer(
        "  ".join(f"{label} {value:.6g}{suffix}" for label, value in values.items()),
        {"values": values, "unit": unit},
    )
