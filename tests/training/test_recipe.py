import importlib.resources
import tomllib
from pathlib import Path

import pytest

from latentry.contract.errors import BadRequest, NotFound
from latentry.training.recipe import find_recipe, recipe_from_toml

TEXT = importlib.resources.files("latentry.training").joinpath("recipes/digits.toml").read_text()


@pytest.mark.parametrize("name", ["digits", "textures"])
def test_the_bundled_recipes_are_named_as_their_files(name: str) -> None:
    assert find_recipe(name).name == name


def test_a_recipe_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace('name = "digits"', 'name = "mine"'))
    assert find_recipe(str(path)).name == "mine"
    assert find_recipe(str(path)).z_dim == 64


def test_a_recipe_keeps_every_value_of_its_file() -> None:
    recipe = recipe_from_toml(TEXT, "digits")
    assert recipe.model_dump(mode="json") == tomllib.loads(TEXT) | {"at_most": {}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "sede = 0", "sede: there is no such key.*a recipe has name, data"),
        ("[optimizer]", "[optimizer]\nmomentum = 0.9", "optimizer.momentum: there is no such key"),
        ("steps = ", "steps = 0 # ", "steps: Input should be greater than or equal to 1"),
        ("seed = 0", "seed = -1", "seed: Input should be greater than or equal to 0"),
        ('data = "digits"', 'data = "faces"', "data: Input should be 'digits' or 'textures'"),
        ('name = "digits"', 'name = "My Model"', "model name 'My Model' is not allowed"),
        ("z_dim = 64", "", "generator.config.z_dim is None; it is an integer from 1"),
        ("generator_lr = 4e-4", "generator_lr = 4", "generator_lr: Input should be less than 1"),
        ("seed = 0", "seed = ", "is no TOML"),
    ],
)
def test_a_wrong_recipe_is_explained(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(BadRequest, match=message):
        recipe_from_toml(TEXT.replace(old, new), "mine.toml")


def test_a_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadRequest, match="it is not UTF-8 text"):
        find_recipe(str(tmp_path / "picture.png"))


def test_an_unknown_recipe_lists_the_bundled() -> None:
    with pytest.raises(NotFound, match="no recipe 'faces'; .*or one of digits, textures"):
        find_recipe("faces")


def test_shortfalls_name_what_is_missing_or_not_good_enough() -> None:
    recipe = find_recipe("textures")
    good = dict.fromkeys(recipe.at_least, 0.3) | dict.fromkeys(recipe.at_most, 0.0)
    assert recipe.find_shortfalls(good) == []
    assert recipe.find_shortfalls(good | {"share_ihc": 0.1}) == [
        "share_ihc is 0.1, should be at least 0.15"
    ]
    assert recipe.find_shortfalls(good | {"near_copies": 0.5}) == [
        "near_copies is 0.5, should be at most 0.01"
    ]
    assert len(recipe.find_shortfalls({})) == 4
    assert len(recipe.find_shortfalls(dict.fromkeys(good, float("nan")))) == 4


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a" + ".a" * 100_000 + " = 1"])
def test_a_recipe_that_is_nested_too_deeply_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(BadRequest, match=r"recipe\.toml is no TOML: it is nested too deeply"):
        find_recipe(str(tmp_path / "recipe.toml"))


def test_a_recipe_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"#" * 2**24)
    with pytest.raises(BadRequest, match=r"recipe\.toml cannot be read: it is larger than"):
        find_recipe(str(tmp_path / "recipe.toml"))
