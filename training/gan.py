"""Training a GAN: one step, the averaged generator, and a state from which it goes on bit-equal.

The loss is the hinge loss (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17). What is kept
is not the last generator but the moving average of its weights (Karras et al. 2018, section 5).
"""

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import Adam

from latentry.contract.errors import BadRequest, CheckpointError, listed
from latentry.contract.files import open_regular, parse_json, write_atomic
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import most_of
from latentry.contract.seeds import MAX_SEED, LatentDrawer
from latentry.training.architectures import build
from latentry.training.data import load_dataset
from latentry.training.discriminators import ProjectionDiscriminator
from latentry.training.recipe import Recipe

_STATE_FORMAT = "1"
_NORM_SAMPLES = 4000
_NORM_BATCH = 100


class Trainer:
    """A training in progress.

    Everything random comes from ``recipe.seed``: the first weights from torch's generator seeded
    with it (and left as it was), all later draws from a generator of the trainer's own.

    Attributes:
        recipe: What is done.
        generator: The generator that learns.
        average: The moving average of its weights, the one to keep.
        losses: Discriminator and generator loss of each step done.

    Args:
        recipe: What to do.

    Raises:
        CheckpointError: The recipe's generator cannot be built.
        NotFound: The data is not installed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = load_dataset(recipe.data)
        self.losses: list[tuple[float, float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.generator = build(recipe.generator.architecture, recipe.generator.config)
            self.discriminator = ProjectionDiscriminator(
                self.data.image.channels,
                most_of(self.data.image.height),
                recipe.discriminator.width,
                len(self.data.classes),
            )
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self._rng = torch.Generator().manual_seed(recipe.seed)
        rates, betas = recipe.optimizer, recipe.optimizer.betas
        self._optimizers = {
            "generator": Adam(self.generator.parameters(), rates.generator_lr, betas),
            "discriminator": Adam(self.discriminator.parameters(), rates.discriminator_lr, betas),
        }

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def train_step(self) -> None:
        """Update the discriminator, then the generator, then its average.

        Raises:
            BadRequest: A loss is not finite any more.
        """
        real = self.data.draw(self.recipe.batch_size, self._rng)
        z = torch.randn(self.recipe.batch_size, self.recipe.z_dim, generator=self._rng)
        inputs = (z,) if real.labels is None else (z, real.labels)
        fake = self.generator(*inputs)
        discriminator_loss = self._update_discriminator(real.images, fake.detach(), real.labels)
        generator_loss = self._update_generator(fake, real.labels)
        update_average(self.average, self.generator, self._average_decay())
        if not np.isfinite([discriminator_loss, generator_loss]).all():
            raise BadRequest(
                f"training diverged at step {self.step + 1}: the losses are {discriminator_loss} "
                f"and {generator_loss}; lower the learning rates in the recipe"
            )
        self.losses.append((discriminator_loss, generator_loss))

    def finished_generator(self) -> nn.Module:
        """Return the averaged generator, ready to be used, in evaluation mode.

        Averaged weights meet other activations than the weights that batch normalisation followed
        during training, so its statistics are measured again.
        """
        generator = copy.deepcopy(self.average)
        recompute_batch_norm(generator, self._norm_inputs())
        return generator.eval().requires_grad_(False)

    def _update_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> float:
        self.discriminator.requires_grad_(True)
        loss = relu(1 - self.discriminator(real, labels)).mean()
        loss = loss + relu(1 + self.discriminator(fake, labels)).mean()
        return self._descend("discriminator", loss)

    def _update_generator(self, fake: Tensor, labels: Tensor | None) -> float:
        self.discriminator.requires_grad_(False)
        return self._descend("generator", -self.discriminator(fake, labels).mean())

    def _descend(self, name: str, loss: Tensor) -> float:
        self._optimizers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizers[name].step()
        return loss.item()

    def _average_decay(self) -> float:
        # Early on the average follows fast: it must not remember the first, random weights.
        return min(self.recipe.optimizer.ema_decay, (1 + self.step) / (10 + self.step))

    def _norm_inputs(self) -> Iterator[tuple[Tensor, ...]]:
        drawer = LatentDrawer(LatentInput(name="z", shape=(self.recipe.z_dim,)))
        num_classes = len(self.data.classes)
        # Seeds from the far end: those that people look at first stay unseen.
        for first in range(MAX_SEED - _NORM_SAMPLES, MAX_SEED, _NORM_BATCH):
            z = torch.from_numpy(drawer.draw(range(first, first + _NORM_BATCH)))
            yield (z, torch.arange(_NORM_BATCH) % num_classes) if num_classes else (z,)

    def save_state(self, path: Path) -> None:
        """Write everything that the next step depends on to one safetensors file, atomically."""
        tensors = {"rng": self._rng.get_state(), "losses": torch.tensor(self.losses).double()}
        for name, module in self._modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{name}.{index}.{key}": value for key, value in state.items()}
        metadata = {"state_format": _STATE_FORMAT, "recipe": self.recipe.model_dump_json()}
        whole = {key: value.contiguous() for key, value in tensors.items()}
        write_atomic(path, save(whole, metadata))

    def load_state(self, path: Path) -> None:
        """Go on from a state that a trainer of the same recipe saved; only ``steps`` may differ.

        Raises:
            CheckpointError: The file is no state, or is damaged.
            BadRequest: The state belongs to another recipe.
        """
        metadata, tensors = _read_state(path)
        _check_same_recipe(self.recipe, metadata.get("recipe", ""), path)
        try:
            for name, module in self._modules().items():
                module.load_state_dict(_below(tensors, f"{name}."))
            for name, optimizer in self._optimizers.items():
                _load_optimizer(optimizer, _below(tensors, f"adam.{name}."))
            self._rng.set_state(tensors["rng"])
            self.losses = [(row[0], row[1]) for row in tensors["losses"].tolist()]
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this version of the training: {error}; start the run anew"
            ) from error

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move each parameter of ``average`` towards ``module``'s by ``1 - decay``, in place.

    Buffers are left alone: see :func:`recompute_batch_norm`.
    """
    with torch.no_grad():
        for mean, value in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def recompute_batch_norm(module: nn.Module, inputs: Iterable[tuple[Tensor, ...]]) -> None:
    """Set the statistics of every batch normalisation to the mean over ``inputs``, in place.

    Args:
        module: Left in training mode.
        inputs: The arguments of each forward pass; batches of equal size.
    """
    norms = [item for item in module.modules() if isinstance(item, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches instead of a moving one
    module.train()
    with torch.no_grad():
        for arguments in inputs:
            module(*arguments)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _read_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        open_regular(path).close()  # a FIFO would be waited for
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a training state: {error}; start the run anew"
        ) from error
    if metadata.get("state_format") != _STATE_FORMAT:
        raise CheckpointError(
            f"{path} is no training state of format {_STATE_FORMAT}; start the run anew"
        )
    return metadata, tensors


def _check_same_recipe(recipe: Recipe, saved: str, path: Path) -> None:
    now = json.loads(recipe.model_dump_json())
    try:
        then = dict(parse_json(saved))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} names no recipe ({error}); start the run anew") from error
    differing = sorted(
        key for key in now.keys() | then.keys() if now.get(key) != then.get(key) and key != "steps"
    )
    if differing:
        raise BadRequest(
            f"{path} belongs to another recipe: {listed(differing)} differ; "
            "resume with the recipe it was started with, or start a run in another folder"
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _load_optimizer(optimizer: Adam, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
