"""What a training writes for people while it runs: a table and TensorBoard's logs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.train.checkpoint import EpochEnd
from deploy.errors import UserError


def epochs_csv(epochs: Sequence[EpochEnd]) -> str:
    """Return a table with one line an epoch: its metrics, learning rate and seconds."""
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["epoch", *names, "learning_rate", "seconds"])
    for epoch in epochs:
        values = [epoch.metrics.get(name, "") for name in names]
        table.writerow([epoch.epoch, *values, epoch.learning_rate, round(epoch.seconds, 3)])
    return text.getvalue()


def write_csv(path: Path, epochs: Sequence[EpochEnd]) -> None:
    """Write the table of the epochs so far; it is whole at any moment.

    Raises:
        UserError: if it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(epochs_csv(epochs), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


class TensorBoard:
    """Writes each epoch's metrics and learning rate; reading them needs TensorBoard, this does not."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
        self._writer: Any = tf.summary.create_file_writer(str(folder))
        # What tf.summary.scalar writes; that function needs TensorBoard installed.
        self._kind = tf.compat.v1.SummaryMetadata()
        self._kind.plugin_data.plugin_name = "scalars"

    def write(self, epoch: EpochEnd) -> None:
        """Add one epoch."""
        import tensorflow as tf

        with self._writer.as_default():
            for name, value in {**epoch.metrics, "learning_rate": epoch.learning_rate}.items():
                tag = f"validation/{name[4:]}" if name.startswith("val_") else f"training/{name}"
                tf.summary.write(
                    tag, tf.constant(value, tf.float32), step=epoch.epoch, metadata=self._kind
                )
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
