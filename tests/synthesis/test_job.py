import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs.specs import DIGITS, MAPPED, PLAIN, controls_of
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import MAX_SEED, draw_uniform
from latentry.contract.spec import GeneratorSpec, Role
from latentry.synthesis.job import CONTROL_STREAMS, Choice, Job, Uniform, job_from_file
from latentry.synthesis.plan import JobPlan, plan_from_job

SEEDS = st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=30).map(
    lambda seeds: np.array(seeds, np.int64)
)


def job_with(**controls: object) -> Job:
    return Job.model_validate(
        {"model": "m", "samples": {"seeds": "0-9"}, "controls": controls},
    )


def test_fixed_controls_and_the_models_default() -> None:
    controls = controls_of(job_with(class_label=2), np.arange(3))
    assert controls["class_label"].tolist() == [2, 2, 2]
    assert controls["class_label"].dtype == np.int64
    assert controls["truncation_psi"].tolist() == [0.5, 0.5, 0.5]
    assert controls["truncation_psi"].dtype == np.float32
    assert controls_of(job_with(), np.arange(3), spec=PLAIN) == {}


@given(SEEDS, st.data())
def test_a_drawn_control_depends_on_the_samples_seed_alone(
    seeds: NDArray[np.int64], data: st.DataObject
) -> None:
    job = job_with(class_label={"choice": "0-3"}, truncation_psi={"uniform": [0.3, 0.9]})
    whole = controls_of(job, seeds)
    place = data.draw(st.integers(0, len(seeds) - 1))
    alone = controls_of(job, seeds[place : place + 1])
    assert {role: values[place] for role, values in whole.items()} == {
        role: values[0] for role, values in alone.items()
    }
    assert ((whole["truncation_psi"] >= np.float32(0.3)) & (whole["truncation_psi"] <= 0.9)).all()
    assert set(whole["class_label"].tolist()) <= {0, 1, 2, 3}


def test_drawn_controls_are_the_documented_streams() -> None:
    seeds = np.array([0, 7, MAX_SEED])
    job = job_with(class_label={"choice": [3, 1]}, truncation_psi={"uniform": [-1, 1]})
    controls = controls_of(job, seeds)
    psi = 2 * draw_uniform(seeds, CONTROL_STREAMS[Role.TRUNCATION_PSI]) - 1
    np.testing.assert_array_equal(controls["truncation_psi"], psi.astype(np.float32))
    halves = draw_uniform(seeds, CONTROL_STREAMS[Role.CLASS_LABEL])
    assert controls["class_label"].tolist() == np.where(halves < 0.5, 3, 1).tolist()


def test_choices_are_as_likely_and_the_streams_are_not_the_same() -> None:
    seeds = np.arange(4000)
    job = job_with(class_label={"choice": "0-3"}, truncation_psi={"uniform": [0, 1]})
    controls = controls_of(job, seeds)
    counts = np.bincount(controls["class_label"], minlength=4)
    assert (abs(counts - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)).all()
    correlation = np.corrcoef(controls["class_label"], controls["truncation_psi"])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(len(seeds))


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_choice_never_runs_past_its_last_value(count: int, drawn: float) -> None:
    ends = np.array([drawn, 0.0, 1 - 2**-53])
    found = Choice(choice=tuple(range(count))).draw(ends)
    assert found[1:].tolist() == [0, count - 1]
    assert 0 <= found[0] <= drawn * count


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1, exclude_max=True))
def test_a_uniform_control_stays_between_its_ends(a: float, b: float, drawn: float) -> None:
    low, high = sorted((a, b))
    found = Uniform(uniform=(low, high)).draw(np.array([drawn]))[0]
    assert np.float32(low) <= np.float32(found) <= np.float32(high)


OK = 'model = "m"\n[samples]\nseeds = "0-9"\n'


CLASSES = 'model = "m"\n[samples]\n'


LABEL = OK + "[controls]\nclass_label = "


PSI = OK + "[controls]\nclass_label = 0\ntruncation_psi = "


FILTER = OK + "[[filters]]\nkind = "


NUMBER = 'give a number, { choice = [0, 1] }, { choice = "0-9" } or { uniform = [0.5, 1] }'


WRONG = [
    (PLAIN, "", "model is missing; samples is missing"),
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
    (MAPPED, CLASSES + "per_class = { cat = 5 }", "per_class holds 'cat'; give integers and rang"),
    (DIGITS, CLASSES + 'per_class = { "0" = 5.0 }', "samples.per_class.0 is 5.0; it must be an i"),
    (DIGITS, CLASSES + 'per_class = { "0" = "5" }', 'samples.per_class.0 is "5"; it must be an i'),
    (DIGITS, CLASSES + 'per_class = { "0" = true }', "samples.per_class.0 is true; it must be an"),
    (DIGITS, CLASSES + 'per_class = { "0" = 0 }', "is 0; it must be greater than or equal to 1"),
    (PLAIN, CLASSES + 'per_class = { "0" = 5 }', "m takes no class_label; it takes no controls "),
    (DIGITS, LABEL.replace('seeds = "0-9"', 'per_class = { "0" = 5 }') + "3", "take it out of "),
    (DIGITS, OK, 'm needs class_label: say how many of each class with [samples] per_class = { "'),
    (DIGITS, LABEL + "10", "class_label is 10 in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "9" * 30, "in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + "3.0", "class_label is 3.0 in the job; it takes an integer from 0 to 9"),
    (DIGITS, LABEL + '"0-9"', 'controls.class_label: holds "0-9"; ' + NUMBER),
    (DIGITS, LABEL + "true", "controls.class_label: holds true; " + NUMBER),
    (DIGITS, LABEL + "[0, 1]", "controls.class_label: holds [0, 1]; " + NUMBER),
    (DIGITS, LABEL + "{ uniform = [0, 9] }", "class_label is 0.0 in the job; it takes an integer"),
    (DIGITS, LABEL + '{ choice = "0-12" }', "class_label is 10 in the job; it takes an integer fr"),
    (DIGITS, LABEL + '{ choice = "a" }', "choice holds 'a'; give integers and ranges, such as "),
    (DIGITS, LABEL + "{ choice = [] }", "controls.class_label.choice: holds []; give at least one"),
    (DIGITS, LABEL + "{ normal = [0, 1] }", "controls.class_label.normal: there is no such key"),
    (MAPPED, PSI + "3", "truncation_psi is 3 in the job; it takes a number from -2 to 2"),
    (MAPPED, PSI + "{ uniform = [0.5, 3] }", "truncation_psi is 3.0 in the job; it takes a number"),
    (MAPPED, PSI + "{ uniform = [1, 0.5] }", "uniform = [1.0, 0.5] runs backwards; [low, high]"),
    (MAPPED, PSI + "{ uniform = [1] }", "controls.truncation_psi.uniform.1 is missing"),
    (MAPPED, PSI + "1" * 400, "controls.truncation_psi: holds 1111"),
    (MAPPED, PSI + "{ choice = [1, " + "1" * 400 + "] }", "controls.truncation_psi.choice"),
    (MAPPED, PSI + "nan", "controls.truncation_psi: holds NaN; give a number"),
    (MAPPED, PSI + "1e300", "truncation_psi is 1e+300 in the job; it takes a number from -2 to 2"),
    (DIGITS, LABEL + "1\npsi = 1", "controls.psi: there is no such key; it must be 'class_label'"),
    (DIGITS, PSI + "1", "m takes no truncation_psi; it takes class_label"),
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
    (PLAIN, OK + '[filters]\nkind = "constant"', "it must be a list ([[filters]] for filters)"),
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
        "[controls]\ntruncation_psi = { uniform = [0, 1] }\n"
        '[output]\nformat = "parquet"\nimage = "webp"\nshard_size = 100\n'
        '[[filters]]\nkind = "constant"\n[[filters]]\nkind = "duplicates"\n'
    )
    job = job_from_file(path)
    job.check(MAPPED)
    plan = plan_from_job(job, MAPPED)
    assert plan == JobPlan(7, ((0, 3), (1, 3), (2, 3), (3, 1000)), shards=11, reserve=92)
