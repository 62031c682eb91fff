"""What makes a sample: pictures, masks, label maps, vectors and tensors, and vectors that go in."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.runs import run_here, write_job
from jobs.samples import pixel_sha256
from jobs.specs import inputs_of
from numpy.typing import NDArray
from PIL import Image
from specs import image, make_spec, z

import latentry.clients.client
import latentry.synthesis.shard_making
from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest
from latentry.contract.seeds import draw_uniform
from latentry.serving.runtime.local import LocalTransport
from latentry.synthesis.job import Job, OutputPart, job_from_file
from latentry.synthesis.records import CONTACT_SHEET_FILE, made_shards, read_job
from latentry.synthesis.run import samples_of_shard
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.sinks.output_data import check_outputs, sample_outputs, sample_sha256
from latentry.synthesis.sources.folders import Folder
from latentry.synthesis.sources.pictures import Folders
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import JobVerdict, verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

SEEDS = '[samples]\nseeds = "3-12"\n'
SMALL = "[output]\nshard_size = 4\n"
FORMATS = ["webdataset", "parquet", "npz"]
FACES = f'model = "faces"\n{SEEDS}[inputs]\nattributes = {{ uniform = [0, 1] }}\n'
JOBS = {
    "steered": f'model = "steered"\n{SEEDS}[inputs]\nclass_label = "dog"\ncolour = 1\n',
    "embedded": f'model = "embedded"\n{SEEDS}',
    "features": f'model = "features"\n{SEEDS}',
    "scene": f'model = "scene"\n{SEEDS}',
    "faces": FACES,
    "segments": 'model = "segments"\n[inputs]\nlayout = { folder = "layouts" }\n',
}


@pytest.fixture(scope="module")
def kinds(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a generator of each kind of output, and of vectors in."""
    from published import zoo
    from published.generators import Enlarger
    from varied_generators import export, export_embedded, export_steered

    folder = tmp_path_factory.mktemp("kinds") / "model_repository"
    export_steered(folder)
    export_embedded(folder)
    export(folder, "enlarger", Enlarger.spec, Enlarger())
    for make in (zoo.features, zoo.scene, zoo.faces, zoo.segments):
        member = make()
        export(folder, make.__name__, member.spec, member.module)
    return folder


@pytest.fixture(scope="module")
def by_hand(kinds: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(kinds, threads=1)) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with ten label maps in it."""
    from published import zoo

    random = np.random.RandomState(1)
    (tmp_path / "layouts").mkdir()
    for number in range(10):
        labels = random.randint(0, 5, (zoo.HEIGHT, zoo.WIDTH)).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "layouts" / f"{number}.png")
    return tmp_path


def expected_of(
    name: str, folder: Path, by_hand: Client, samples: list[Any]
) -> dict[str, NDArray[Any]]:
    """Return what a client draws for what the samples say of themselves, main picture first."""
    spec = by_hand.info(name).spec
    if name == "segments":
        layouts = [folder / "layouts" / sample.inputs["layout_path"] for sample in samples]
        result = by_hand.generate(name, layout=layouts)
    else:
        given = {item.name for item in spec.inputs} & samples[0].inputs.keys()
        inputs = {key: np.stack([sample.inputs[key] for sample in samples]) for key in given}
        result = by_hand.generate(name, seeds=[sample.seed for sample in samples], **inputs)
    return {item.name: result[item.name] for item in spec.outputs}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_sample_holds_every_output_of_the_model(
    kinds: Path, by_hand: Client, folder: Path, name: str, form: str
) -> None:
    path = write_job(folder, JOBS[name] + SMALL + f'format = "{form}"\n')
    out = folder / "out"
    totals = run_here(path, out, kinds)
    assert (totals.samples, totals.shards) == (10, 3)
    storage = LocalFolder(out)
    record = read_job(storage)
    shards = made_shards(storage, record)
    samples = [item for made in shards for item in samples_of_shard(storage, record, made)]
    expected = expected_of(name, folder, by_hand, samples)
    outputs = record.job.output.of_sample(record.spec)
    assert {output.item.name for output in outputs} == expected.keys()
    for place, sample in enumerate(samples):
        rows = [expected[output.item.name][place] for output in outputs]
        for output, row in zip(outputs, rows, strict=True):
            np.testing.assert_array_equal(output.row(sample.data[output.name]), row)
        assert sample.sha256 == sample_sha256(outputs, rows)
    assert (out / CONTACT_SHEET_FILE).exists() == (record.spec.picture is not None)
    assert verdict_of(out, kinds, path).problems == []
    assert verdict_of(out, kinds, path).drawn_again == 10


def verdict_of(out: Path, kinds: Path, job: Path) -> JobVerdict:
    return verify_job(str(out), Origin(kinds), folders=job_from_file(job).folders)


def test_people_find_files_columns_and_arrays_by_the_outputs_names(
    kinds: Path, by_hand: Client, folder: Path
) -> None:
    import pyarrow.parquet

    steered = by_hand.generate("steered", seeds=3, class_label="dog", colour=1)
    job = JOBS["steered"] + "[output]\n"
    run_here(write_job(folder, job), folder / "tar", kinds)
    with tarfile.open(folder / "tar" / "shard-000000.tar") as tar:
        names = tar.getnames()[:4]
        assert [name.partition(".")[2] for name in names] == [
            *("features.npy", "json", "mask.png", "png"),
        ]
        files = {name.partition(".")[2]: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        np.load(io.BytesIO(files["features.npy"])), steered["features"][0]
    )
    mask = np.asarray(Image.open(io.BytesIO(files["mask.png"])))
    np.testing.assert_array_equal(mask, steered["mask"][0])

    run_here(write_job(folder, job + 'format = "parquet"'), folder / "columns", kinds)
    table = pyarrow.parquet.read_table(folder / "columns" / "shard-000000.parquet")
    assert table["features"][0].as_py() == steered["features"][0].tolist()
    assert table.schema.metadata[b"shape"] == b"[16, 12, 4]"
    assert table.schema.metadata[b"mask.shape"] == b"[16, 12]"

    run_here(write_job(folder, job + 'format = "npz"'), folder / "arrays", kinds)
    with np.load(folder / "arrays" / "shard-000000.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"][0], steered.images[0])
        np.testing.assert_array_equal(arrays["mask"][0], steered["mask"][0])
        np.testing.assert_array_equal(arrays["features"][0], steered["features"][0])


def test_vectors_are_said_of_every_sample(kinds: Path, folder: Path) -> None:
    run_here(write_job(folder, FACES), folder / "tar", kinds)
    with tarfile.open(folder / "tar" / "shard-000000.tar") as tar:
        said = [json.load(tar.extractfile(name)) for name in tar.getnames() if "json" in name]  # type: ignore[arg-type]
    assert all(len(facts["attributes"]) == 3 for facts in said)
    assert len({number for facts in said for number in facts["attributes"]}) == 30
    assert [facts["guidance_scale"] for facts in said] == [4.0] * 10


def test_a_vector_that_is_not_the_jobs_is_found(kinds: Path, folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    run_here(write_job(folder, FACES), first, kinds)
    path = write_job(folder, FACES.replace("[0, 1]", "[0, 0.5]"))
    run_here(path, second, kinds)
    for shard in second.glob("shard-*"):
        shard.rename(first / shard.name)
    problems = "\n".join(verify_job(str(first), None).problems)
    assert re.search(
        r"sample 0 has attributes whose number 0 is 0\.[0-9]+, not 0\.[0-9]+", problems
    )


def test_some_outputs_are_chosen(kinds: Path, by_hand: Client, folder: Path) -> None:
    text = f'{JOBS["steered"]}{SMALL}outputs = ["mask", "image"]\n'
    path = write_job(folder, text)
    run_here(path, folder / "out", kinds)
    with tarfile.open(folder / "out" / "shard-000000.tar") as tar:
        suffixes = {name.partition(".")[2] for name in tar.getnames()}
    assert suffixes == {"json", "mask.png", "png"}
    assert verdict_of(folder / "out", kinds, path).problems == []

    path = write_job(folder, f'{JOBS["steered"]}[output]\noutputs = ["features"]\n')
    run_here(path, folder / "features", kinds)
    verdict = verdict_of(folder / "features", kinds, path)
    assert (verdict.problems, verdict.drawn_again) == ([], 10)
    assert not (folder / "features" / CONTACT_SHEET_FILE).exists()


def test_a_picture_alone_has_the_hash_of_its_pixels(
    kinds: Path, by_hand: Client, folder: Path
) -> None:
    run_here(write_job(folder, FACES), folder / "out", kinds)
    storage = LocalFolder(folder / "out")
    record = read_job(storage)
    (made,) = made_shards(storage, record)
    samples = list(samples_of_shard(storage, record, made))
    images = expected_of("faces", folder, by_hand, samples)["image"]
    assert list(made.sample_sha256) == [pixel_sha256(image) for image in images]


def test_duplicates_are_found_without_a_picture(kinds: Path, folder: Path) -> None:
    """Equal label maps going in make equal ones."""
    (folder / "layouts" / "copy.png").write_bytes((folder / "layouts" / "0.png").read_bytes())
    path = write_job(folder, JOBS["segments"] + '[[filters]]\nkind = "duplicates"\n')
    totals = run_here(path, folder / "out", kinds)
    assert (totals.samples, dict(totals.rejected)) == (10, {"duplicate": 1})


ENLARGED = 'model = "enlarger"\n[inputs]\nimage = { folder = "photos" }\n'
SIZES = [(8, 9), (16, 9), (8, 9), (12, 40), (8, 96), (10, 9)]  # the last is no multiple of 4


@pytest.fixture
def photos(folder: Path) -> Path:
    """Return a folder of pictures of many sizes, one of which the enlarger does not take."""
    random = np.random.RandomState(1)
    (folder / "photos").mkdir()
    for number, (height, width) in enumerate(SIZES):
        pixels = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    return folder / "photos"


@pytest.mark.parametrize("form", ['format = "webdataset"', 'format = "parquet"', 'image = "webp"'])
def test_pictures_of_many_sizes_are_made_of_pictures_of_many_sizes(
    kinds: Path, by_hand: Client, photos: Path, form: str
) -> None:
    path = write_job(photos.parent, f"{ENLARGED}[output]\nshard_size = 4\n{form}\n")
    out = photos.parent / "out"
    totals = run_here(path, out, kinds)
    ((reason, count),) = totals.rejected.items()
    assert (totals.samples, count) == (5, 1)
    assert reason.startswith("5.png: image is a picture of 10 x 9; it takes")
    storage = LocalFolder(out)
    record = read_job(storage)
    (output,) = record.job.output.of_sample(record.spec)
    for made in made_shards(storage, record):
        for sample in samples_of_shard(storage, record, made):
            photo = photos / sample.inputs["image_path"]
            (expected,) = by_hand.generate("enlarger", image=photo)["enlarged"]
            np.testing.assert_array_equal(output.row(sample.data["image"]), expected)
            height, width = SIZES[sample.index]
            assert expected.shape == (2 * height, 2 * width, 3)
    assert verdict_of(out, kinds, path).problems == [
        f"{out} has no index.json; 1 samples are missing"
    ]


def test_with_resize_all_pictures_of_many_sizes_are_made(kinds: Path, photos: Path) -> None:
    text = ENLARGED.replace('"photos"', '"photos", resize = true')
    path = write_job(photos.parent, text)
    out = photos.parent / "out"
    assert run_here(path, out, kinds).samples == len(SIZES)
    verdict = verdict_of(out, kinds, path)
    assert (verdict.problems, verdict.drawn_again) == ([], len(SIZES))
    with Image.open(out / CONTACT_SHEET_FILE) as sheet:
        assert sheet.size == (3 * 2 * 96, 2 * 2 * 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[output]\nformat = "npz"',
            "enlarger gives enlarged of many sizes (any x any x 3), w",
        ),
        ('[output]\nimage = "raw"', "enlarger gives enlarged of many sizes (any x any x 3), w"),
        (
            '[[filters]]\nkind = "constant"',
            "the filter constant looks at pictures of one size, and enlarger gives any x any x 3",
        ),
    ],
)
def test_what_needs_one_size_is_refused(kinds: Path, photos: Path, text: str, words: str) -> None:
    path = write_job(photos.parent, ENLARGED + text + "\n")
    with pytest.raises(BadRequest, match=re.escape(words)):
        run_here(path, photos.parent / "out", kinds)


def test_pictures_that_do_not_go_together_are_bad(tmp_path: Path) -> None:
    """A picture and a mask of one range share their size."""
    side = {"minimum": 4, "maximum": 9}
    spec = make_spec(
        [
            {"name": "photo", "kind": "picture", "height": side, "width": 4, "channels": 1},
            {"name": "mask", "kind": "mask", "height": side, "width": 4},
        ],
        [image(4, 4)],
    )
    for name, height in (("photo", 6), ("mask", 7)):
        (tmp_path / name).mkdir()
        Image.new("L", (4, height)).save(tmp_path / name / "a.png")
    folders = {name: Folder(folder=tmp_path / name) for name in ("photo", "mask")}
    (fault,) = Folders(spec, folders).read([0]).faults
    assert fault == "a.png: mask is 7 pixels high and photo 6; they have one size"


def test_what_looks_at_pictures_needs_one(kinds: Path, folder: Path) -> None:
    path = write_job(folder, JOBS["embedded"] + '[[filters]]\nkind = "constant"\n')
    with pytest.raises(BadRequest, match="filter constant looks at pictures, and samples of this"):
        run_here(path, folder / "out", kinds)


def test_the_command_makes_vectors(
    kinds: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_job(folder, JOBS["embedded"] + SMALL)
    local = ["--draw-with", "local", "--repository", str(kinds), "--workers", "1"]
    assert main(["synthesize", str(path), "--dry-run", *local]) == 0
    assert main(["synthesize", str(path), "--out", str(folder / "out"), *local]) == 0
    assert main(["synthesize", "verify", str(folder / "out"), *local]) == 0
    assert "10 drawn again and equal" in capsys.readouterr().out


Z, IMAGE = z(8), image(8, 8, 1)
VECTOR = {"name": "attributes", "kind": "vector", "size": 40}
ONE = {"name": "attributes", "kind": "vector", "size": 1}
FEATURES = {"name": "features", "kind": "vector", "size": 16}
REFUSED = [
    (
        [Z, VECTOR],
        [IMAGE],
        "[inputs]\nattributes = [1, 2]",
        "attributes has rows of shape [2]; it takes rows of shape [40]",
    ),
    (
        [Z, ONE],
        [IMAGE],
        "[inputs]\nattributes = 0.5",
        "attributes is 0.5 in the job; it takes 1 finite numbers a sample, as a list",
    ),
    (
        [Z, {**ONE, "maximum": 1.0}],
        [IMAGE],
        "[inputs]\nattributes = { uniform = [0, 2] }",
        "attributes in row 0 is 2.0; it takes 1 finite numbers a sample from -1e+30 to 1",
    ),
    (
        [Z, {**ONE, "maximum": 1.0}],
        [IMAGE],
        "[inputs]\nattributes = { choice = [[0.5], [1e39]] }",
        "attributes in row 0 is inf; it takes 1 finite numbers a sample",
    ),
    (
        [Z, {"name": "steps", "kind": "integer", "minimum": 0, "maximum": 9}],
        [IMAGE],
        "[inputs]\nsteps = [1, 2]",
        "steps is [1, 2] in the job; it takes an integer",
    ),
    (
        [Z],
        [{**FEATURES, "name": "sha256"}],
        "",
        "m gives an output called sha256, which is what shards call something else of a sample",
    ),
    (
        [Z, {**VECTOR, "name": "taste"}],
        [IMAGE, {**FEATURES, "name": "taste"}],
        "[inputs]\ntaste = { uniform = [0, 1] }",
        "m gives an output called taste, which is what shards call something else of a sample",
    ),
    ([Z], [IMAGE], '[output]\noutputs = ["mask"]', "m gives no mask; it gives image"),
    (
        [Z],
        [{**IMAGE, "name": "photo"}, IMAGE],
        "",
        "m gives an output called image, which is what shards call something else of a sample",
    ),
    (
        [Z],
        [{**FEATURES, "name": "image"}],
        "",
        "m gives an output called image, which is what shards call something else of a sample",
    ),
    (
        [Z],
        [{**IMAGE, "name": "photo"}, {**IMAGE, "name": "image"}],
        '[output]\noutputs = ["image"]',
        "m gives an output called image, which is what shards call something else of a sample",
    ),
    (
        [Z],
        [image(17_000, 8, 3)],
        '[output]\nimage = "webp"',
        "m gives image of up to 17000 x 8 x 3; WebP files have sides of up to 16,383 pixels",
    ),
    (
        [Z],
        [IMAGE, FEATURES],
        '[output]\noutputs = ["features"]\n[[filters]]\nkind = "constant"',
        "the filter constant looks at pictures, and samples of this job are features",
    ),
]


@pytest.mark.parametrize(("inputs", "outputs", "text", "words"), REFUSED)
def test_what_makes_no_sample_is_refused(
    tmp_path: Path, inputs: list[Any], outputs: list[Any], text: str, words: str
) -> None:
    path = write_job(tmp_path, f'model = "m"\n{SEEDS}{text}\n')
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        job_from_file(path).check(make_spec(inputs, outputs))
    assert "\n" not in str(refusal.value)


def test_vectors_are_given_chosen_or_drawn_number_by_number() -> None:
    item = {"name": "mood", "kind": "vector", "size": 2, "entries": ["joy", "rage"]}
    spec = make_spec([Z, item], [IMAGE])
    seeds = np.arange(100)

    def moods(mood: object) -> NDArray[np.float32]:
        job = {"model": "m", "samples": {"seeds": "0-9"}, "inputs": {"mood": mood}}
        return inputs_of(Job.model_validate(job), seeds, spec=spec)["mood"]

    for text in ([0.1, 1], "0.1,1", "rage=1,joy=0.1"):
        fixed = moods(text)
        np.testing.assert_array_equal(fixed, np.array([[0.1, 1]] * 100, np.float32))
        assert fixed.dtype == np.float32
    chosen = moods({"choice": [[0, 1], "joy=1"]})
    halves = draw_uniform(seeds, "job:mood") < 0.5
    np.testing.assert_array_equal(chosen, np.where(halves[:, None], [0, 1], [1, 0]))
    drawn = moods({"uniform": [-1, 3]})
    expected = 4 * draw_uniform(seeds, "job:mood", (2,)) - 1
    np.testing.assert_array_equal(drawn, expected.astype(np.float32))
    assert np.unique(drawn).size == 200


def test_nothing_but_features_is_left_of_a_picture_alone() -> None:
    spec = make_spec([Z], [IMAGE, FEATURES])
    job = Job.model_construct(
        model="m", output=OutputPart.model_construct(image="none", format="parquet")
    )
    with pytest.raises(BadRequest, match=r"leaves only features of a sample, and m gives image, f"):
        check_outputs(spec, job.output.outputs, job.output.image, job.model)
    check_outputs(spec, ["image"], "none", "m")


def test_the_hash_of_a_picture_of_free_size_holds_its_size() -> None:
    side = {"minimum": 4, "maximum": 64}
    fixed = sample_outputs(make_spec([Z], [image(8, 8, 1)]), "png", None)
    free = sample_outputs(
        make_spec([Z], [image(8, 8, 1) | {"height": side, "width": side}]), "png", None
    )
    row = np.arange(64, dtype=np.uint8)
    wide, high = row.reshape(4, 16, 1), row.reshape(16, 4, 1)
    assert sample_sha256(free, [wide]) != sample_sha256(free, [high])
    text = b"[4,16,1]" + row.tobytes()
    assert sample_sha256(free, [wide]) == hashlib.sha256(text).hexdigest()
    assert sample_sha256(fixed, [wide]) == hashlib.sha256(row.tobytes()).hexdigest()


def test_verify_and_a_dry_run_ask_for_no_more_than_fits(
    kinds: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all outputs, those that are not written, too."""
    monkeypatch.setattr(latentry.clients.client, "MAX_RESULT_BYTES", 4_000)
    monkeypatch.setattr(latentry.synthesis.shard_making, "_BYTES_TOGETHER", 4_000)
    path = write_job(folder, f'{JOBS["steered"]}[output]\noutputs = ["features"]\n')
    local = ["--draw-with", "local", "--repository", str(kinds), "--workers", "1"]
    assert main(["synthesize", str(path), "--dry-run", *local]) == 0
    run_here(path, folder / "out", kinds)
    assert verdict_of(folder / "out", kinds, path).drawn_again == 10
    capsys.readouterr()


def test_a_shard_without_any_sample_is_missing_them(kinds: Path, folder: Path) -> None:
    """An index over shards that say that all is missing makes no whole job."""
    for file in (folder / "layouts").iterdir():
        file.write_bytes(b"no picture")
    path = write_job(folder, JOBS["segments"])
    out = folder / "out"
    assert run_here(path, out, kinds).samples == 0
    (out / "index.json").write_text("{}")
    problems = verify_job(str(out), None).problems
    assert f"10 samples are missing, and {out} has an index.json" in problems
