"""The searches behind the shipped recipes can be carried out, and what is kept of them is theirs."""

from pathlib import Path

import pytest

from compress.shipped import shipped_recipes
from compress.train.tune import read_search
from compress.tuning import best_recipe, load_search_recipe

SEARCHES = sorted((Path(__file__).parents[1] / "docs/searches").glob("*.toml"))


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_belongs_to_a_shipped_recipe_and_can_be_carried_out(path):
    search = load_search_recipe(str(path))
    assert search.example.name == path.stem
    assert path.stem in shipped_recipes()
    assert search.tune.minutes is not None


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_the_best_recipe_that_is_kept_is_the_one_of_the_record(path):
    kept = path.with_suffix("")
    if not (kept / "search.json").exists():
        pytest.skip(f"{path.stem} has no record yet: scripts/search makes it")
    found = read_search(kept / "search.json")
    assert best_recipe(found, load_search_recipe(str(path))) == (kept / "best.toml").read_text()
