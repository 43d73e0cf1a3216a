"""What README and docs tell a reader to type is something that can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from compress.cli import cli
from compress.shipped import shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    return [
        shlex.split(re.split(r"\s[>|]", line)[0], comments=True)[1:]
        for line in lines
        if line.startswith("lightship ")
    ]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_in_the_docs_parses(words):
    command = cli.commands[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        assert context.args == []


def test_every_script_in_the_docs_is_there_and_can_be_run():
    named = set(re.findall(r"\bscripts/\w+", "".join(page.read_text() for page in PAGES)))
    assert {"scripts/demo", "scripts/test"} <= named
    for script in named:
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_every_recipe_that_ships_is_named_in_the_readme_and_in_the_help():
    help_text = cli.commands["run"].get_help(cli.make_context("lightship", ["run"]))
    for name in shipped_recipes():
        assert f"`{name}`" in README, name
        assert re.search(rf"\b{name}\b", help_text), name


def test_every_link_in_the_docs_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_in_the_readme_runs_from_training_to_the_device(tmp_path, monkeypatch):
    host, device = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(host, names)  # noqa: S102  # our own README
    from deploy.evalset import EvalSet

    test = names["task"].test
    EvalSet(x=test.raw, y=test.y).save(Path("test.npz"))
    exec(device, names)  # noqa: S102  # our own README
    right = sum(int(label) == y for label, y in zip(names["labels"], test.y, strict=True))
    assert right / len(test) > 0.9
