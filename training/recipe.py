"""A recipe: everything that decides how a training goes, in one TOML file."""

import importlib.resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, JsonValue, ValidationError, model_validator

from latentry.contract.errors import BadRequest, NotFound
from latentry.contract.files import parse_toml, read_regular
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import ModelName
from latentry.contract.strict import Strict, explain

_MOST_BYTES = 2**20
_Positive = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0, lt=1)]


class GeneratorRecipe(Strict):
    """Which generator to build: an architecture's name and its config."""

    architecture: str
    config: dict[str, JsonValue]


class DiscriminatorRecipe(Strict):
    """The discriminator's size: channels of its first layer."""

    width: _Positive


class OptimizerRecipe(Strict):
    """Adam (Kingma and Ba 2015), with a rate for each of the two networks (Heusel et al. 2017).

    Attributes:
        generator_lr: The generator's learning rate.
        discriminator_lr: The discriminator's learning rate.
        betas: Adam's two decay rates.
        ema_decay: How much of the averaged generator stays at each step.
    """

    generator_lr: _Rate
    discriminator_lr: _Rate
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    ema_decay: _Rate


class Recipe(Strict):
    """How to train a generator.

    Attributes:
        name: Name of the checkpoint.
        data: Name of the data set.
        seed: Fixes everything that is random.
        steps: Training steps; each updates the discriminator and the generator once.
        batch_size: Real images a step.
        generator: What to build.
        discriminator: What to train it against.
        optimizer: How both learn.
        at_least: Metrics that should not be below these values at the end.
        at_most: Metrics that should not be above these values at the end.
    """

    name: ModelName
    data: Literal["digits", "textures"]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    steps: _Positive
    batch_size: Annotated[int, Field(ge=2)]
    generator: GeneratorRecipe
    discriminator: DiscriminatorRecipe
    optimizer: OptimizerRecipe
    at_least: dict[str, FiniteFloat] = {}
    at_most: dict[str, FiniteFloat] = {}

    @model_validator(mode="after")
    def _has_z_dim(self) -> Self:
        z_dim = self.generator.config.get("z_dim")
        if isinstance(z_dim, bool) or not isinstance(z_dim, int) or z_dim < 1:
            raise ValueError(f"generator.config.z_dim is {z_dim!r}; it is an integer from 1")
        return self

    @property
    def z_dim(self) -> int:
        """Length of z."""
        return int(str(self.generator.config["z_dim"]))

    def find_shortfalls(self, metrics: dict[str, float]) -> list[str]:
        """Return one line for each metric that is missing or not as good as it should be."""
        low = [
            f"{name} is {metrics.get(name, 'missing')}, should be at least {bound:g}"
            for name, bound in self.at_least.items()
            if not metrics.get(name, float("nan")) >= bound
        ]
        high = [
            f"{name} is {metrics.get(name, 'missing')}, should be at most {bound:g}"
            for name, bound in self.at_most.items()
            if not metrics.get(name, float("nan")) <= bound
        ]
        return low + high


def recipe_from_toml(text: str | bytes, source: str) -> Recipe:
    """Return the recipe in ``text``; ``source`` names it in errors.

    Raises:
        BadRequest: It is no TOML, a key is unknown or missing, or a value is not allowed.
    """
    try:
        return Recipe.model_validate(parse_toml(text))
    except ValidationError as error:
        allowed = ", ".join(Recipe.model_fields)
        raise BadRequest(
            f"{source} is no recipe: {explain(error)}; a recipe has {allowed}"
        ) from error
    except ValueError as error:
        raise BadRequest(f"{source} is no TOML: {error}") from error


def find_recipe(name_or_path: str) -> Recipe:
    """Return a recipe that comes with the package, by name, or the one in a TOML file.

    Raises:
        NotFound: There is neither.
        BadRequest: The file is no recipe.
    """
    bundled = {item.name.removesuffix(".toml"): item for item in _bundled().iterdir()}
    if name_or_path in bundled:
        return recipe_from_toml(bundled[name_or_path].read_text("utf-8"), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise NotFound(
            f"there is no recipe {name_or_path!r}; give the path of a TOML file, "
            f"or one of {', '.join(sorted(bundled))}"
        )
    try:
        return recipe_from_toml(read_regular(path, most=_MOST_BYTES), name_or_path)
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error


def _bundled() -> importlib.resources.abc.Traversable:
    return importlib.resources.files("latentry.training").joinpath("recipes")
