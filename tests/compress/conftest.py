"""A task small enough to learn in a second."""

import numpy as np
import pytest

from compress.data.task import Split, Task
from deploy import bench
from deploy.preprocess import Cast


@pytest.fixture(scope="module", autouse=True)
def _models_are_opened_once_for_their_memory():
    """Spare the runs of this suite two of three processes for each model: what they hear is alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_OPENINGS", 1)
        yield


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """8×8×1 images of 3 classes: a Gaussian blob in one of three places, in noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :8]
    centres = ((2, 2), (2, 5), (5, 3))
    blobs = np.stack([np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 4) for r, c in centres])

    def split(samples: int) -> Split:
        y = np.arange(samples) % 3
        x = blobs[y] + rng.normal(0, 0.2, (samples, 8, 8))
        x = x[..., None].astype(np.float32)
        return Split(raw=x, x=x, y=y)

    train = split(192)
    return Task(
        name="tiny",
        digest="tiny",
        licence="CC0-1.0",
        labels=("upper left", "upper right", "below"),
        preprocess=(Cast(),),
        train=train,
        calibration=Split(raw=train.raw[:24], x=train.x[:24], y=train.y[:24]),
        validation=split(48),
        test=split(48),
    )
