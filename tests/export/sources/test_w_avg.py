import numpy as np
import pytest
import specs
import torch
from numpy.typing import NDArray
from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.sources.w_avg import w_avg_from_module, with_w_avg


class MappingNetwork(nn.Module):
    def __init__(self, w_avg: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("w_avg", w_avg)


def found_in(module: nn.Module) -> NDArray[np.float32]:
    w_avg = w_avg_from_module(module)
    assert w_avg is not None
    return w_avg


def generator(**mappings: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for name, w_avg in mappings.items():
        module.add_module(name, MappingNetwork(w_avg))
    return module


@pytest.mark.parametrize("shape", [(512,), (18, 512)])
def test_the_mapping_networks_own_average_is_taken(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    w_avg = found_in(generator(mapping=values))
    assert w_avg.dtype == np.float32
    np.testing.assert_array_equal(w_avg, values.numpy())


@pytest.mark.parametrize("kind", ["half", "parameter", "plain"])
def test_it_may_be_kept_in_other_ways(kind: str) -> None:
    module, values = nn.Module(), torch.ones(4)
    if kind == "half":
        module.register_buffer("w_avg", values.half())
    elif kind == "parameter":
        module.w_avg = nn.Parameter(values)
    else:
        module.w_avg = values
    np.testing.assert_array_equal(found_in(module), np.ones(4, np.float32))


def test_the_one_nearest_to_the_top_is_taken() -> None:
    module = generator(mapping=torch.ones(4))
    module.add_module("older", generator(mapping=torch.zeros(4)))
    np.testing.assert_array_equal(found_in(module), np.ones(4, np.float32))


def test_what_was_taken_does_not_change_with_the_module() -> None:
    module = generator(mapping=torch.ones(4))
    w_avg = found_in(module)
    module.get_submodule("mapping").get_buffer("w_avg").zero_()
    np.testing.assert_array_equal(w_avg, np.ones(4, np.float32))


def test_a_module_without_one_has_none() -> None:
    module = nn.Linear(2, 2)
    module.w_avg_beta = torch.tensor(0.99)
    assert w_avg_from_module(module) is None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (generator(mapping=torch.zeros(2, 3, 4)), r"mapping\.w_avg has shape \[2, 3, 4\]"),
        (generator(mapping=torch.full((4,), torch.nan)), r"mapping\.w_avg holds NaN"),
        (generator(a=torch.zeros(4), b=torch.ones(4)), r"has a\.w_avg and b\.w_avg"),
    ],
)
def test_an_average_that_cannot_be_one_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ExportRefused, match=message):
        w_avg_from_module(module)


def truncated(**more: object) -> GeneratorSpec:
    truncate = {"operation": "truncate", "takes": ["w", "truncation_psi"], "gives": ["moved"]}
    return specs.make_spec(
        [specs.z(4), specs.w(2, 4), specs.psi()],
        [specs.image(4, 4)],
        [
            {"network": "mapping", "takes": ["z"], "gives": ["w"]},
            {**truncate, **more},
            {"network": "synthesis", "takes": ["moved"], "gives": ["image"]},
        ],
    )


def test_truncation_without_an_average_gets_the_modules_own() -> None:
    spec = with_w_avg(generator(mapping=torch.tensor([0.1, 0.2, 0.3, 0.4])), truncated())
    assert spec == truncated(w_avg=np.array([0.1, 0.2, 0.3, 0.4], np.float32).tolist())


def test_what_the_spec_says_stays() -> None:
    spec = truncated(w_avg=[1.0, 2.0, 3.0, 4.0])
    assert with_w_avg(generator(mapping=torch.zeros(4)), spec) is spec


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "truncate has no w_avg in the spec, and Linear keeps none"),
        (generator(mapping=torch.zeros(2, 4)), r"has shape \[2, 4\], one for each layer"),
        (generator(mapping=torch.zeros(5)), "w_avg has 5 numbers, w_dim is 4"),
    ],
)
def test_truncation_without_an_average_that_fits_is_refused(
    module: nn.Module, message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        with_w_avg(module, truncated())
