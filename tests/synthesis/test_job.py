import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs.specs import DIGITS, IMAGE, MAPPED, PLAIN, Z, inputs_of
from numpy.typing import NDArray
from specs import classes, image, make_spec, z

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.kind import InputKind
from latentry.contract.seeds import MAX_SEED, draw_uniform
from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import Job, job_from_file
from latentry.synthesis.job_inputs import Choice, Uniform
from latentry.synthesis.plan import JobPlan, plan_from_job

SEEDS = st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=30).map(
    lambda seeds: np.array(seeds, np.int64)
)


def integer(name: str = "steps", **limits: int) -> dict[str, object]:
    return {"name": name, "kind": "integer", **limits}


STEPS = make_spec([Z, integer(minimum=-5, maximum=2**62, default=1)], [IMAGE])
STEPS_ITEM = cast(InputKind, STEPS.find("steps"))
PSI_ITEM = cast(InputKind, MAPPED.find("truncation_psi"))


def job_with(**inputs: object) -> Job:
    return Job.model_validate(
        {"model": "m", "samples": {"seeds": "0-9"}, "inputs": inputs},
    )


def test_fixed_inputs_and_the_models_default() -> None:
    inputs = inputs_of(job_with(class_label=2), np.arange(3))
    assert inputs["class_label"].tolist() == [2, 2, 2]
    assert inputs["class_label"].dtype == np.int64
    assert inputs["truncation_psi"].tolist() == [0.5, 0.5, 0.5]
    assert inputs["truncation_psi"].dtype == np.float32
    assert inputs_of(job_with(), np.arange(3), spec=PLAIN) == {}


@given(SEEDS, st.data())
def test_a_drawn_input_depends_on_the_samples_seed_alone(
    seeds: NDArray[np.int64], data: st.DataObject
) -> None:
    job = job_with(class_label={"choice": "0-3"}, truncation_psi={"uniform": [0.3, 0.9]})
    whole = inputs_of(job, seeds)
    place = data.draw(st.integers(0, len(seeds) - 1))
    alone = inputs_of(job, seeds[place : place + 1])
    assert {name: values[place] for name, values in whole.items()} == {
        name: values[0] for name, values in alone.items()
    }
    assert ((whole["truncation_psi"] >= np.float32(0.3)) & (whole["truncation_psi"] <= 0.9)).all()
    assert set(whole["class_label"].tolist()) <= {0, 1, 2, 3}


def test_drawn_inputs_are_the_documented_streams() -> None:
    seeds = np.array([0, 7, MAX_SEED])
    job = job_with(class_label={"choice": [3, 1]}, truncation_psi={"uniform": [-1, 1]})
    inputs = inputs_of(job, seeds)
    psi = 2 * draw_uniform(seeds, "job:truncation_psi") - 1
    np.testing.assert_array_equal(inputs["truncation_psi"], psi.astype(np.float32))
    halves = draw_uniform(seeds, "job:class_label")
    assert inputs["class_label"].tolist() == np.where(halves < 0.5, 3, 1).tolist()


def test_choices_are_as_likely_and_the_streams_are_not_the_same() -> None:
    seeds = np.arange(4000)
    job = job_with(class_label={"choice": "0-3"}, truncation_psi={"uniform": [0, 1]})
    inputs = inputs_of(job, seeds)
    counts = np.bincount(inputs["class_label"], minlength=4)
    assert (abs(counts - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)).all()
    correlation = np.corrcoef(inputs["class_label"], inputs["truncation_psi"])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(len(seeds))


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_choice_never_runs_past_its_last_value(count: int, drawn: float) -> None:
    ends = np.array([drawn, 0.0, 1 - 2**-53])
    found = Choice(choice=tuple(range(count))).draw(STEPS_ITEM, ends)
    assert found[1:].tolist() == [0, count - 1]
    assert 0 <= found[0] <= drawn * count


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1, exclude_max=True))
def test_a_uniform_number_stays_between_its_ends(a: float, b: float, drawn: float) -> None:
    low, high = sorted((a, b))
    found = Uniform(uniform=(low, high)).draw(PSI_ITEM, np.array([drawn]))[0]
    assert np.float32(low) <= np.float32(found) <= np.float32(high)


OK = 'model = "m"\n[samples]\nseeds = "0-9"\n'


CLASSES = 'model = "m"\n[samples]\n'


LABEL = OK + "[inputs]\nclass_label = "


PSI = OK + "[inputs]\nclass_label = 0\ntruncation_psi = "


FILTER = OK + "[[filters]]\nkind = "


NUMBER = (
    'give a number, the name of a class, a vector, { choice = [0, 1] }, { choice = "0-9" } or '
    "{ uniform = [0.5, 1] }"
)


WRONG = [
    (PLAIN, "", "model is missing; samples: give either seeds = "),
    (PLAIN, "model = ", "is no TOML: Invalid value"),
    (PLAIN, 'model = "My Model"\n[samples]\nseeds = "0-9"', "'My Model' is not allowed; use 1 to"),
    (PLAIN, 'modle = "m"\n' + OK, "modle: there is no such key; there are model, model_digest, "),
    (PLAIN, 'model_digest = "ab"\n' + OK, "model_digest: 'ab' is no model digest, 64 hexadecimal"),
    (PLAIN, 'engine_class = "cpu"\n' + OK, "engine_class is \"cpu\"; it must be 'any'"),
    (PLAIN, 'model = "m"\nsamples = "0-9"', 'samples is "0-9"; it must be a table'),
    (PLAIN, OK + "seed = 3", "samples.seed: there is no such key; there are seeds, first_seed, p"),
    (DIGITS, OK + 'per_class = { "0" = 1 }', "samples: give either seeds = "),
    (DIGITS, CLASSES, "samples: give either seeds = "),
    (DIGITS, CLASSES + "per_class = {}", "samples: give either seeds = "),
    (PLAIN, CLASSES + "seeds = 10", "samples.seeds is 10; it must be a text, in quotes"),
    (PLAIN, CLASSES + 'seeds = "0-9,20"', 'seeds = "0-9,20"; one range with both ends, "0-9999"'),
    (PLAIN, CLASSES + 'seeds = "9-0"', 'seeds = "9-0"; seeds run upwards from 0 to 4294967295'),
    (PLAIN, CLASSES + 'seeds = "0-4294967296"', "seeds run upwards from 0 to 4294967295"),
    (PLAIN, OK + "first_seed = 5", "first_seed goes with per_class; seeds has its own first seed"),
    (DIGITS, CLASSES + 'per_class = { "0-10" = 5 }', "class_label is 10 in the job; it takes an i"),
    (DIGITS, CLASSES + 'per_class = { "0-5" = 5, "5-9" = 3 }', "per_class names class 5 twice"),
    (MAPPED, CLASSES + "per_class = { cow = 5 }", "has no class 'cow'; it takes an integer from 0"),
    (MAPPED, CLASSES + 'per_class = { "cat,cow" = 5 }', "has no class 'cow'; it takes an integer"),
    (MAPPED, CLASSES + 'per_class = { "cat" = 5, "0-1" = 3 }', "per_class names class 0 twice"),
    (MAPPED, CLASSES + 'per_class = { "2-1" = 5 }', "class_label holds 2-1, which runs backwards"),
    (DIGITS, CLASSES + 'per_class = { "0" = 5.0 }', "samples.per_class.0 is 5.0; it must be an i"),
    (DIGITS, CLASSES + 'per_class = { "0" = "5" }', 'samples.per_class.0 is "5"; it must be an i'),
    (DIGITS, CLASSES + 'per_class = { "0" = true }', "samples.per_class.0 is true; it must be an"),
    (DIGITS, CLASSES + 'per_class = { "0" = 0 }', "is 0; it must be greater than or equal to 1"),
    (PLAIN, CLASSES + 'per_class = { "0" = 5 }', "per_class counts classes, and this m"),
    (DIGITS, LABEL.replace('seeds = "0-9"', 'per_class = { "0" = 5 }') + "3", "take it out of "),
    (DIGITS, OK, 'm needs class_label: say how many of each class with [samples] per_class = { "'),
    (DIGITS, LABEL + "10", "class_label is 10 in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "9" * 30, "in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "3.0", "class_label is 3.0 in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + '"0-9"', 'class_label = "0-9" names 10 classes; give one, or { choice = '),
    (DIGITS, LABEL + '"a"', "class_label has no class 'a'; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "true", "inputs.class_label: holds true; " + NUMBER),
    (DIGITS, LABEL + "[0, 1]", "class_label is [0, 1] in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "[0, true]", "inputs.class_label: holds true; " + NUMBER),
    (DIGITS, LABEL + "{ uniform = [0, 9] }", "drawn with choice, as classes have no"),
    (DIGITS, LABEL + '{ choice = "0-12" }', "class_label is 10 in the job; it takes an integer fr"),
    (DIGITS, LABEL + '{ choice = "a" }', "class_label has no class 'a'; it takes an integer from"),
    (DIGITS, LABEL + "{ choice = [] }", "inputs.class_label.choice: holds []; give at least one"),
    (DIGITS, LABEL + "{ normal = [0, 1] }", "inputs.class_label.normal: there is no such key"),
    (MAPPED, PSI + "3", "truncation_psi is 3 in the job; it takes a number from -2 to 2"),
    (MAPPED, PSI + "{ uniform = [0.5, 3] }", "truncation_psi is 3 in the job; it takes a number"),
    (MAPPED, PSI + "{ uniform = [1, 0.5] }", "uniform = [1, 0.5] runs backwards; [low, high]"),
    (MAPPED, PSI + "{ uniform = [1] }", "inputs.truncation_psi.uniform.1 is missing"),
    (MAPPED, PSI + "1" * 400, "inputs.truncation_psi: holds 1111"),
    (MAPPED, PSI + "{ choice = [1, " + "1" * 400 + "] }", "inputs.truncation_psi.choice"),
    (MAPPED, PSI + "nan", "inputs.truncation_psi: holds NaN; give a number"),
    (MAPPED, PSI + "1e300", "truncation_psi is 1e+300 in the job; it takes a number from -2 to 2"),
    (DIGITS, LABEL + "1\npsi = 1", "m takes no psi in a job; it takes class_label"),
    (DIGITS, PSI + "1", "m takes no truncation_psi in a job; it takes class_label"),
    (PLAIN, OK + 'reserve = "25%"', 'samples.reserve is "25%"; it must be a number'),
    (PLAIN, OK + "reserve = -1", "samples.reserve is -1; it must be greater than or equal to 0"),
    (
        PLAIN,
        CLASSES + 'seeds = "4294967286-4294967295"',
        "the job needs seeds to 4294967298, past ",
    ),
    (PLAIN, OK + '[output]\nformat = "tar"', "output.format is \"tar\"; it must be 'webdataset', "),
    (PLAIN, OK + '[output]\nformat = "npz"\nimage = "png"', "npz holds one array of pixels: image"),
    (PLAIN, OK + '[output]\nimage = "none"', 'image = "none" goes with features'),
    (PLAIN, OK + "[output]\nshard_size = 0", "output.shard_size is 0; it must be greater than or"),
    (PLAIN, OK.replace("0-9", "0-9_999_999") + "[output]\nshard_size = 1", "over 1000000 shards"),
    (PLAIN, OK + '[output.features]\nfile = "job.toml"', 'are written with format = "parquet"'),
    (
        PLAIN,
        OK + '[output.features]\nfile = "no.onnx"',
        "no.onnx is no file; give the path of an O",
    ),
    (PLAIN, OK + '[filters]\nkind = "constant"', "it must be a list (filters: [[filters]])"),
    (
        PLAIN,
        OK + "[output]\noutputs = []",
        "output.outputs is []; it must be a list with something",
    ),
    (PLAIN, OK + '[output]\noutputs = "image"', 'output.outputs is "image"; it must be a list'),
    (PLAIN, FILTER + '"blur"', "its kind must be one of constant, duplicates, classifier, python"),
    (PLAIN, OK + "[[filters]]\nfile = 1", "its kind must be one of constant, duplicates, classi"),
    (
        PLAIN,
        FILTER + '"constant"\ntolerance = 300',
        "filters.0.tolerance is 300; it must be less t",
    ),
    (PLAIN, FILTER + '"duplicates"\nall = true', "filters.0.all: there is no such key"),
    (DIGITS, FILTER + '"classifier"\nfile = "no.onnx"', "filters.0.file: "),
    (DIGITS, FILTER + '"classifier"', "filters.0.file is missing"),
    (PLAIN, FILTER + '"classifier"\nfile = "job.toml"', "the filter classifier compares classes"),
    (
        DIGITS,
        FILTER + '"classifier"\nfile = "job.toml"\nstd = [0]',
        "std.0 is 0; it must be greater",
    ),
    (
        DIGITS,
        FILTER + '"classifier"\nfile = "job.toml"\nstd = [1, 2]',
        "has 2 numbers; give one, or",
    ),
    (PLAIN, FILTER + '"python"\nfunction = "mine"', 'holds "mine"; give "package.module:function"'),
]


@pytest.mark.parametrize(("spec", "text", "words"), WRONG)
def test_a_wrong_job_is_refused_in_one_line_that_says_what_is_right(
    tmp_path: Path, spec: GeneratorSpec, text: str, words: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)

    def plan() -> None:
        job = job_from_file(path)
        job.check(spec)
        plan_from_job(job, spec)

    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        plan()
    line = str(refusal.value)
    assert "\n" not in line
    assert not re.search("pydantic|validat|Input|instance|dict|tuple|function-", line)


def test_a_missing_file_and_one_of_other_bytes(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"job\.toml cannot be read: No such file or directory"):
        job_from_file(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_bytes(b"\xff")
    with pytest.raises(BadRequest, match="is no TOML: "):
        job_from_file(tmp_path / "job.toml")


def test_files_are_looked_for_beside_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "net.onnx").write_bytes(b"")
    (tmp_path / "job.toml").write_text(FILTER + '"classifier"\nfile = "networks/net.onnx"')
    monkeypatch.chdir("/")
    (options,) = job_from_file(tmp_path / "job.toml").filters
    assert options.files() == [tmp_path / "networks" / "net.onnx"]


def test_numbers_for_each_channel_of_a_network_are_read(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    path = tmp_path / "job.toml"
    table = 'file = "net.onnx"\nmean = [0.5, 0, 1]\nstd = [1, 0.5, 0.25]\n'
    path.write_text(f'{OK}[output]\nformat = "parquet"\n[output.features]\n{table}')
    features = job_from_file(path).output.features
    assert features
    assert (features.mean, features.std) == ((0.5, 0, 1), (1, 0.5, 0.25))


def test_a_whole_job_reads_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        'model = "m"\nengine_class = "any"\n'
        '[samples]\nper_class = { "0-2" = 3, "3" = 1_000 }\nfirst_seed = 7\nreserve = 1\n'
        "[inputs]\ntruncation_psi = { uniform = [0, 1] }\n"
        '[output]\nformat = "parquet"\nimage = "webp"\nshard_size = 100\n'
        '[[filters]]\nkind = "constant"\n[[filters]]\nkind = "duplicates"\n'
    )
    job = job_from_file(path)
    job.check(MAPPED)
    plan = plan_from_job(job, MAPPED)
    assert plan == JobPlan(7, ((0, 3), (1, 3), (2, 3), (3, 1000)), shards=11, reserve=92)


# --- any input of one number --------------------------------------------------------------------

MANY = make_spec(
    [
        Z,
        classes("cat", "dog", "emu", "fox"),
        classes("red", "green, dark", "blue", name="colour"),
        integer("num_steps", minimum=1, maximum=50, default=20),
        {"name": "guidance_scale", "kind": "number", "minimum": 0.0, "maximum": 1e30},
    ],
    [IMAGE],
)


def test_every_input_of_one_number_is_given_by_its_name() -> None:
    job = job_with(
        class_label="dog",
        colour={"choice": ["green, dark", "blue"]},
        num_steps={"uniform": [3, 5]},
        guidance_scale={"choice": [7.5, 1e20]},
    )
    seeds = np.arange(600)
    inputs = inputs_of(job, seeds, spec=MANY)
    assert list(inputs) == ["class_label", "colour", "num_steps", "guidance_scale"]
    assert [values.dtype for values in inputs.values()] == [*[np.int64] * 3, np.float32]
    assert set(inputs["class_label"].tolist()) == {1}
    assert set(inputs["colour"].tolist()) == {1, 2}
    assert (abs(np.bincount(inputs["num_steps"])[3:] - 200) < 60).all()  # both ends, as likely
    drawn = draw_uniform(seeds, "job:num_steps")
    assert inputs["num_steps"].tolist() == (3 + np.floor(3 * drawn)).astype(int).tolist()
    assert set(inputs["guidance_scale"].tolist()) == {7.5, float(np.float32(1e20))}
    left_out = inputs_of(job_with(class_label=0, colour=0, guidance_scale=0), seeds, spec=MANY)
    assert set(left_out["num_steps"].tolist()) == {20}


@given(st.data(), st.floats(0, 1, exclude_max=True))
def test_a_uniform_integer_stays_between_its_ends(data: st.DataObject, drawn: float) -> None:
    low = data.draw(st.integers(-5, 2**62))
    high = data.draw(st.integers(low, 2**62))
    ends = np.array([drawn, 0.0, 1 - 2**-53])
    found = Uniform(uniform=(low, high)).draw(STEPS_ITEM, ends).tolist()
    assert low <= found[0] <= high
    assert found[1] == low
    # A number in [0, 1) has 53 bits, so of more integers than that not every one is drawn.
    assert found[2] == high or (high - low > 2**52 and found[2] <= high)


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        ("0-2", {0, 1, 2}),
        ("cat, fox", {0, 3}),
        (["fox"], {3}),
        (["cat", 1, "2-3"], {0, 1, 2, 3}),
        ([2], {2}),
    ],
)
def test_classes_are_named_or_numbered(choice: object, labels: set[int]) -> None:
    job = job_with(class_label={"choice": choice})
    assert set(inputs_of(job, np.arange(200))["class_label"].tolist()) == labels


def test_a_name_comes_before_a_number() -> None:
    """Classes may be called as numbers are, and not in their order."""
    spec = make_spec([Z, classes("9", "8", "7")], [IMAGE])
    assert set(inputs_of(job_with(class_label="7"), np.arange(3), spec=spec)["class_label"]) == {2}
    assert set(inputs_of(job_with(class_label=2), np.arange(3), spec=spec)["class_label"]) == {2}
    samples = {"per_class": {"9,7": 4, "1-1": 2}}
    job = Job.model_validate({"model": "m", "samples": samples})
    assert job.samples.counts(spec) == [(0, 4), (1, 2), (2, 4)]


def test_names_count_classes(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(CLASSES + 'per_class = { cat = 7, "dog,fox" = 2, "2-2" = 1 }\nfirst_seed = 5\n')
    job = job_from_file(path)
    job.check(MAPPED)
    plan = plan_from_job(job, MAPPED)
    assert (plan.first_seed, plan.counts) == (5, ((0, 7), (1, 2), (2, 1), (3, 2)))
    assert Job.model_validate_json(job.model_dump_json(), strict=True) == job


PICTURE_IN = {**image(8, 8), "name": "photo"}
MASK_IN = {"name": "mask", "kind": "mask", "height": 8, "width": 8}
VECTOR_IN = {"name": "attributes", "kind": "vector", "size": 40}
ONE_IN = {"name": "attributes", "kind": "vector", "size": 1}
FEATURES = {"name": "features", "kind": "vector", "size": 16}

REFUSED = [
    ([Z, PICTURE_IN], [IMAGE], "", "m needs photo (pictures of 8 x 8 x 3, uint8); a job gives a m"),
    (
        [PICTURE_IN],
        [IMAGE],
        "",
        "m needs photo (pictures of 8 x 8 x 3, uint8); a job gives a model",
    ),
    ([Z, MASK_IN], [IMAGE], "", "m needs mask (masks of 8 x 8, uint8, 0 to 255); a job gives a m"),
    ([Z, VECTOR_IN], [IMAGE], "", "m needs [inputs] attributes; it takes 40 finite numbers a sa"),
    ([Z, ONE_IN], [IMAGE], "", "m needs [inputs] attributes; it takes 1 finite numbers a sample"),
    ([integer(minimum=0, maximum=9)], [IMAGE], "", "m draws nothing from seeds, and a job is made"),
    (
        [Z],
        [IMAGE],
        "[inputs]\nz = 1",
        "z is no number, class or vector (8 finite float32 numbers a sample (n",
    ),
    (
        [z(1), {**VECTOR_IN, "default": [0.0] * 40}],
        [IMAGE],
        "[inputs]\nattributes = 1",
        "attributes is 1 in the job; it takes 40 finite numbers a sample, as a list",
    ),
    (
        [z(1)],
        [IMAGE],
        "[inputs]\nz = 1",
        "z is no number, class or vector (1 finite float32 numbers a sample",
    ),
    (
        [Z, integer(minimum=0, maximum=9)],
        [IMAGE],
        "",
        "m needs [inputs] steps; it takes an integer",
    ),
    *(
        ([Z, integer(name, minimum=0, maximum=9, default=0)], [{**IMAGE, "name": "out"}], "", words)
        for name in ("sha256", "image", "images", "features")
        for words in [f"m takes an input called {name}, which is what shards call something else"]
    ),
]


@pytest.mark.parametrize(("inputs", "outputs", "text", "words"), REFUSED)
def test_a_model_of_which_no_job_can_be_made_is_refused_with_the_reason(
    tmp_path: Path, inputs: list[Any], outputs: list[Any], text: str, words: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(OK + text)
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        job_from_file(path).check(make_spec(inputs, outputs))
    assert "\n" not in str(refusal.value)


def test_what_has_a_default_of_several_numbers_is_left_at_it() -> None:
    spec = make_spec([Z, {**VECTOR_IN, "default": [0.0] * 40}], [IMAGE, FEATURES])
    assert inputs_of(job_with(), np.arange(3), spec=spec)["attributes"].tolist() == [[0.0] * 40] * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_steps = 0.5", "num_steps is 0.5 in the job; it takes an integer from 1 to 50"),
        ("num_steps = 51", "num_steps is 51 in the job; it takes an integer from 1 to 50"),
        ('num_steps = "7"', 'num_steps is "7" in the job; it takes an integer from 1 to 50'),
        ("num_steps = { uniform = [0.5, 3] }", "num_steps is 0.5 in the job; it takes an integer"),
        ("num_steps = { uniform = [0, 3] }", "num_steps is 0 in the job; it takes an integer"),
        ("num_steps = { uniform = [1, 1e19] }", "num_steps is 1e+19 in the job; it takes an inte"),
        ('num_steps = { choice = "49-51" }', "num_steps is 51 in the job; it takes an integer"),
        ('num_steps = { choice = ["cat"] }', "num_steps holds 'cat'; give integers and ranges"),
        ('colour = "0-1"', 'colour = "0-1" names 2 classes; give one, or { choice = "0-1" }, of'),
        ('colour = "pink"', "colour has no class 'pink'; it takes an integer from 0 to 2: 0=red"),
        ('colour = { choice = ["red", "pink"] }', "colour has no class 'pink'; it takes an inte"),
        ("colour = { uniform = [0, 1] }", "colour is drawn with choice, as classes have no order"),
        ("guidance_scale = 1e31", "guidance_scale is 1e+31 in the job; it takes a number from 0"),
        ("guidance_scale = { uniform = [true, 1] }", "uniform.0: holds true; give a number"),
    ],
)
def test_a_wrong_value_of_an_input_is_refused_with_what_it_takes(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "job.toml"
    others = {"class_label": "0", "colour": "0", "guidance_scale": "1"}
    others.pop(text.partition(" ")[0], None)
    path.write_text("\n".join([OK, "[inputs]", *(f"{k} = {v}" for k, v in others.items()), text]))
    with pytest.raises(BadRequest, match=re.escape(words)):
        job_from_file(path).check(MANY)
