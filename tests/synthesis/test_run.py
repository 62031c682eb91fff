"""``latentry synthesize`` from end to end, without a server."""

import io
import json
import re
import shutil
import socket
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest, JobError
from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.manifest import file_record
from latentry.serving.entries.publishing import publish
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.local import LocalTransport
from latentry.synthesis import shard_making
from latentry.synthesis.crews.crew import make_here
from latentry.synthesis.filters.network import NetworkOptions, load_network
from latentry.synthesis.job import Job
from latentry.synthesis.plan import plan_from_job
from latentry.synthesis.records import read_job
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import DEFAULT_RETRY_FOR_S, Origin, Progress, Settled, Work
from latentry.synthesis.sinks.sample import pixel_sha256
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

DIGITS = """
model = "digits"
[samples]
per_class = { "0-8" = 12, "9" = 7 }
[output]
shard_size = 40
[[filters]]
kind = "constant"
[[filters]]
kind = "duplicates"
"""
COUNTS = {**{str(label): 12 for label in range(9)}, "9": 7}

Answer = tuple[int, str, str]
Run = Callable[..., Answer]


@pytest.fixture
def run(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> Run:
    """Run ``latentry synthesize`` in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Answer:
        command = ["synthesize", *map(str, arguments)]
        if "--help" not in command and "status" not in command:
            command += ["--engine", "local", "--repository", str(repository)]
        if "--workers" not in command and "--help" not in command and "status" not in command:
            command += ["--workers", "1"]
        code = main(command)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def write(text: str, name: str = "job.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def json_of(answer: Answer) -> dict[str, Any]:
    code, out, err = answer
    assert out.count("\n") == 1, (code, out, err)
    value: dict[str, Any] = json.loads(out)
    return value


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples_in(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield (what is said of it, its pixels [H, W] or [H, W, 3]) of every sample."""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    facts = json.load(tar.extractfile(name) or io.BytesIO())
                    png = tar.extractfile(name.replace(".json", ".png"))
                    assert png is not None
                    yield facts, np.asarray(Image.open(io.BytesIO(png.read())))


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole job of digits; no test may change it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "job.toml").write_text(DIGITS)
    command = ["synthesize", folder / "job.toml", "--out", folder / "digits", "--engine", "local"]
    options = ["--repository", repository, "--workers", 1, "--json"]
    assert main([str(word) for word in [*command, *options]]) == 0
    return folder / "digits"


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(repository, threads=1)) as client:
        yield client


# --- what comes out -----------------------------------------------------------------------------


def test_the_classes_have_exactly_their_counts(made: Path) -> None:
    facts = [facts for facts, _ in samples_in(made)]
    assert Counter(str(sample["class_label"]) for sample in facts) == COUNTS
    assert [sample["index"] for sample in facts] == list(range(115))
    assert len({sample["seed"] for sample in facts}) == 115
    index = json.loads((made / "index.json").read_bytes())
    assert index["samples"] == 115
    assert index["by_class"] == COUNTS
    assert index["missing"] == {}
    assert [item["samples"] for item in index["files"]] == [39, 38, 38]


def test_a_sample_is_what_a_client_draws_for_its_seed_and_class(made: Path, client: Client) -> None:
    found = list(samples_in(made))
    seeds = [facts["seed"] for facts, _ in found]
    labels = [facts["class_label"] for facts, _ in found]
    images = client.generate("digits", seeds=seeds, class_label=labels).images
    for (facts, pixels), image in zip(found, images, strict=True):
        np.testing.assert_array_equal(pixels, image[..., 0])
        assert facts["sha256"] == pixel_sha256(image)
        assert facts["model_digest"] == client.info("digits").model_digest


def test_the_contact_sheet_shows_samples_of_the_job(made: Path) -> None:
    tiles = {pixels.tobytes() for _, pixels in samples_in(made)}
    with Image.open(made / "contact-sheet.png") as picture:
        sheet = np.asarray(picture)
    height, width = next(samples_in(made))[1].shape
    assert sheet.shape[0] % height == sheet.shape[1] % width == 0
    shown = [
        np.ascontiguousarray(sheet[y : y + height, x : x + width]).tobytes()
        for y in range(0, sheet.shape[0], height)
        for x in range(0, sheet.shape[1], width)
    ]
    filled = [tile for tile in shown if any(tile)]
    assert len(filled) >= 60
    assert set(filled) <= tiles
    assert len(set(filled)) == len(filled)


def test_nothing_of_where_and_when_is_in_the_folder(made: Path, repository: Path) -> None:
    for name, data in tree(made).items():
        for word in (str(made.parent), str(repository), "/tmp", "202"):
            assert name.endswith((".tar", ".png")) or f'"{word}'.encode() not in data, (name, word)
    assert set(tree(made)) == {
        "job.json", "index.json", "contact-sheet.png",
        *(f"shard-{n:06d}.{suffix}" for n in range(3) for suffix in ("tar", "json")),
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_job_again_makes_the_same_folder(run: Run, made: Path, workers: int) -> None:
    job = write(DIGITS)
    assert run(job, "--out", "again", "--workers", workers)[0] == 0
    assert tree(Path("again")) == tree(made)


def test_a_limit_makes_the_first_shards_and_the_rest_follows(run: Run, made: Path) -> None:
    job = write(DIGITS)
    code, out, _ = run(job, "--out", "out", "--limit", 40)
    assert code == 0
    assert "a trial: without --limit the same command makes the rest" in out
    expected = tree(made)
    found = tree(Path("out"))
    assert set(found) == {
        "job.json", "shard-000000.tar", "shard-000000.json", "shard-000001.tar", "shard-000001.json"
    }  # fmt: skip
    assert all(expected[name] == data for name, data in found.items())
    answer = run("status", "out", "--json")
    assert answer[0] == 1
    state = json_of(answer)
    assert (state["samples"], state["planned_samples"], state["whole"]) == (77, 115, False)
    # Each further run makes what is missing, and one that finds all of it nothing.
    assert (
        "2 shards are there, to be checked; making 0 samples"
        in run(job, "--out", "out", "--limit", 40)[2]
    )
    code, _, err = run(job, "--out", "out")
    assert code == 0
    assert "2 shards are there, to be checked; making 38 samples" in err
    assert tree(Path("out")) == expected
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("shard*")}
    assert json_of(run(job, "--out", "out", "--json"))["whole"] is True
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").glob("shard*")} == before


def test_a_lost_shard_is_made_again(run: Run, made: Path) -> None:
    shutil.copytree(made, "out")
    Path("out/shard-000001.tar").unlink()
    assert run(write(DIGITS), "--out", "out")[0] == 0
    assert tree(Path("out")) == tree(made)


MAPPED = """
model = "mapped"
[samples]
seeds = "100-139"
[controls]
class_label = { choice = "1-3" }
truncation_psi = { uniform = [0.25, 0.75] }
[output]
shard_size = 15
"""


def test_drawn_controls_are_those_of_the_file_and_of_the_client(run: Run, client: Client) -> None:
    assert run(write(MAPPED), "--out", "out")[0] == 0
    found = list(samples_in(Path("out")))
    assert [facts["seed"] for facts, _ in found] == list(range(100, 140))
    assert {facts["class_label"] for facts, _ in found} == {1, 2, 3}
    psi = [facts["truncation_psi"] for facts, _ in found]
    assert len(set(psi)) == 40
    assert 0.25 <= min(psi) < 0.35 < 0.65 < max(psi) <= 0.75
    images = client.generate(
        "mapped",
        seeds=range(100, 140),
        class_label=[facts["class_label"] for facts, _ in found],
        truncation_psi=psi,
    ).images
    for (_, pixels), image in zip(found, images, strict=True):
        np.testing.assert_array_equal(pixels, image[..., 0])


@pytest.mark.parametrize(("format", "suffix"), [("parquet", "parquet"), ("npz", "npz")])
def test_every_format_holds_the_same_samples(
    run: Run, made: Path, format: str, suffix: str
) -> None:
    import pyarrow.parquet

    text = DIGITS.replace("[output]", f'[output]\nformat = "{format}"\nimage = "raw"')
    assert run(write(text), "--out", "out")[0] == 0
    expected = [(facts["index"], facts["seed"], facts["sha256"]) for facts, _ in samples_in(made)]
    shards = sorted(Path("out").glob(f"*.{suffix}"))
    rows: list[tuple[int, int, str]] = []
    for shard in shards:
        if format == "npz":
            with np.load(shard) as arrays:
                hashes = [pixel_sha256(image) for image in arrays["images"]]
                rows += zip(arrays["index"].tolist(), arrays["seed"].tolist(), hashes, strict=True)
        else:
            table = pyarrow.parquet.read_table(shard).to_pydict()
            rows += zip(table["index"], table["seed"], table["sha256"], strict=True)
    assert rows == expected
    assert run("verify", "out")[0] == 0


# --- replacements -------------------------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return what writes a filter function into this folder and names it."""
    import sys

    monkeypatch.setattr(sys, "path", sys.path.copy())

    def write_hook(name: str, verdict: str) -> str:
        Path(f"{name}.py").write_text(
            "def judge(images, seeds, controls):\n"
            f"    return [{verdict} for place, seed in enumerate(seeds.tolist())]\n"
        )
        return f'[[filters]]\nkind = "python"\nfunction = "{name}:judge"\n'

    return write_hook


def test_a_replacement_has_the_class_and_the_next_seed_of_the_reserve(
    run: Run, hook: Callable[[str, str], str]
) -> None:
    rejects = {3, 7, 21, 40, 41}  # 40 is the reserve's own first seed
    filters = hook("odd_ones", f'"no luck" if seed in {rejects} else None')
    text = (
        'model = "mapped"\n[samples]\nper_class = { "0-3" = 10 }\n'
        "[controls]\ntruncation_psi = { uniform = [0, 1] }\n[output]\nshard_size = 40\n" + filters
    )
    state = json_of(run(write(text), "--out", "out", "--json"))
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
        drawn = job.controls_of(spec, np.array([seed]), np.array([0]))["truncation_psi"][0]
        assert np.float32(found[index]["truncation_psi"]) == drawn
    assert run("verify", "out", "--samples", 40)[0] == 0


def test_a_reserve_that_is_used_up_leaves_the_job_short_and_says_so(
    run: Run, hook: Callable[[str, str], str]
) -> None:
    filters = hook("no_threes", '"a three" if controls["class_label"][place] == 3 else None')
    text = 'model = "digits"\n[samples]\nper_class = { "0-4" = 8 }\nreserve = 0.1\n' + filters
    code, out, err = run(write(text), "--out", "out")
    assert code == 1
    assert "classes  0: 8, 1: 8, 2: 8, 4: 8" in out
    assert "rejected 12 a three" in out
    assert "error: incomplete: 8 of class 3 missing, the shards' reserves are used up" in err
    assert not Path("out/index.json").exists()
    state = json_of(run("status", "out", "--json"))
    assert state["missing"] == {"3": 8}
    assert (state["samples"], state["whole"]) == (32, False)
    code, out, _ = run("verify", "out", "--samples", 0)
    assert code == 1
    assert "has no index.json; 8 samples are missing" in out


def test_what_is_not_finite_is_replaced(run: Run) -> None:
    text = 'model = "breaking"\n[samples]\nseeds = "0-2999"\n[output]\nshard_size = 1000\n'
    state = json_of(run(write(text), "--out", "out", "--json"))
    assert state["samples"] == 3000
    assert set(state["rejected"]) == {"NaN or infinity"}
    assert 1 <= state["rejected"]["NaN or infinity"] <= 15
    assert run("verify", "out", "--samples", 100)[0] == 0


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
    run: Run, classifier: Path, client: Client, monkeypatch: pytest.MonkeyPatch
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
    code, out, _ = run(write(text), "--out", "out")
    assert code == 0
    assert "contact sheet" not in out
    state = json_of(run("status", "out", "--json"))
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
    assert run("status", folder)[0] == 0
    assert run("verify", folder, "--samples", 200)[0] == 0


def test_vectors_of_absurd_length_are_refused(
    run: Run, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_making, "MOST_FEATURES", 63)
    text = (
        'model = "digits"\n[samples]\nper_class = { "0-9" = 1 }\n[output]\nformat = "parquet"\n'
        f'[output.features]\nfile = "{classifier}"\noutput = "flat"\n'
    )
    code, _, errors = run(write(text), "--out", "out")
    assert code == 1
    assert "gives 64 numbers for an image; a vector has at most 63" in errors


# --- the command line ---------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_writes_nothing(run: Run) -> None:
    job = write(DIGITS)
    code, out, _ = run(job, "--out", "out", "--dry-run")
    assert code == 0
    assert "samples  115, seeds 0 to 114" in out
    assert "         class 9: 7" in out
    assert "shards   3 of about 39, webdataset" in out
    assert "reserve  10 seeds a shard, to 144" in out
    assert re.search(r"size     about \d+ kB, by \d+ samples", out)
    assert re.search(r"time     about .* s, \d+ images/s", out)
    assert out.endswith("nothing was written\n")
    facts = json_of(run(job, "--dry-run", "--json"))
    assert facts["planned_samples"] == 115
    assert facts["planned_shards"] == 3
    assert facts["seeds"] == [0, 114]
    assert {path.name for path in Path().iterdir()} == {"job.toml"}


def test_the_estimate_of_the_size_is_near(run: Run, made: Path) -> None:
    facts = json_of(run(write(DIGITS), "--dry-run", "--json"))
    size = json.loads((made / "index.json").read_bytes())["bytes"]
    assert abs(facts["bytes"] / size - 1) < 0.2


def test_the_summary_counts_what_was_made(run: Run) -> None:
    code, out, _ = run(write(DIGITS, "numbers.toml"))
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(r"numbers: 115 samples in 3 shards, \d+ kB, \d+\.\d s", lines[0])
    assert lines[1] == "classes  " + ", ".join(f"{label}: {n}" for label, n in COUNTS.items())
    assert lines[2:] == ["contact sheet: numbers/contact-sheet.png"]


def test_status_tells_how_far_it_is(run: Run, made: Path, client: Client) -> None:
    code, out, _ = run("status", made)
    assert code == 0
    digest = client.info("digits").model_digest
    assert out.splitlines()[0] == f"{made}: whole, digits {digest[:12]}"
    assert "shards   3 of 3" in out
    assert "samples  115 of 115, " in out
    state = json_of(run("status", made, "--json"))
    assert state["whole"] is True
    assert state["by_class"] == COUNTS
    assert state["model_digest"] == digest


def test_verify_tells_what_it_did(run: Run, made: Path) -> None:
    code, out, _ = run("verify", made, "--samples", 20)
    assert code == 0
    assert out == "verified: 115 samples in 3 shards, 20 drawn again and equal\n"
    verdict = json_of(run("verify", made, "--samples", 0, "--json"))
    assert verdict == {
        "verified": True, "shards": 3, "samples": 115, "problems": [], "duplicates": [],
        "drawn_again": 0, "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["synthesize job.toml --dry-run", "synthesize verify OUT", "--limit", "--take-over"]),
        (["run"], ["Make the samples of a job"]),
        (["verify"], ["Check every hash of a job's output", "--samples"]),
        (["status"], ["Tell how far a job is"]),
    ],
)
def test_help(run: Run, arguments: list[str], words: list[str]) -> None:
    code, out, _ = run(*arguments, "--help")
    assert code == 0
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("text", "arguments", "code", "words"),
    [
        ("model = ", [], 1, "job.toml is no TOML"),
        ('model = "digits"\n[samples]\nseeds = "0-9"', [], 1, "digits needs class_label: say how"),
        ('model = "nosuch"\n[samples]\nseeds = "0-9"', [], 1, "nosuch"),
        (DIGITS, ["--limit", "0"], 2, "--limit"),
        (DIGITS, ["--workers", "0"], 2, "--workers"),
        (DIGITS, ["--url", "x:1"], 1, "go with --engine server; --engine local needs none"),
        (DIGITS, ["--address", "auto"], 1, "--address goes with --engine ray"),
        (DIGITS, ["--out", "nosuch://x"], 1, "--out nosuch://x: "),
        ('model_digest = "' + "0" * 64 + '"' + DIGITS, [], 1, "with the model digest 00000000"),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(
    run: Run, text: str, arguments: list[str], code: int, words: str
) -> None:
    found, out, err = run(write(text), *arguments)
    assert found == code
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert {path.name for path in Path().iterdir()} == {"job.toml"}


def test_a_missing_job_is_named(run: Run) -> None:
    code, _, err = run("gone.toml")
    assert code == 1
    assert "gone.toml cannot be read: No such file or directory" in err
    for command in ("verify", "status"):
        code, _, err = run(command, "gone")
        assert code == 1
        assert "gone holds no job.json; give the folder of a job" in err


def test_a_folder_of_another_job_is_refused_and_left(run: Run, made: Path) -> None:
    shutil.copytree(made, "out")
    before = tree(Path("out"))
    other = DIGITS.replace('"9" = 7', '"9" = 8').replace("shard_size = 40", "shard_size = 41")
    code, _, err = run(write(other), "--out", "out")
    assert code == 1
    assert "job.output.shard_size was 40, here it is 41" in err
    assert "job.samples.per_class.9 was 7, here it is 8" in err
    assert tree(Path("out")) == before


def test_a_folder_of_other_files_is_refused(run: Run) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("important")
    code, _, err = run(write(DIGITS), "--out", "out")
    assert code == 1
    assert "out holds 1 files (thesis.tex, ...) and no job.json; give an empty or new" in err
    assert tree(Path("out")) == {"thesis.tex": b"important"}


def test_a_changed_filter_is_another_job(run: Run, hook: Callable[[str, str], str]) -> None:
    text = 'model = "textures"\n[samples]\nseeds = "0-3"\n' + hook("taste", "None")
    assert run(write(text), "--out", "out")[0] == 0
    hook("taste", "None or None")
    code, _, err = run(write(text), "--out", "out")
    assert code == 1
    assert "files.taste.py was " in err


def test_an_object_store_gets_the_same_files(run: Run, made: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    try:
        assert run(write(DIGITS), "--out", "memory://data/digits", "--limit", 39)[0] == 0
        assert run("status", "memory://data/digits")[0] == 1
        assert run(write(DIGITS), "--out", "memory://data/digits/")[0] == 0
        assert run("status", "memory://data/digits")[0] == 0
        assert run("verify", "memory://data/digits", "--samples", 10)[0] == 0
        found = {path.rpartition("/")[2]: files.cat_file(path) for path in files.find("/data")}
    finally:
        files.store.clear()
    assert found == tree(made)


def test_a_begun_job_goes_on_with_its_version_of_the_model(
    repository: Path, tmp_path: Path
) -> None:
    own = tmp_path / "repository"
    shutil.copytree(repository / "wide", own / "wide")
    job = Job.model_validate(
        {"model": "wide", "samples": {"seeds": "0-19"}, "output": {"shard_size": 5}}
    )
    out = str(tmp_path / "out")
    run_job(job, Origin(own), out, limit=5)
    digest = read_job(LocalFolder(Path(out))).model_digest
    _publish_another_wide(own)
    assert newest_entries(own)[0].manifest.digest != digest
    assert run_job(job, Origin(own), out).samples == 20
    assert read_job(LocalFolder(Path(out))).model_digest == digest
    assert verify_job(out, Origin(own), samples=20).drawn_again == 20


def _publish_another_wide(repository: Path) -> None:
    """Publish a second version, with another digest: its artefact has one more comment."""
    (entry,) = newest_entries(repository)
    files = {name: (entry.folder / name).read_bytes() for name in entry.manifest.files()}
    files["generator.onnx"] += b"\x32\x01 "  # ModelProto.doc_string
    model = entry.manifest.model
    artefacts = {"generator.onnx": file_record(files["generator.onnx"])}
    manifest = entry.manifest.model_copy(
        update={"model": model.model_copy(update={"artefacts": artefacts})}
    )
    manifest.__dict__.pop("digest", None)
    publish(repository, "wide", manifest, files)


def test_a_filter_that_changes_while_the_job_runs_stops_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "changing_filter.py"
    source.write_text(
        "def all_of_them(images, seeds, controls):\n    return [None] * len(images)\n"
    )
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


def test_npz_is_raw_and_verifies(repository: Path, tmp_path: Path) -> None:
    job = Job.model_validate(
        {"model": "wide", "samples": {"seeds": "0-7"}, "output": {"format": "npz"}}
    )
    out = str(tmp_path / "out")
    assert run_job(job, Origin(repository), out).samples == 8
    assert verify_job(out, Origin(repository)).problems == []


def test_what_changed_since_the_job_was_whole_is_not_made_official(
    repository: Path, tmp_path: Path
) -> None:
    job = Job.model_validate(
        {"model": "wide", "samples": {"seeds": "0-19"}, "output": {"shard_size": 5}}
    )
    out = tmp_path / "out"
    run_job(job, Origin(repository), str(out))
    record = out / "shard-000001.json"
    before = record.read_text()
    record.write_text(before.replace('"seeds":[5,6', '"seeds":[6,6'))
    (out / "shard-000002.tar").unlink()
    told: list[str] = []
    run_job(job, Origin(repository), str(out), on_fault=lambda text, _: told.append(text))
    changed, lost = told
    assert changed == f"{record} was changed since the job was whole"
    assert lost == f"{out}/shard-000002.tar cannot be read: No such file or directory"
    assert record.read_text() == before
    assert verify_job(str(out), None).problems == []


def test_a_server_that_was_never_there_is_told_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('model = "wide"\n[samples]\nseeds = "0-7"\n')
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = time.monotonic()
        code = main(["synthesize", str(tmp_path / "job.toml"), "--url", url])
    assert code == 75
    assert time.monotonic() - started < DEFAULT_RETRY_FOR_S / 2


def test_status_sees_a_shard_that_is_gone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'model = "wide"\n[samples]\nseeds = "0-9"\n[output]\nshard_size = 5\n'
    )
    assert run("job.toml", "--out", "out")[0] == 0
    assert run("status", "out")[0] == 0
    (tmp_path / "out" / "shard-000001.tar").unlink()
    code, output, _ = run("status", "out")
    assert (code, "not whole" in output) == (1, True)


def test_a_network_with_external_data_is_refused(tmp_path: Path) -> None:
    import onnx

    weights = onnx.numpy_helper.from_array(np.zeros((3, 4), np.float32), "weights")
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    path = tmp_path / "net.onnx"
    onnx.save(
        onnx.helper.make_model(graph),
        str(path),
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
    )
    with pytest.raises(BadRequest, match=r"keeps its weights in another file, net\.onnx\.data"):
        load_network(NetworkOptions(file=path))
