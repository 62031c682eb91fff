import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import Part, classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.errors import BadRequest, SpecError
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import Size, TensorType
from latentry.contract.kinds.registry import input_from_any, output_from_any
from latentry.contract.spec import GeneratorSpec, Route, check_name, spec_from_json
from latentry.contract.stages.registry import stage_from_any
from latentry.contract.stages.stage import NetworkStage

Z, W, PSI, LABEL, IMAGE = z(4), w(2, 3), psi(), classes("cat", "dog"), image(8, 6)
STYLEGAN = stages_of_stylegan([0.0, 0.1, 0.2])
NETWORK = {"network": "generator", "takes": ["z"], "gives": ["image"]}

FULL = make_spec([Z, LABEL, W, PSI], [IMAGE], STYLEGAN)

INPUTS = st.tuples(
    st.integers(1, 512),
    st.lists(st.text(min_size=1, max_size=5), max_size=5),
    st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)),
)


@given(INPUTS)
def test_a_spec_survives_json(inputs: tuple[int, list[str], tuple[int, int] | None]) -> None:
    z_dim, names, w_shape = inputs
    items, stages = [z(z_dim)], []
    if names:
        items.append(classes(*names))
    if w_shape:
        items += [w(*w_shape), PSI]
        takes = ["z", "class_label"] if names else ["z"]
        stages = stages_of_stylegan([0.5] * w_shape[1], mapping_takes=takes)
    spec = make_spec(items, [IMAGE], stages)
    assert spec_from_json(spec.model_dump_json(), "spec") == spec
    assert spec.inputs[0].row_shape == (z_dim,)
    assert (list(spec.class_input.classes) if spec.class_input else []) == names
    assert list(spec.networks) == (["mapping", "synthesis"] if w_shape else ["generator"])


EVERY_INPUT: list[Part] = [
    z(2, 3, distribution="truncated_normal", bound=0.5),
    {"name": "noise", "kind": "latent", "shape": [7], "distribution": "uniform", "minimum": 0.0},
    classes("cat", "dog"),
    psi(),
    {"name": "steps", "kind": "integer", "minimum": -4, "maximum": 2**40, "default": 20},
    {"name": "face", "kind": "vector", "size": 2, "entries": ["age", "joy"], "default": [0.5, 0]},
    {"name": "sketch", "kind": "picture", "height": 5, "width": 6, "channels": 4, "range": [0, 1]},
    {"name": "hole", "kind": "mask", "height": 5, "width": 6},
    {"name": "places", "kind": "label_map", "height": 5, "width": 6, "labels": 19},
]
EVERY_OUTPUT: list[Part] = [
    image(8, 6, range=[0.0, 1.0]),
    {"name": "alpha", "kind": "mask", "height": 8, "width": 6},
    {"name": "parts", "kind": "label_map", "height": 8, "width": 6, "labels": 256},
    {"name": "embedding", "kind": "vector", "size": 16},
    {"name": "depth", "kind": "tensor", "shape": [1, 8, 6]},
]


def test_every_kind_survives_json() -> None:
    spec = make_spec(EVERY_INPUT, EVERY_OUTPUT)
    again = spec_from_json(spec.model_dump_json(), "spec")
    assert again == spec
    assert [type(item) for item in again.inputs] == [type(item) for item in spec.inputs]
    said = json.loads(spec.model_dump_json())
    for parts, found in ((EVERY_INPUT, said["inputs"]), (EVERY_OUTPUT, said["outputs"])):
        for part, item in zip(parts, found, strict=True):
            assert part.items() <= item.items()  # what was declared, and the defaults
    staged = spec_from_json(FULL.model_dump_json(), "spec")
    assert staged.stages == FULL.stages
    assert staged.stages[1] != FULL.stages[0]


def test_the_shortest_spec_is_one_network_from_all_to_all() -> None:
    spec = make_spec(EVERY_INPUT, EVERY_OUTPUT)
    (stage,) = spec.pipeline
    assert stage.takes == tuple(part["name"] for part in EVERY_INPUT)
    assert stage.gives == tuple(part["name"] for part in EVERY_OUTPUT)
    assert spec.networks == ("generator",)
    assert spec.stages == ()


def one(**changes: Any) -> dict[str, Any]:
    return {"inputs": [Z], "outputs": [IMAGE], **changes}


def staged(*stages: Any, inputs: Any = (Z,), outputs: Any = (IMAGE,)) -> dict[str, Any]:
    return {"inputs": list(inputs), "outputs": list(outputs), "stages": list(stages)}


REFUSED: list[tuple[object, str]] = [
    ("{", "spec.json is no generator spec: .*EOF"),
    ("[]", "spec.json is no generator spec: .*object"),
    (one(sigma=1), "sigma: there is no such key"),
    ({"inputs": [Z]}, "outputs: Field required"),
    ({"outputs": [IMAGE]}, "inputs: Field required"),
    (one(inputs=[]), r"^spec.json is no generator spec: inputs: there are 0; 1 to 64 are taken$"),
    (one(outputs=[]), "outputs: there are 0; 1 to 64 are taken"),
    (one(inputs=[z(1, name=f"z{i}") for i in range(65)]), "inputs: there are 65; 1 to 64 are"),
    (one(inputs=["z"]), "inputs.0: must be an object with name and kind"),
    (one(inputs=[Z, Z]), "inputs declared more than once: z"),
    (one(outputs=[IMAGE, IMAGE]), "outputs declared more than once: image"),
    # Kinds. One finding, and none that follows from it.
    (
        one(inputs=[{"name": "z", "kind": "text"}]),
        "^spec.json is no generator spec: inputs.0: kind 'text' is unknown; use one of latent, "
        "class, number, integer, vector, picture, mask, label_map$",
    ),
    (
        one(outputs=[{"name": "y", "kind": "latent"}]),
        "outputs.0: kind 'latent' is unknown; use one of picture, mask, label_map, vector, tensor$",
    ),
    (one(inputs=[{"name": "z"}]), "kind None is unknown"),
    (one(inputs=[{"name": "z", "kind": ["latent"]}]), r"kind \['latent'\] is unknown"),
    (one(inputs=[{"kind": "class", "classes": ["a"]}]), "inputs.0: name: Field required"),
    (one(inputs=[z(4, deviation=2)]), "inputs.0: z: deviation: there is no such key"),
    # Names.
    (one(inputs=[{**Z, "name": "a-b"}]), "'a-b' is no Python identifier"),
    (one(inputs=[{**Z, "name": "ä"}]), "'ä' is no Python identifier"),
    (one(inputs=[{**Z, "name": "class"}]), "'class' is no Python identifier"),
    (one(inputs=[{**Z, "name": ""}]), "'' is no Python identifier"),
    (one(inputs=[{**Z, "name": 3}]), "name: Input should be a valid string"),
    (one(inputs=[{**Z, "name": "seed"}]), "'seed' is reserved, or longer than 64; reserved are "),
    (one(outputs=[{**IMAGE, "name": "watch"}]), "'watch' is reserved"),
    (one(inputs=[{**Z, "name": "z" * 65}]), "is reserved, or longer than 64"),
    # Latents.
    (one(inputs=[z()]), "z: shape: Tuple should have at least 1 item"),
    (one(inputs=[z(1, 1, 1, 1, 1, 1, 1)]), "z: shape: Tuple should have at most 6 items"),
    (one(inputs=[z(0)]), "z: shape.0: Input should be greater than or equal to 1"),
    (one(inputs=[z(4096, 4097)]), r"\[4096, 4097\] are over 16777216 numbers"),
    (one(inputs=[z(4, distribution="cauchy")]), "distribution: Input should be 'normal', 'trunca"),
    (one(inputs=[z(4, minimum=1, maximum=1)]), "minimum 1.0 is not below maximum 1.0"),
    (one(inputs=[z(4, maximum=1e300)]), "z: maximum: Input should be less than or equal to 34028"),
    (one(inputs=[z(4, bound=0.01)]), "z: bound: Input should be greater than or equal to 0.1"),
    # Classes.
    (one(inputs=[Z, classes()]), "class_label: classes: Tuple should have at least 1 item"),
    # Numbers.
    (
        one(inputs=[Z, psi(minimum=3)]),
        "truncation_psi: top level: minimum 3.0 is above maximum 2.0",
    ),
    (one(inputs=[Z, psi(default=2.5)]), "default 2.5 is not from -2.0 to 2.0"),
    (one(inputs=[Z, psi(maximum=1e39)]), "maximum: Input should be less than or equal to 34028"),
    (
        one(inputs=[{"name": "k", "kind": "integer", "minimum": 0, "maximum": 2**63}]),
        "k: maximum: Input should be less than or equal to 9223372036854775807",
    ),
    (
        one(inputs=[{"name": "k", "kind": "integer", "minimum": 0, "maximum": 1.5}]),
        "k: maximum: Input should be a valid integer",
    ),
    # Vectors.
    (
        one(inputs=[{"name": "v", "kind": "vector", "size": 3, "entries": ["a"]}]),
        "v: .*entries names 1 numbers, size is 3",
    ),
    (
        one(inputs=[{"name": "v", "kind": "vector", "size": 2, "minimum": 1, "maximum": 1}]),
        "minimum 1.0 is not below maximum 1.0",
    ),
    (
        one(inputs=[{"name": "v", "kind": "vector", "size": 2, "default": [1.0]}]),
        "default must be 2 finite numbers a sample",
    ),
    (
        one(inputs=[{"name": "v", "kind": "vector", "size": 1, "maximum": 1, "default": [2]}]),
        "default must be 1 finite numbers a sample from -1e.30 to 1",
    ),
    # Pictures.
    (one(outputs=[image(8, 6, 2)]), "image: channels: Input should be 1, 3 or 4"),
    (one(outputs=[image(60000, 60000)]), "60000 x 60000 is over 16777216 pixels"),
    (one(outputs=[image(65537, 1)]), "height: 65537 is no number of pixels from 1 to 65536"),
    (
        one(outputs=[image(8, 6, range=[1, -1])]),
        r"range: \[1.0, -1.0\] runs backwards; \[black, wh",
    ),
    (one(outputs=[image(8, 6, range=[0, 0])]), r"range: \[0.0, 0.0\] runs backwards"),
    (
        one(inputs=[{"name": "m", "kind": "label_map", "height": 2, "width": 2, "labels": 257}]),
        "m: labels: Input should be less than or equal to 256",
    ),
    (
        one(outputs=[{"name": "t", "kind": "tensor", "shape": [65536, 1025]}]),
        r"\[65536, 1025\] are over 67108864 numbers",
    ),
    # Stages.
    (staged({"takes": ["z"]}), "stages.0: a stage is an object with either network or operation"),
    (staged("generator"), "stages.0: a stage is an object with either network or operation"),
    (staged({**NETWORK, "operation": "truncate"}), "with either network or operation"),
    (staged({**NETWORK, "network": "A"}), "network 'A' is no name of a network: a-z, 0-9 and _"),
    (staged({**NETWORK, "network": "a" * 33}), "is no name of a network: .* at most 32"),
    (staged({**NETWORK, "takes": []}), "takes: Tuple should have at least 1 item"),
    (staged({**NETWORK, "device": "cpu"}), "device: there is no such key"),
    (staged({**NETWORK, "gives": ["image", "x-y"]}), "'x-y' is no Python identifier"),
    (staged(NETWORK, NETWORK), "networks declared more than once: generator"),
    (staged(*[NETWORK] * 65), "stages: Tuple should have at most 64 items"),
    (
        staged({"operation": "blur", "takes": ["z"], "gives": ["image"]}),
        "operation 'blur' is unknown; use one of truncate",
    ),
    (
        staged({"operation": ["truncate"], "takes": ["z"], "gives": ["image"]}),
        r"operation \['truncate'\] is unknown",
    ),
    (
        staged({**STYLEGAN[1], "takes": ["w"]}, inputs=[W, PSI]),
        r"truncate takes w, psi and, maybe, a cutoff, and gives one tensor, such as takes \[",
    ),
    (staged({**STYLEGAN[1], "gives": ["a", "b"]}), "and gives one tensor"),
    (staged({**STYLEGAN[1], "w_avg": []}), "w_avg: Tuple should have at least 1 item"),
    (
        staged(*stages_of_stylegan([0.5]), inputs=[Z, LABEL, W, PSI]),
        "w_avg has 1 numbers, w_dim is 3",
    ),
    (
        staged(*STYLEGAN, inputs=[Z, LABEL, w(3), PSI]),
        r"truncate takes w of \[num_ws, w_dim\]; w has shape \[3\]",
    ),
    (
        staged(
            *STYLEGAN,
            inputs=[Z, LABEL, W, {"name": "truncation_psi", "kind": "vector", "size": 2}],
        ),
        r"truncate takes truncation_psi as one number; it has shape \[2\]",
    ),
    (
        staged({**NETWORK, "takes": ["z", "y", "x"]}),
        "a stage takes y, x, which is no input and of no stage before it",
    ),
    (
        staged(STYLEGAN[0], STYLEGAN[2], STYLEGAN[1], inputs=[Z, LABEL, W, PSI]),
        "a stage takes w_truncated, which is no input and of no stage before it",
    ),
    (staged(NETWORK, {**NETWORK, "network": "other"}), "two stages give image"),
    (
        staged({**NETWORK, "gives": ["image", "image"]}),
        "what a stage gives is declared more than once: image",
    ),
    (staged(NETWORK, inputs=[Z, LABEL, PSI]), "no stage takes class_label, truncation_psi"),
    (staged(NETWORK, outputs=[IMAGE, {**IMAGE, "name": "b"}]), "no stage gives b"),
    (
        staged(*STYLEGAN, inputs=[Z, LABEL, {**W, "distribution": "normal"}, PSI]),
        'w is an input and made by a stage: it must be a latent with distribution "none"',
    ),
    (
        staged(
            {"network": "a", "takes": ["z"], "gives": ["truncation_psi"]},
            {**NETWORK, "takes": ["truncation_psi"]},
            inputs=[Z, PSI],
        ),
        "truncation_psi is an input and made by a stage",
    ),
    (
        staged(NETWORK, {"network": "b", "takes": ["z"], "gives": ["x", "y"]}),
        "nobody takes x, y, which a stage gives; take the stage out, or declare an output",
    ),
    (
        {"inputs": [{"name": "rough", "kind": "number", "min": 0}], "outputs": [IMAGE]},
        r"min: there is no such key \(a number has kind, name, minimum, maximum, default\)",
    ),
    (
        {"inputs": [{"role": "z", "shape": [4]}], "outputs": [IMAGE]},
        r"has a role, as in Latentry 0\.4 and before; it has a kind now, such as latent, class",
    ),
]


@pytest.mark.parametrize(("document", "match"), REFUSED)
def test_what_is_no_spec_is_refused(document: object, match: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(SpecError, match=match):
        spec_from_json(text, "spec.json")


def test_a_spec_says_everything_that_is_wrong_at_once() -> None:
    document = {"inputs": [z(0), {"name": "y", "kind": "x"}], "outputs": [image(0, 1)], "q": 1}
    with pytest.raises(SpecError) as refusal:
        spec_from_json(json.dumps(document), "spec.json")
    for words in (
        "inputs.0: z: shape.0",
        "inputs.1: kind 'x'",
        "outputs.0: image: hei",
        "q: there",
    ):
        assert words in str(refusal.value)


def test_parts_that_are_made_already_are_taken() -> None:
    spec = GeneratorSpec(
        inputs=(input_from_any(Z),),
        outputs=(output_from_any(IMAGE),),
        stages=(stage_from_any(NETWORK),),
    )
    assert spec == make_spec([Z], [IMAGE], [NETWORK])


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("z", np.zeros((2, 5), np.float32), r"z has rows of shape \[5\]; it takes rows of shape"),
        ("z", np.full((2, 4), np.nan, np.float32), "z in row 0 is nan; it takes 4 finite"),
        ("z", np.zeros((2, 4)), "z has dtype float64; it takes 4 finite float32"),
        ("w", np.full((1, 2, 3), np.inf, np.float32), "w in row 0 is inf"),
        ("class_label", np.array([[0], [2]]), "row 1 is 2; it takes an integer from 0 to 1: 0=cat"),
        ("class_label", np.array([[-1]]), "class_label in row 0 is -1"),
        ("truncation_psi", np.array([[np.nan]], np.float32), "is nan; it takes a number from -2"),
        ("truncation_psi", np.array([[2.5]], np.float32), "in row 0 is 2.5"),
    ],
)
def test_a_value_that_its_kind_does_not_allow_is_refused(
    name: str, values: Any, match: str
) -> None:
    item = FULL.find(name)
    assert item is not None
    with pytest.raises(BadRequest, match=match):
        item.check(values)


def test_the_ends_of_a_range_are_allowed() -> None:
    for name, values in (
        ("truncation_psi", np.array([[-2.0], [2.0]], np.float32)),
        ("class_label", np.array([[0], [1]])),
    ):
        item = FULL.find(name)
        assert item is not None
        item.check(values)


@pytest.mark.parametrize(("count", "more"), [(20, False), (21, True)])
def test_no_message_lists_classes_without_end(count: int, more: bool) -> None:
    item = input_from_any(classes(*(f"c{i}" for i in range(count))))
    assert "19=c19" in item.allowed
    assert "20=c20" not in item.allowed
    assert item.allowed.endswith(", ...") == more


def names_of(route: Route) -> tuple[list[str], list[str], list[str]]:
    """Return what a route's stages give first, its inputs, and what is drawn."""
    stages = [stage.gives[0] for stage in route.stages]
    return stages, [i.name for i in route.inputs], [i.name for i in route.drawn]


ALL = ["w", "w_truncated", "image"]


@pytest.mark.parametrize(
    ("given", "stages", "inputs", "drawn"),
    [
        (set(), ALL, ["z", "class_label", "truncation_psi"], ["z"]),
        ({"class_label"}, ALL, ["z", "class_label", "truncation_psi"], ["z"]),
        ({"z"}, ALL, ["z", "class_label", "truncation_psi"], []),
        ({"w"}, ALL[1:], ["w", "truncation_psi"], []),
        ({"w", "truncation_psi"}, ALL[1:], ["w", "truncation_psi"], []),
    ],
)
def test_what_runs_for_what_is_given(
    given: set[str], stages: list[str], inputs: list[str], drawn: list[str]
) -> None:
    assert names_of(FULL.route(frozenset(given))) == (stages, inputs, drawn)
    assert FULL.route(frozenset(given)) == FULL.route(frozenset(given))


def test_a_stage_runs_until_all_that_it_gives_is_given() -> None:
    halves = [{**w(4), "name": name} for name in ("left", "right")]
    spec = make_spec(
        [Z, *halves, {"name": "noise", "kind": "latent", "shape": [2]}],
        [IMAGE],
        [
            {"network": "mapping", "takes": ["z"], "gives": ["left", "right"]},
            {"network": "synthesis", "takes": ["left", "right", "noise"], "gives": ["image"]},
        ],
    )
    assert names_of(spec.route(frozenset())) == (["left", "image"], ["z", "noise"], ["z", "noise"])
    one_half = names_of(spec.route(frozenset({"left"})))
    assert one_half == (["left", "image"], ["z", "noise"], ["z", "noise"])
    both = names_of(spec.route(frozenset({"left", "right"})))
    assert both == (["image"], ["left", "right", "noise"], ["noise"])
    all_of_it = names_of(spec.route(frozenset({"left", "right", "noise"})))
    assert all_of_it == (["image"], ["left", "right", "noise"], [])


def test_an_output_of_a_stage_that_is_gone_around_is_made_all_the_same() -> None:
    spec = make_spec(
        [Z, w(4)],
        [IMAGE, {"name": "style", "kind": "vector", "size": 4}],
        [
            {"network": "mapping", "takes": ["z"], "gives": ["w", "style"]},
            {"network": "synthesis", "takes": ["w"], "gives": ["image"]},
        ],
    )
    assert names_of(spec.route(frozenset({"w"})))[0] == ["w", "image"]


def networks_of(spec: GeneratorSpec) -> list[NetworkStage]:
    return [stage for stage in spec.pipeline if isinstance(stage, NetworkStage)]


def upscaler() -> GeneratorSpec:
    """Return a spec with a picture ``image`` in and another one out."""
    return make_spec([image(4, 3), psi()], [image(8, 6)])


def test_a_name_may_go_in_and_come_out() -> None:
    spec = upscaler()
    found, made = spec.find("image"), spec.find_output("image")
    assert found is not None
    assert made is not None
    assert (found.row_shape, made.raw.row_shape) == ((4, 3, 3), (8, 6, 3))
    (stage,) = networks_of(spec)
    route = spec.route(frozenset({"image"}))
    assert names_of(route) == (["image"], ["image", "truncation_psi"], [])
    assert spec.graph_inputs(stage) == {"image": "image.in", "truncation_psi": "truncation_psi"}
    assert set(spec.graph_outputs(stage)) == {"image", "image.sample", "watch"}


def test_what_the_graphs_of_a_staged_generator_give() -> None:
    mapping, synthesis = networks_of(FULL)
    assert FULL.graph_outputs(mapping) == {"w": TensorType(np.float32, (2, 3))}
    assert FULL.graph_outputs(synthesis) == {
        "image": TensorType(np.uint8, (8, 6, 3)),
        "image.sample": TensorType(np.float32, (3, 8, 6)),
        "watch": TensorType(np.float32, ()),
    }
    hidden = make_spec(
        [Z],
        [IMAGE],
        [
            {"network": "first", "takes": ["z"], "gives": ["features"]},
            {"network": "second", "takes": ["features"], "gives": ["image"]},
        ],
    )
    assert hidden.graph_outputs(networks_of(hidden)[0]) == {"features": None}


def test_the_main_picture_is_the_first_one() -> None:
    vector = {"name": "embedding", "kind": "vector", "size": 3}
    two = make_spec([Z], [vector, {**IMAGE, "name": "a"}, {**IMAGE, "name": "b"}])
    assert two.image.name == "a"
    none = make_spec([Z], [vector])
    assert none.picture is None
    with pytest.raises(BadRequest, match=r"gives no picture; it gives embedding \(vector\)"):
        none.image.name  # noqa: B018


def test_a_samples_answer_is_as_large_as_all_of_its_outputs() -> None:
    spec = make_spec([Z], EVERY_OUTPUT)
    raw = 8 * 6 * 3 + 8 * 6 + 8 * 6 + 16 * 4 + 8 * 6 * 4
    sample = 8 * 6 * 3 * 4 + 8 * 6 * 4 + 256 * 8 * 6 * 4
    assert spec.row_bytes(Format.RAW) == raw
    assert spec.row_bytes(Format.PNG) == raw
    assert spec.row_bytes(Format.FLOAT) == raw + sample


def test_what_a_request_may_carry() -> None:
    assert FULL.takes == "seed, z, class_label, w, truncation_psi, format"
    assert upscaler().takes == "image, truncation_psi, format"
    assert (FULL.takes_seed, upscaler().takes_seed) == (True, False)
    with pytest.raises(BadRequest, match="takes no soul; it takes seed, z, class_label, w, "):
        FULL.check_known(["z", "soul"])
    assert [item.name for item in FULL.controls] == ["class_label", "truncation_psi"]


@pytest.mark.parametrize("name", ["digits", "a", "0", "a-b_c", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a.b", "../a", "a/b", "x" * 65, "a\n", "ü"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="is not allowed; use 1 to 64 of a-z"):
        check_name(name)


@pytest.mark.parametrize(("size", "side"), [("least", 32), ("largest", 128)])
def test_a_spec_at_a_size_has_no_other_size_left(size: Size, side: int) -> None:
    free = {"minimum": 32, "maximum": 128}
    photo = {"name": "photo", "kind": "picture", "height": free, "width": free, "channels": 3}
    spec = make_spec([photo], [{**photo, "name": "image"}])
    assert spec.free_inputs == spec.route(frozenset()).inputs  # looked up before, and kept
    fixed = spec.at(size)
    assert fixed.free_inputs == ()
    (item,) = fixed.route(frozenset()).inputs
    assert item == fixed.find("photo")
    assert item.row_shape == (side, side, 3)
