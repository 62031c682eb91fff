"""The small published generators by the names that they are served under."""

from collections.abc import Mapping
from typing import Any

import exporting.operators  # noqa: F401
import numpy as np
import torch
from numpy.typing import NDArray
from published import conditional, generators, pictures, style, unconditional
from torch import nn

from latentry.contract.spec import GeneratorSpec

PUBLISHED: dict[str, Any] = {
    "perceptron": generators.Perceptron,
    "attention": generators.SelfAttention,
    "layered": generators.Layered,
    "translation": generators.Translation,
    "enlarger": generators.Enlarger,
    "convolutional": unconditional.Convolutional,
    "grouped": unconditional.GroupedResidual,
    "transformer": unconditional.Transformer,
    "equivariant": unconditional.Equivariant,
    "split_latent": conditional.SplitLatent,
    "instance": conditional.OfAnInstance,
    "style": style.StyleBased,
    "styles": style.Styles,
    "demodulated": style.Demodulated,
    "multi_conditional": style.MultiConditional,
    "paired": pictures.PairedTranslation,
    "inpainting": pictures.GatedInpainting,
    "colouring": pictures.Colouring,
    "denoiser": pictures.Denoiser,
}


def build_published(name: str) -> tuple[nn.Module, GeneratorSpec]:
    """Return one of them with fixed weights, and its spec."""
    torch.manual_seed(5)
    module: nn.Module = PUBLISHED[name]()
    spec: GeneratorSpec = PUBLISHED[name].spec
    return module.eval(), spec


def by_torch(name: str, rows: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the first output that PyTorch gives for rows of all inputs, as they cross the wire.

    The inputs are those that a request has to carry, latents among them, in the spec's order: they
    are the arguments of the module's own forward, whatever the stages are.
    """
    module, spec = build_published(name)
    taken = []
    for item in spec.route(frozenset()).inputs:
        array = np.asarray(rows[item.name])
        taken.append(
            item.to_network(torch.from_numpy(array.reshape(len(array), *_row(item, array))))
        )
    with torch.no_grad():
        outputs = module(*taken)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    sample: NDArray[np.float32] = first.numpy()
    return sample


def _row(item: Any, array: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape of one row; a number comes without its axis."""
    return (1,) if array.ndim == 1 else array.shape[1:]
