"""The checkpoints that come with the repository are what their recipes promise."""

from pathlib import Path

import pytest

import latentry.training
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.spec import GeneratorSpec
from latentry.training.checkpoint import load_checkpoint, read_checkpoint
from latentry.training.metrics import generate_images, measure_generator
from latentry.training.recipe import find_recipe

CHECKPOINTS = Path(latentry.training.__file__).parent / "checkpoints"
NAMES = ["digits", "textures"]
MAX_BYTES = 4_000_000


def z_dim(spec: GeneratorSpec) -> int:
    z = spec.input_of("z", LatentInput)
    assert z is not None
    return z.shape[0]


def class_names(spec: GeneratorSpec) -> tuple[str, ...]:
    return spec.class_input.classes if spec.class_input else ()


@pytest.mark.parametrize("name", NAMES)
def test_it_was_made_by_the_committed_recipe_and_reaches_its_aims(name: str) -> None:
    provenance = read_checkpoint(CHECKPOINTS / name).provenance
    recipe = find_recipe(name)
    assert provenance.recipe == recipe.model_dump(mode="json")
    assert (provenance.seed, provenance.steps) == (recipe.seed, recipe.steps)
    assert recipe.find_shortfalls(provenance.metrics) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.acceptance
def test_the_stored_metrics_are_those_of_the_weights(name: str) -> None:
    checkpoint, generator = load_checkpoint(CHECKPOINTS / name)
    measured = measure_generator(name, generator, z_dim(checkpoint.spec))
    # Another processor or library may round a pixel differently, which moves a sample or two.
    assert measured == pytest.approx(checkpoint.provenance.metrics, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_small(name: str) -> None:
    sizes = {path.name: path.stat().st_size for path in (CHECKPOINTS / name).iterdir()}
    assert sizes.keys() == {"generator.json", "weights.safetensors", "samples.png"}
    assert max(sizes.values()) < MAX_BYTES
    assert sizes["samples.png"] < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_its_samples_are_images_of_its_spec(name: str) -> None:
    checkpoint, generator = load_checkpoint(CHECKPOINTS / name)
    spec = checkpoint.spec
    images, _ = generate_images(generator, z_dim(spec), 8, len(class_names(spec)))
    assert images.shape == (8, *spec.image.row_shape)
    assert images.std(axis=(1, 2, 3)).min() > 5


def test_the_specs_are_the_promised_ones() -> None:
    digits, textures = (read_checkpoint(CHECKPOINTS / name).spec for name in NAMES)
    assert (class_names(digits), digits.image.row_shape) == (tuple("0123456789"), (32, 32, 1))
    assert (class_names(textures), textures.image.row_shape) == ((), (64, 64, 3))
    assert z_dim(digits) == z_dim(textures) == 64
