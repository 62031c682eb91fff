"""Generators of every kind are exported, proved and served as they draw; mistakes are told."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from published import zoo
from published.zoo import ZOO, Arrays, Layers, Member, conv
from specs import classes, image, make_spec, z
from torch import Tensor, nn

from latentry.contract.errors import BadRequest, ExportRefused, LatentryError
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import OutputKind
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.graph_checks import check_graphs
from latentry.export.graphs.onnx_export import onnx_from_module
from latentry.export.proofs.parity import TOLERANCE, prove
from latentry.export.publish import Source, export_generator
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifests import Parity
from latentry.serving.entries.repository import Entry, read_entry
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.serving.runtime.engines.registry import load_network
from latentry.serving.runtime.generator import Generator, load_generator

MOST = 8


@pytest.fixture(scope="module", params=ZOO, ids=lambda make: make.__name__)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Member, Entry]:
    name, member = request.param.__name__, request.param()
    source = Source(name, member.spec, member.module, name, "0" * 64)
    repository = tmp_path_factory.mktemp(name)
    return member, export_generator(source, repository, max_batch_size=MOST)[0]


def answer(generator: Generator, request: Arrays) -> Arrays:
    found = generator.answer([request])[0]
    assert not isinstance(found, LatentryError), found
    return found


def drawn(spec: GeneratorSpec, request: Arrays) -> dict[str, NDArray[Any]]:
    """Return rows of every input, with the latents that the seeds draw."""
    latents = {
        item.name: LatentDrawer(item).draw(request["seed"][:, 0])
        for item in spec.route(frozenset()).drawn
    }
    return {**request, **latents}


def assert_near(item: OutputKind, found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert item.is_same_but_for_rounding(found, expected), item.name


def test_an_entry_draws_what_the_module_does(exported: tuple[Member, Entry]) -> None:
    member, entry = exported
    verify_entry(entry)
    spec = member.spec
    generator = load_generator(entry, partial(load_network, threads=0))
    request = example_request(spec, MOST)
    together = answer(generator, request)
    expected = member.by_hand(drawn(spec, request))
    assert together.keys() == expected.keys() == {item.name for item in spec.outputs}
    for item in spec.outputs:
        assert_near(item, together[item.name], expected[item.name])
    for index in range(MOST):
        alone = answer(generator, {name: rows[[index]] for name, rows in request.items()})
        for name in together:
            np.testing.assert_array_equal(alone[name][0], together[name][index])


def test_its_record_tells_what_was_proved(exported: tuple[Member, Entry]) -> None:
    member, entry = exported
    entry = read_entry(entry.folder)
    parity = entry.build.parity
    floats = [name for item in member.spec.outputs for name in item.tensors(Format.FLOAT)]
    pixels = {name for name in floats if f"{name}.sample" in floats}
    between = {name for stage in member.spec.stages for name in stage.gives} - set(floats)
    assert parity.differences.keys() == set(floats) - pixels | between
    assert 0 <= max(parity.differences.values()) < TOLERANCE
    assert parity.warnings == ()
    goldens = read_goldens(entry)
    request = example_request(member.spec, len(goldens))
    assert goldens.inputs.keys() == request.keys()
    assert goldens.outputs.keys() == {item.name for item in member.spec.outputs}


def test_samples_of_float_are_the_networks_own() -> None:
    member = zoo.cascade()
    spec = member.spec
    engines = {
        name.removesuffix(".onnx"): OnnxRuntimeEngine(data)
        for name, data in onnx_from_module(member.module, spec).items()
    }
    generator = Generator(spec, dict(engines), max_batch_size=MOST)
    request = example_request(spec, 2)
    asked = {**request, "format": np.full((2, 1), b"float", np.object_)}
    found = answer(generator, asked)
    assert found.keys() == {"image", "image.sample", "front", "front.sample"}
    assert found["front.sample"].shape == (2, 1, zoo.HEIGHT, zoo.WIDTH)
    raw = answer(generator, request)
    for name in raw:
        np.testing.assert_array_equal(found[name], raw[name])


def proved(module: nn.Module, spec: GeneratorSpec, most: int = 2) -> Parity:
    files = onnx_from_module(module, spec)
    check_graphs(spec, files)
    return prove(module, spec, files, most)


INPUTS: dict[str, Any] = {
    "photo": zoo.picture("photo"),
    "style": zoo.picture("style", 1),
    "hole": zoo.pixels("mask", "hole"),
    "layout": zoo.pixels("label_map", "layout", labels=4),
    "noise": {**z(1, zoo.HEIGHT, zoo.WIDTH), "name": "noise"},
    "kind_of": classes("a", "b", name="kind_of"),
    "weights": {"name": "weights", "kind": "vector", "size": 3},
    "strength": zoo.number("strength", "number", 0, 1, 0.5),
    "rounds": zoo.number("rounds", "integer", 1, 9, 2),
}


def ignoring() -> nn.Module:
    """Return a module that looks at its first input only."""

    def forward(layers: nn.ModuleDict, x: Tensor, ignored: Tensor) -> Tensor:
        nothing = ignored.reshape(ignored.shape[0], -1).float()[:, :1, None, None] * 0
        return torch.tanh(layers["conv"](x)) + nothing

    return Layers({"conv": conv(3, 3)}, forward)


@pytest.mark.parametrize("name", ["style", "noise", "kind_of"])
def test_a_picture_latent_or_class_without_effect_is_refused(name: str) -> None:
    spec = make_spec([INPUTS["photo"], INPUTS[name]], [zoo.picture()])
    message = f"8 different {name} all give the same: it has no effect. Does the forward use it"
    message = message.replace("8 different", r"\d different")
    with pytest.raises(ExportRefused, match=message):
        proved(ignoring(), spec)


@pytest.mark.parametrize("name", ["hole", "layout", "weights", "strength", "rounds"])
def test_another_input_without_effect_is_a_warning(name: str) -> None:
    spec = make_spec([INPUTS["photo"], INPUTS[name]], [zoo.picture()])
    (warning,) = proved(ignoring(), spec).warnings
    assert warning.endswith(f"different {name} all give the same: it has no effect")


Function = Callable[[nn.ModuleDict, Tensor], Any]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda layers, x: torch.tanh(layers["conv"](x)),
            r"gives 1 tensors; the spec says 3: image, mask, code",
        ),
        (
            lambda layers, x: (x, x[:, 0], x.mean((2, 3))),
            r"gives mask of shape \[3, 12, 16\] for 3 rows; the spec says \[3, 1, 12, 16\] "
            r"\(batch, 1, height, width\)",
        ),
        (
            lambda layers, x: (x[:, :1], x[:, :1], x.mean((2, 3))),
            r"gives image of shape \[3, 1, 12, 16\] for 3 rows; the spec says \[3, 3, 12, 16\] "
            r"\(batch, channels, height, width\)",
        ),
        (
            lambda layers, x: (x, x[:, :1], x.flatten(1)),
            r"gives code of shape \[3, 576\] for 3 rows; the spec says \[3, 3\]; correct",
        ),
        (
            lambda layers, x: (x, (x[:, :1] > 0), x.mean((2, 3))),
            r"gives mask as torch\.bool; it must be a float32 tensor",
        ),
        (
            lambda layers, x: {"image": x, "mask": x[:, :1], "code": x.mean((2, 3))},
            r"gives 1 tensors; the spec says 3: image, mask, code",
        ),
    ],
    ids=["one", "mask", "picture", "vector", "dtype", "dict"],
)
def test_outputs_that_are_not_those_of_the_spec_are_refused(
    function: Function, message: str
) -> None:
    outputs = [
        zoo.picture(),
        zoo.pixels("mask", "mask"),
        {"name": "code", "kind": "vector", "size": 3},
    ]
    module = Layers({"conv": conv(3, 3)}, function)
    with pytest.raises(ExportRefused, match=f"generator of Layers {message}"):
        onnx_from_module(module, make_spec([INPUTS["photo"]], outputs))


def test_scores_for_another_number_of_labels_are_refused() -> None:
    outputs = [zoo.pixels("label_map", "parts", labels=4)]
    module = Layers({"conv": conv(3, 3)}, lambda layers, x: layers["conv"](x))
    message = r"parts of shape \[3, 3, .* says \[3, 4, 12, 16\] \(batch, labels, height, width\)"
    with pytest.raises(ExportRefused, match=message):
        onnx_from_module(module, make_spec([INPUTS["photo"]], outputs))


def test_inputs_that_a_forward_does_not_take_are_named_with_their_shapes() -> None:
    module = Layers({"conv": conv(3, 3)}, lambda layers, x: torch.tanh(layers["conv"](x)))
    spec = make_spec([INPUTS["photo"], INPUTS["hole"]], [zoo.picture()])
    message = r"fails on photo, hole of shape \[3, 3, 12, 16\], \[3, 1, 12, 16\]: TypeError: "
    with pytest.raises(ExportRefused, match=message):
        onnx_from_module(module, spec)


@pytest.mark.parametrize("which", ["image", "depth"])
def test_any_picture_that_is_constant_is_refused(which: str) -> None:
    def forward(layers: nn.ModuleDict, x: Tensor) -> tuple[Tensor, Tensor]:
        image = torch.tanh(layers["conv"](x))
        pictures = {"image": image, "depth": image[:, :1]}
        pictures[which] = pictures[which] * 0 + 0.5 + x.mean((1, 2, 3), keepdim=True) * 1e-6
        return pictures["image"], pictures["depth"]

    spec = make_spec([INPUTS["photo"]], [zoo.picture(), zoo.picture("depth", 1)])
    pixel = r"\[191, 191, 191\]" if which == "image" else r"\[191\]"
    message = rf"{which} of row 0 is constant: every pixel is {pixel}, the network gives from 0\.5"
    with pytest.raises(ExportRefused, match=message):
        proved(Layers({"conv": conv(3, 3)}, forward), spec)


def test_a_range_that_is_declared_is_no_oddity_and_the_other_is() -> None:
    module = zoo.sticker().module
    (warning,) = proved(module, make_spec([z(4, 8, 8)], [image(8, 8, 4)])).warnings
    assert 'then say "range": [0, 1]' in warning
    twice = Layers({"conv": conv(4, 4)}, lambda layers, x: torch.sigmoid(layers["conv"](x)) * 2)
    spec = make_spec([z(4, 8, 8)], [image(8, 8, 4, range=[0, 1])])
    (warning,) = proved(twice, spec).warnings
    assert "image go beyond [-0.25, 1.25] (" in warning
    assert "is the range in the spec right?" in warning
    wide = Layers({"conv": conv(4, 4)}, lambda layers, x: torch.sigmoid(layers["conv"](x)) * 255)
    assert proved(wide, make_spec([z(4, 8, 8)], [image(8, 8, 4, range=[0, 255])])).warnings == ()


def test_pictures_that_reach_their_neighbours_are_refused() -> None:
    def forward(layers: nn.ModuleDict, x: Tensor) -> Tensor:
        return torch.tanh(layers["conv"](x - x.mean(0, keepdim=True)))

    message = r"image\.sample.* in a batch of 3 and \S+ alone.*rows reach each other"
    spec = make_spec([zoo.picture()], [zoo.picture()])
    with pytest.raises(ExportRefused, match=message):
        proved(Layers({"conv": conv(3, 3)}, forward), spec, most=5)


def test_a_generator_without_latents_takes_no_seed() -> None:
    member = zoo.restyle()
    files = onnx_from_module(member.module, member.spec)
    engines = {"generator": OnnxRuntimeEngine(files["generator.onnx"])}
    generator = Generator(member.spec, dict(engines), max_batch_size=MOST)
    seeded = {**example_request(member.spec, 1), "seed": np.zeros((1, 1), np.int64)}
    (found,) = generator.answer([seeded])
    assert isinstance(found, BadRequest)
    assert "it takes image, format" in str(found)
