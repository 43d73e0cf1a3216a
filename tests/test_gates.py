"""Every gate of scripts/check fails on a planted violation, and passes without."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON = [sys.executable]

TYPED_SCRIPTS = f"{BIN}/mypy --scripts-are-modules $(grep -l '^#!.*python' scripts/*)"

GATES = {
    "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
    "ruff check": [str(BIN / "ruff"), "check", "."],
    "mypy": [str(BIN / "mypy")],
    "mypy of the scripts": ["sh", "-c", TYPED_SCRIPTS],
    "lint-imports": [str(BIN / "lint-imports")],
    "doctests": [*PYTHON, "-m", "pytest", "-q", "--doctest-modules", "deploy/record.py"],
    "recipe reference": [*PYTHON, "scripts/make_recipe_reference", "--check"],
    "results tables": [*PYTHON, "scripts/make_results_tables", "--check"],
}

# gate, file, what stands there, what is planted in its place, what the gate must name
VIOLATIONS = {
    "a badly formatted line": (
        "ruff format", "deploy/record.py", "value: float\n", "value :float\n", "deploy/record.py",
    ),
    "TensorFlow at import": (
        "ruff check", "compress/steps.py", "import msgspec\n", "import msgspec\nimport tensorflow\n",
        "TID253",
    ),
    "an assert on input": (
        "ruff check", "compress/steps.py", "    match step:\n", "    assert step\n    match step:\n",
        "S101",
    ),
    "a forgotten step": (
        "mypy", "compress/steps.py",
        "        case ToFloat16():\n            return Made(model=to_float16(model, step), step=step)\n", "", "assert_never",
    ),
    "an untyped function": (
        "mypy", "deploy/record.py", "def sha256_of(path: Path) -> str:", "def sha256_of(path):",
        "no-untyped-def",
    ),
    "a script that calls what is no more": (
        "mypy of the scripts", "scripts/measure_training", "        teacher=None,\n", "", 'Missing named argument "teacher"',
    ),
    "the device reaching back": (
        "lint-imports", "deploy/evaluate.py", "import numpy as np\n",
        "import numpy as np\n\nimport compress.store\n", "never reaches back",
    ),
    "a device that loads the report": (
        "lint-imports", "deploy/bundle/opened.py", "import msgspec\n",
        "import msgspec\n\nimport deploy.report.verdict\n", "knows nothing of runs",
    ),
    "a device that loads a web server": (
        "lint-imports", "deploy/evaluate.py", "import numpy as np\n",
        "import numpy as np\n\nimport starlette\n", "the web server lives in one room",
    ),
    "a technique that imports another": (
        "lint-imports", "compress/quantize/calibrate.py", "import numpy as np\n",
        "import numpy as np\n\nimport compress.prune.magnitude\n", "compress: downward only",
    ),
    "tfmot outside its room": (
        "lint-imports", "compress/train/fit.py", "import math\n",
        "import math\n\nimport tensorflow_model_optimization\n", "lives in one room",
    ),
    "a doctest that lies": (
        "doctests", "deploy/record.py", "excludes(1.0)\n        True", "excludes(1.0)\n        False",
        "1 failed",
    ),
    "a reference that is not the code's": (
        "recipe reference", "docs/recipes.md", "### Recipe\n", "### Recipes\n",
        "run scripts/make_recipe_reference",
    ),
    "a number typed into the README": (
        "results tables", "README.md", "<!-- results: end -->", "| 99.99 % |\n<!-- results: end -->",
        "run scripts/make_results_tables",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates") / "lightship"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "runs", ".*_cache", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def test_the_quantizer_of_onnx_runtime_lives_in_one_room():
    """import-linter sees an outside package as a whole, so this arrow is held here."""
    rooms = [*(ROOT / "compress").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]
    users = {
        path.relative_to(ROOT).parts[:2]
        for path in rooms
        if re.search(r"(from|import) onnxruntime\.quantization", path.read_text(encoding="utf-8"))
    }
    assert users == {("compress", "quantize")}


def run(gate, folder):
    environment = {"PYTHONPATH": str(folder), "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        GATES[gate], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("gate", GATES)
def test_the_gate_passes_as_the_house_stands(gate, copy):
    code, said = run(gate, copy)
    assert code == 0, said


@pytest.mark.parametrize(
    ("gate", "file", "stands", "planted", "named"), VIOLATIONS.values(), ids=list(VIOLATIONS)
)
def test_the_gate_fails_on_a_planted_violation(gate, file, stands, planted, named, copy):
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert stands in text
    path.write_text(text.replace(stands, planted, 1), encoding="utf-8")
    try:
        code, said = run(gate, copy)
    finally:
        path.write_text(text, encoding="utf-8")
    assert code != 0
    assert named in said
