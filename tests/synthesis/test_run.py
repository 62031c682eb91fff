"""A job from end to end, without a server: what comes out."""

import io
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.command import COUNTS, DIGITS, Synthesize, json_of, samples_in, write
from jobs.runs import tree
from jobs.samples import pixel_sha256
from PIL import Image
from stored.changed_entries import draft_of

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest
from latentry.serving.entries.publishing import publish
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.local import LocalTransport
from latentry.synthesis.job import Job, job_from_file
from latentry.synthesis.records import read_job
from latentry.synthesis.run import open_record, run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.sinks.output_data import sample_sha256
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import read_shard
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


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
def test_the_same_job_again_makes_the_same_folder(
    synthesize: Synthesize, made: Path, workers: int
) -> None:
    job = write(DIGITS)
    assert synthesize(job, "--out", "again", "--workers", workers)[0] == 0
    assert tree(Path("again")) == tree(made)


def test_a_limit_makes_the_first_shards_and_the_rest_follows(
    synthesize: Synthesize, made: Path
) -> None:
    job = write(DIGITS)
    code, out, _ = synthesize(job, "--out", "out", "--limit", 40)
    assert code == 0
    assert "a trial: without --limit the same command makes the rest" in out
    expected = tree(made)
    found = tree(Path("out"))
    assert set(found) == {
        "job.json", "shard-000000.tar", "shard-000000.json", "shard-000001.tar", "shard-000001.json"
    }  # fmt: skip
    assert all(expected[name] == data for name, data in found.items())
    answer = synthesize("status", "out", "--json")
    assert answer[0] == 1
    state = json_of(answer)
    assert (state["samples"], state["planned_samples"], state["whole"]) == (77, 115, False)
    # Each further run makes what is missing, and one that finds all of it nothing.
    assert (
        "2 shards are there, to be checked; making 0 samples"
        in synthesize(job, "--out", "out", "--limit", 40)[2]
    )
    code, _, err = synthesize(job, "--out", "out")
    assert code == 0
    assert "2 shards are there, to be checked; making 38 samples" in err
    assert tree(Path("out")) == expected
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("shard*")}
    assert json_of(synthesize(job, "--out", "out", "--json"))["whole"] is True
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").glob("shard*")} == before


def test_a_lost_shard_is_made_again(synthesize: Synthesize, made: Path) -> None:
    shutil.copytree(made, "out")
    Path("out/shard-000001.tar").unlink()
    assert synthesize(write(DIGITS), "--out", "out")[0] == 0
    assert tree(Path("out")) == tree(made)


MAPPED = """
model = "mapped"
[samples]
seeds = "100-139"
[inputs]
class_label = { choice = "1-3" }
truncation_psi = { uniform = [0.25, 0.75] }
[output]
shard_size = 15
"""


def test_drawn_inputs_are_those_of_the_file_and_of_the_client(
    synthesize: Synthesize, client: Client
) -> None:
    assert synthesize(write(MAPPED), "--out", "out")[0] == 0
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
    synthesize: Synthesize, made: Path, format: str, suffix: str
) -> None:
    import pyarrow.parquet

    text = DIGITS.replace("[output]", f'[output]\nformat = "{format}"\nimage = "raw"')
    assert synthesize(write(text), "--out", "out")[0] == 0
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
    assert synthesize("verify", "out")[0] == 0


def test_a_folder_of_another_job_is_refused_and_left(synthesize: Synthesize, made: Path) -> None:
    shutil.copytree(made, "out")
    before = tree(Path("out"))
    other = DIGITS.replace('"9" = 7', '"9" = 8').replace("shard_size = 40", "shard_size = 41")
    code, _, err = synthesize(write(other), "--out", "out")
    assert code == 1
    assert "job.output.shard_size was 40, here it is 41" in err
    assert "job.samples.per_class.9 was 7, here it is 8" in err
    assert tree(Path("out")) == before


def test_a_folder_of_other_files_is_refused(synthesize: Synthesize) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("important")
    code, _, err = synthesize(write(DIGITS), "--out", "out")
    assert code == 1
    assert "out holds 1 files (thesis.tex, ...) and no job.json; give an empty or new" in err
    assert tree(Path("out")) == {"thesis.tex": b"important"}


def test_a_changed_filter_is_another_job(
    synthesize: Synthesize, hook: Callable[[str, str], str]
) -> None:
    text = 'model = "textures"\n[samples]\nseeds = "0-3"\n' + hook("taste", "None")
    assert synthesize(write(text), "--out", "out")[0] == 0
    hook("taste", "None or None")
    code, _, err = synthesize(write(text), "--out", "out")
    assert code == 1
    assert "files.taste.py was " in err


def test_an_object_store_gets_the_same_files(synthesize: Synthesize, made: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    try:
        assert synthesize(write(DIGITS), "--out", "memory://data/digits", "--limit", 39)[0] == 0
        assert synthesize("status", "memory://data/digits")[0] == 1
        assert synthesize(write(DIGITS), "--out", "memory://data/digits/")[0] == 0
        assert synthesize("status", "memory://data/digits")[0] == 0
        assert synthesize("verify", "memory://data/digits", "--samples", 10)[0] == 0
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
    assert newest_entries(own)[0].digest != digest
    assert run_job(job, Origin(own), out).samples == 20
    assert read_job(LocalFolder(Path(out))).model_digest == digest
    assert verify_job(out, Origin(own), samples=20).drawn_again == 20


def _publish_another_wide(repository: Path) -> None:
    """Publish a second version, with another digest: its artefact has one more comment."""
    (entry,) = newest_entries(repository)
    draft = draft_of(entry, lambda network: network + b"\x32\x01 ")  # ModelProto.doc_string
    publish(repository, "wide", draft)


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


# --- inputs of several kinds, and outputs beside the picture ------------------------------------

STEERED = """
model = "steered"
[samples]
per_class = { cat = 8, "dog,emu" = 5 }
[inputs]
colour = { choice = ["red", "sea, dark"] }
num_steps = { uniform = [2, 4] }
strength = { choice = [0, 0.7, 1.3] }
[output]
shard_size = 7
"""
INPUTS = ("class_label", "colour", "strength", "num_steps")


@pytest.fixture(scope="module")
def varied_client(varied: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(varied, threads=1)) as client:
        yield client


def job_of(folder: Path, text: str) -> Job:
    path = folder / "job.toml"
    path.write_text(text)
    return job_from_file(path)


def samples_of(varied: Path, out: Path, job: Job) -> list[Sample]:
    """Return all samples of a job's folder, as the project's own reader finds them."""
    record = open_record(job, Origin(varied))
    return [
        sample
        for number in range(record.shards)
        for sample in read_shard(
            io.BytesIO((out / record.shard_file(number)).read_bytes()),
            record.job.output,
            record.spec,
            record.plan.size(number),
        )
    ]


@pytest.mark.parametrize(
    "output",
    [
        'format = "webdataset"',
        'image = "webp"',
        'image = "raw"',
        'format = "parquet"',
        'format = "npz"',
    ],
)
def test_a_sample_of_many_inputs_is_what_a_client_draws_for_them(
    varied: Path, varied_client: Client, tmp_path: Path, output: str
) -> None:
    job, out = job_of(tmp_path, STEERED + output), tmp_path / "out"
    totals = run_job(job, Origin(varied), str(out))
    assert dict(totals.by_class) == {"0": 8, "1": 5, "2": 5}
    samples = samples_of(varied, out, job)
    inputs: dict[str, Any] = {
        name: np.array([sample.inputs[name] for sample in samples]) for name in INPUTS
    }
    assert Counter(inputs["class_label"].tolist()) == {0: 8, 1: 5, 2: 5}
    assert set(inputs["colour"].tolist()) == {0, 2}
    assert set(inputs["num_steps"].tolist()) == {2, 3, 4}
    assert {round(float(value), 6) for value in inputs["strength"]} == {0, 0.7, 1.3}
    seeds = [sample.seed for sample in samples]
    drawn = varied_client.generate("steered", seeds=seeds, **inputs)
    assert drawn.images.shape == (18, 16, 12, 4)
    rows = zip(drawn.images, drawn["mask"], drawn["features"], strict=True)
    outputs = job.output.of_sample(varied_client.info("steered").spec)
    assert [sample.sha256 for sample in samples] == [sample_sha256(outputs, row) for row in rows]
    verdict = verify_job(str(out), Origin(varied), samples=18)
    assert (verdict.problems, verdict.drawn_again) == ([], 18)


def test_a_sidecar_says_every_input_by_its_name(
    varied: Path, tmp_path: Path, varied_client: Client
) -> None:
    run_job(job_of(tmp_path, STEERED), Origin(varied), str(tmp_path / "out"))
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        names = [name.partition(".")[2] for name in tar.getnames()[:4]]
        facts = json.load(tar.extractfile("0000000000.json") or io.BytesIO())
    assert names == ["features.npy", "json", "mask.png", "png"]
    assert list(facts) == ["index", "seed", *INPUTS, "model_digest", "sha256"]
    assert facts["strength"] in (0, 0.7, 1.3)
    assert facts["model_digest"] == varied_client.info("steered").model_digest


def test_an_input_that_is_not_the_plans_is_found(varied: Path, tmp_path: Path) -> None:
    """The shards of a job with other steps, in the folder of the first: every hash fits its own."""
    first, second = tmp_path / "first", tmp_path / "second"
    run_job(job_of(tmp_path, STEERED), Origin(varied), str(first))
    other = STEERED.replace("[2, 4]", "[5, 7]")
    run_job(job_of(tmp_path, other), Origin(varied), str(second))
    for path in second.glob("shard-*"):
        path.rename(first / path.name)
    problems = "\n".join(verify_job(str(first), None).problems)
    assert re.search(r"sample 0 has num_steps [567], not [234]", problems)


def test_a_function_is_told_every_input(
    varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_red_ones.py").write_text(
        "def judge(images, seeds, inputs):\n"
        "    assert sorted(inputs) == ['class_label', 'colour', 'num_steps', 'strength']\n"
        "    return ['red' if colour == 0 else None for colour in inputs['colour']]\n"
    )
    filters = 'reserve = 3\n[[filters]]\nkind = "python"\nfunction = "no_red_ones:judge"\n'
    text = STEERED.replace("[inputs]", filters.partition("\n")[0] + "\n[inputs]")
    job = job_of(tmp_path, text + filters.partition("\n")[2])
    totals = run_job(job, Origin(varied), str(tmp_path / "out"))
    assert dict(totals.by_class) == {"0": 8, "1": 5, "2": 5}
    assert list(totals.rejected) == ["red"]
    samples = samples_of(varied, tmp_path / "out", job)
    assert {sample.inputs["colour"] for sample in samples} == {2}


def test_the_command_makes_verifies_and_tells(
    varied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(STEERED)
    local = ["--draw-with", "local", "--repository", str(varied), "--workers", "1"]
    out = str(tmp_path / "out")
    plan = ["synthesize", str(tmp_path / "job.toml"), "--dry-run", "--json", *local]
    assert main(plan) == 0
    assert json.loads(capsys.readouterr().out)["planned_samples"] == 18
    assert main(["synthesize", str(tmp_path / "job.toml"), "--out", out, *local]) == 0
    assert "classes  0: 8, 1: 5, 2: 5" in capsys.readouterr().out
    assert main(["synthesize", "status", out]) == 0
    assert main(["synthesize", "verify", out, *local]) == 0
    assert "18 drawn again and equal" in capsys.readouterr().out


def test_a_generator_without_seeds_makes_no_job_without_a_folder(
    varied: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path, 'model = "restyled"\n[samples]\nseeds = "0-9"\n')
    words = "restyled needs photo (pictures of 256 x 256 x 3, uint8); a job gives a model pictures"
    with pytest.raises(BadRequest, match=re.escape(words)):
        run_job(job, Origin(varied), str(tmp_path / "out"))
