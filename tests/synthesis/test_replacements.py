"""Samples that are not taken: what comes in their place, and what stops a job."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs.command import Synthesize, json_of, samples_in, write
from jobs.runs import (
    local_run,
    run_here,
    stamps,
    write_job,
)
from jobs.samples import pixel_sha256

from latentry.clients import Client
from latentry.contract.errors import InvalidOutput, JobError
from latentry.contract.spec import GeneratorSpec
from latentry.serving.runtime.local import LocalTransport
from latentry.synthesis import shard_making
from latentry.synthesis.crews.crew import make_here
from latentry.synthesis.job import Job
from latentry.synthesis.plan import plan_from_job
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin, Progress, Settled, Work
from latentry.synthesis.verify import verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


def test_a_replacement_has_the_class_and_the_next_seed_of_the_reserve(
    synthesize: Synthesize, hook: Callable[[str, str], str]
) -> None:
    rejects = {3, 7, 21, 40, 41}  # 40 is the reserve's own first seed
    filters = hook("odd_ones", f'"no luck" if seed in {rejects} else None')
    text = (
        'model = "mapped"\n[samples]\nper_class = { "0-3" = 10 }\n'
        "[inputs]\ntruncation_psi = { uniform = [0, 1] }\n[output]\nshard_size = 40\n" + filters
    )
    state = json_of(synthesize(write(text), "--out", "out", "--json"))
    assert state["by_class"] == {"0": 10, "1": 10, "2": 10, "3": 10}
    assert state["rejected"] == {"no luck": 5}
    found = {facts["index"]: facts for facts, _ in samples_in(Path("out"))}
    assert [facts["class_label"] for facts in found.values()] == [0, 1, 2, 3] * 10
    seeds = {index: facts["seed"] for index, facts in found.items() if facts["seed"] != index}
    # Round by round: 3, 7 and 21 get 40, 41 and 42; then 3 and 7 get what comes after.
    assert seeds == {3: 43, 7: 44, 21: 42}
    record = json.loads(Path("out/shard-000000.json").read_bytes())
    assert [(item["index"], item["seed"]) for item in record["rejected"]] == [
        (3, 3), (7, 7), (21, 21), (3, 40), (7, 41)
    ]  # fmt: skip
    job = Job.model_validate_json(json.dumps(json.loads(Path("out/job.json").read_bytes())["job"]))
    spec = GeneratorSpec.model_validate(json.loads(Path("out/job.json").read_bytes())["spec"])
    plan = plan_from_job(job, spec).shard(0)
    for index, seed in seeds.items():
        assert seed in plan.reserve
        drawn = job.inputs_of(spec, np.array([seed]), np.array([0]))["truncation_psi"][0]
        assert np.float32(found[index]["truncation_psi"]) == drawn
    assert synthesize("verify", "out", "--samples", 40)[0] == 0


def test_a_reserve_that_is_used_up_leaves_the_job_short_and_says_so(
    synthesize: Synthesize, hook: Callable[[str, str], str]
) -> None:
    filters = hook("no_threes", '"a three" if inputs["class_label"][place] == 3 else None')
    text = 'model = "digits"\n[samples]\nper_class = { "0-4" = 8 }\nreserve = 0.1\n' + filters
    code, out, err = synthesize(write(text), "--out", "out")
    assert code == 1
    assert "classes  0: 8, 1: 8, 2: 8, 4: 8" in out
    assert "rejected 12 a three" in out
    assert "error: incomplete: 8 of class 3 missing, the shards' reserves are used up" in err
    assert not Path("out/index.json").exists()
    state = json_of(synthesize("status", "out", "--json"))
    assert state["missing"] == {"3": 8}
    assert (state["samples"], state["whole"]) == (32, False)
    code, out, _ = synthesize("verify", "out", "--samples", 0)
    assert code == 1
    assert "has no index.json; 8 samples are missing" in out


def test_what_is_not_finite_is_replaced(synthesize: Synthesize) -> None:
    text = 'model = "breaking"\n[samples]\nseeds = "0-2999"\n[output]\nshard_size = 1000\n'
    state = json_of(synthesize(write(text), "--out", "out", "--json"))
    assert state["samples"] == 3000
    assert set(state["rejected"]) == {"NaN or infinity"}
    assert 1 <= state["rejected"]["NaN or infinity"] <= 15
    assert synthesize("verify", "out", "--samples", 100)[0] == 0


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a logistic regression on scikit-learn's real digits, 8 x 8, as an ONNX file."""
    onnx = pytest.importorskip("onnx", reason="writing networks needs the extra [export]")
    datasets = pytest.importorskip("sklearn.datasets", reason="needs the extra [train]")
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    data = datasets.load_digits()
    model = LogisticRegression(max_iter=2000, C=0.5).fit(data.data / 16, data.target)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10]),
            helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 64]),
        ],
        [
            numpy_helper.from_array(model.coef_.T.astype(np.float32), "w"),
            numpy_helper.from_array(model.intercept_.astype(np.float32), "b"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 9
    path = tmp_path_factory.mktemp("classifier") / "classifier.onnx"
    onnx.save(made, path)
    return path


def test_a_classifier_and_features_go_from_the_file_to_the_rows(
    synthesize: Synthesize, classifier: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    shutil.copy(classifier, "classifier.onnx")
    network = 'file = "classifier.onnx"\nscale = "zero_to_one"\nmean = [0.0]\nstd = [1]\n'
    text = (
        'model = "digits"\n[samples]\nper_class = { "0-9" = 20 }\nreserve = 4\n'
        '[output]\nformat = "parquet"\nimage = "none"\nshard_size = 70\n'
        f'[output.features]\n{network}output = "flat"\n'
        f'[[filters]]\nkind = "classifier"\n{network}min_probability = 0.3\n'
    )
    code, out, _ = synthesize(write(text), "--out", "out")
    assert code == 0
    assert "contact sheet" not in out
    state = json_of(synthesize("status", "out", "--json"))
    assert state["by_class"] == dict.fromkeys(map(str, range(10)), 20)
    assert 0 < sum(state["rejected"].values()) < 150
    reasons = {"classified with low probability", *(f"classified as {n}" for n in range(10))}
    assert set(state["rejected"]) <= reasons
    rows = [
        row
        for shard in sorted(Path("out").glob("*.parquet"))
        for row in pyarrow.parquet.read_table(shard).to_pylist()
    ]
    assert {len(row["features"]) for row in rows} == {64}
    seeds, labels = [row["seed"] for row in rows], [row["class_label"] for row in rows]
    images = client.generate("digits", seeds=seeds, class_label=labels).images
    assert [row["sha256"] for row in rows] == [pixel_sha256(image) for image in images]
    # What is there needs no network to be counted and verified, nor the folder of its making.
    Path("classifier.onnx").unlink()
    folder = Path.cwd() / "out"
    monkeypatch.chdir("/")
    assert synthesize("status", folder)[0] == 0
    assert synthesize("verify", folder, "--samples", 200)[0] == 0


def test_vectors_of_absurd_length_are_refused(
    synthesize: Synthesize, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_making, "MOST_FEATURES", 63)
    text = (
        'model = "digits"\n[samples]\nper_class = { "0-9" = 1 }\n[output]\nformat = "parquet"\n'
        f'[output.features]\nfile = "{classifier}"\noutput = "flat"\n'
    )
    code, _, errors = synthesize(write(text), "--out", "out")
    assert code == 1
    assert "gives 64 numbers for an image; a vector has at most 63" in errors


def test_a_filter_that_changes_while_the_job_runs_stops_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "changing_filter.py"
    source.write_text("def all_of_them(images, seeds, inputs):\n    return [None] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    job = Job.model_validate(
        {
            "model": "wide",
            "samples": {"seeds": "0-9"},
            "filters": [{"kind": "python", "function": "changing_filter:all_of_them"}],
        }
    )

    def crew(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        source.write_text(source.read_text() + "# edited\n")
        return make_here(work, numbers, progress)

    with pytest.raises(JobError, match="was changed while the job ran.*changing_filter.py"):
        run_job(job, Origin(repository), str(tmp_path / "out"), crew=crew)


def broken_seeds(repository: Path, count: int) -> list[int]:
    """Return which of the first ``count`` seeds break the model ``breaking``."""
    found: list[int] = []
    with Client(transport=LocalTransport(repository, ("breaking",))) as client:
        for seed in range(0, count, 256):
            seeds = np.arange(seed, seed + 256)
            while len(seeds):
                try:
                    client.generate("breaking", seeds=seeds)
                    break
                except InvalidOutput as error:
                    found += error.seeds
                    seeds = np.setdiff1d(seeds, error.seeds)
    return sorted(found)


@pytest.fixture(scope="module")
def broken(repository: Path) -> list[int]:
    """Return which of the first seeds break the model ``breaking``."""
    found = broken_seeds(repository, 10_240)
    assert len(found) > 3
    return found


@pytest.mark.parametrize(("before", "size"), [(0, 10), (9, 10), (5, 1000), (0, 1)])
def test_nan_is_replaced_from_the_reserve(
    repository: Path, tmp_path: Path, broken: list[int], before: int, size: int
) -> None:
    first = broken[0] - before
    last = broken[2] if size == 1000 else broken[0] + 20
    text = f'model = "breaking"\n[samples]\nseeds = "{first}-{last}"\nreserve = 1\n'
    path, out = write_job(tmp_path, f"{text}[output]\nshard_size = {size}\n"), tmp_path / "out"
    totals = run_here(path, out, repository)
    assert totals.samples == last - first + 1
    assert set(totals.rejected) == {"NaN or infinity"}
    records = [json.loads(record.read_bytes()) for record in out.glob("shard-*.json")]
    drawn = [seed for record in records for seed in record["seeds"]]
    rejected = {item["seed"] for record in records for item in record["rejected"]}
    assert rejected >= {seed for seed in broken if first <= seed <= last}
    assert not set(drawn) & {*broken, *rejected}
    assert len(set(drawn)) == len(drawn) == totals.samples
    assert not verify_job(str(out), Origin(repository=repository)).problems


def test_a_used_up_reserve_leaves_the_job_incomplete(
    repository: Path, tmp_path: Path, broken: list[int]
) -> None:
    text = f'model = "breaking"\n[samples]\nreserve = 0\nseeds = "0-{broken[2]}"\n'
    path = write_job(tmp_path, text + "[output]\nshard_size = 500\n")
    run = local_run(path, tmp_path / "out", repository)
    done = run.run()
    assert done.returncode == 1
    assert "error: incomplete: 3 missing, the shards' reserves are used up" in done.stderr
    report = json.loads(done.stdout)
    assert report["missing"] == {"": 3}
    assert report["samples"] == broken[2] + 1 - 3
    assert not report["whole"]
    before = stamps(run.out)
    again = run.run()
    assert (again.returncode, again.stderr) == (1, done.stderr)
    assert json.loads(again.stdout) == report
    assert stamps(run.out) == before
    assert "index.json" not in before
    verdict = verify_job(str(run.out), None)
    assert verdict.problems == [f"{run.out} has no index.json; 3 samples are missing"]
