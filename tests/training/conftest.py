from collections.abc import Iterator

import pytest
import torch

from latentry.training.recipe import Recipe, find_recipe


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> Iterator[None]:
    """As many threads everywhere: the order of sums, and so the last bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_recipe() -> Recipe:
    """Digits with networks so small that a step takes milliseconds."""
    recipe = find_recipe("digits")
    config = recipe.generator.config | {"z_dim": 8, "width": 4}
    return recipe.model_copy(
        update={
            "name": "tiny",
            "steps": 6,
            "batch_size": 8,
            "generator": recipe.generator.model_copy(update={"config": config}),
            "discriminator": recipe.discriminator.model_copy(update={"width": 4}),
        }
    )
