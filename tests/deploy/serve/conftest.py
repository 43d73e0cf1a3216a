"""Models small enough to check by hand, and servers that run in a process of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from deploy.bundle.make import Label, bundle_model
from deploy.evalset import EvalSet
from deploy.preprocess import Reshape, Scale
from deploy.session import ModelMetadata
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny
from tests.deploy.serve.client import Client

SIDE = 8


def halves(count=24) -> EvalSet:
    """Grey images, white on the left or on the right."""
    y = np.arange(count) % 2
    x = np.random.default_rng(0).integers(0, 100, (count, SIDE, SIDE), dtype=np.uint8)
    for image, right in zip(x, y, strict=True):
        image[:, SIDE // 2 * right : SIDE // 2 * (right + 1)] += 150
    return EvalSet(x=x, y=y)


def halves_model() -> bytes:
    """Two scores, the light on each side, as logits."""
    columns = np.tile(np.arange(SIDE) < SIDE // 2, SIDE)
    weights = np.stack([columns, ~columns], axis=1).astype(np.float32) / 4
    about = ModelMetadata(
        step={"kind": "train"},
        preprocess=(Reshape(shape=(SIDE * SIDE,)), Scale(factor=1 / 255)),
        labels=("left", "right"),
        data="halves",
        data_licence="CC0",
    )
    return tiny_onnx.linear(weights, metadata=about.to_props())


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """colours 1.0.0, colours 2.0.0 and halves 1.0.0."""
    folder = tmp_path_factory.mktemp("served")
    made = tiny.write_model(folder / "colours")
    paths = [folder / name for name in ("colours.lship", "colours2.lship", "halves.lship")]
    bundle_model(*made, paths[0])
    bundle_model(*made, paths[1], label=Label(name="colours", version="2.0.0"))
    (folder / "halves").mkdir()
    (folder / "halves" / "model.onnx").write_bytes(halves_model())
    halves().save(folder / "halves" / "test.npz")
    bundle_model(folder / "halves" / "model.onnx", folder / "halves" / "test.npz", paths[2])
    return paths


@pytest.fixture(scope="session")
def floats(tmp_path_factory):
    """A bundle of a model that takes three floats, as no image has them."""
    folder = tmp_path_factory.mktemp("floats")
    about = ModelMetadata(step={"kind": "train"}, labels=tiny.LABELS, data="d", data_licence="CC0")
    tiny.write_model(folder, tiny.model(about))
    samples = tiny.samples()
    x = (samples.x.reshape(-1, 3) / 255).astype(np.float32)
    EvalSet(x=x, y=samples.y).save(folder / "test.npz")
    bundle_model(
        folder / "model.onnx", folder / "test.npz", folder / "f.lship", label=Label(name="floats")
    )
    return folder / "f.lship"


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A bundle of images for each task but classification."""
    folder = tmp_path_factory.mktemp("tasks")
    return {task: tiny.bundle_of(task, folder / task.replace("_", "-")) for task in tiny.GOALS}


class Process:
    """``lightship serve`` in a process of its own."""

    def __init__(self, *words, environment=None):
        command = "from deploy.cli import cli; cli()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", *map(str, words), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        said = ""
        for line in self.process.stdout:
            said += line
            if line == "}\n":
                break
        else:
            raise RuntimeError(self.process.stderr.read())
        self.ready = json.loads(said)
        self.url = self.ready["url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def client(self, **settings):
        return Client(self.port, **settings)

    def stop(self, number=signal.SIGTERM):
        """Ask it to stop; return its exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture(scope="session")
def serving():
    """Start servers that end with the block, well and without a word."""
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

    @contextlib.contextmanager
    def start(*words, environment=None):
        server = Process(*words, environment=environment)
        try:
            yield server
            if server.process.poll() is None:
                assert server.stop() == (0, "")
        finally:
            server.process.kill()
            server.process.communicate()

    return start


@pytest.fixture(scope="session")
def server(serving, bundles):
    """A server of all bundles, with small limits, that every test may ask."""
    with serving(*bundles, "--max-body-mb", 0.2, "--timeout-s", 1.5) as running:
        yield running


@pytest.fixture
def client(server):
    with contextlib.closing(server.client()) as one:
        yield one
