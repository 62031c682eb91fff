"""Jobs over folders of pictures: one output for one file, or a reason."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs.pictures import (
    FILLED,
    FORMATS,
    NAMES,
    SMALL,
    TINTED,
    make,
    pixels_in,
    rejections,
    samples_in,
    sha256_of,
    verdict_of,
    write_picture,
)
from jobs.runs import (
    JobRun,
    local_run,
    tree,
    write_job,
)
from PIL import Image
from running_server import run_server

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import JobError
from latentry.contract.files import read_regular

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


@pytest.mark.parametrize("output", FORMATS)
def test_every_file_makes_one_sample_in_the_order_of_the_paths(
    photos: Path, models: Path, by_hand: Client, output: str
) -> None:
    make(photos.parent, f"{TINTED}{SMALL}{output}\n", models)
    samples = samples_in(photos.parent / "out")
    assert [sample.inputs["photo_path"] for sample in samples] == list(NAMES)
    assert (
        [sample.index for sample in samples] == [sample.seed for sample in samples] == [*range(5)]
    )
    assert {sample.inputs["strength"] for sample in samples} == {0.5}
    hashes = [sha256_of(photos / name) for name in NAMES]
    assert [sample.inputs["photo_sha256"] for sample in samples] == hashes
    paths = [photos / name for name in NAMES]
    expected = by_hand.generate("tinted", photo=paths, strength=0.5).images
    np.testing.assert_array_equal(pixels_in(photos.parent / "out"), expected)
    verdict = verdict_of(photos.parent, models)
    assert (verdict.problems, verdict.drawn_again) == ([], 5)


@pytest.mark.parametrize(
    ("samples", "first"), [("", 0), ('seeds = "7-11"\n', 7), ("first_seed = 3\n", 3)]
)
def test_a_model_that_draws_has_a_seed_for_each_file_and_pairs_of_folders(
    masks: Path, photos: Path, models: Path, by_hand: Client, samples: str, first: int
) -> None:
    make(photos.parent, f"{FILLED}[samples]\n{samples}{SMALL}", models)
    found = samples_in(photos.parent / "out")
    assert [sample.seed for sample in found] == list(range(first, first + 5))
    pairs = [(sample.inputs["photo_path"], sample.inputs["mask_path"]) for sample in found]
    assert [Path(photo).with_suffix(".png") for photo, _ in pairs] == [Path(m) for _, m in pairs]
    assert [photo for photo, _ in pairs] == list(NAMES)
    expected = by_hand.generate(
        "filled",
        seeds=range(first, first + 5),
        photo=[photos / photo for photo, _ in pairs],
        mask=[masks / mask for _, mask in pairs],
    ).images
    np.testing.assert_array_equal(pixels_in(photos.parent / "out"), expected)
    assert verdict_of(photos.parent, models).drawn_again == 5


def test_the_columns_are_what_others_read(photos: Path, models: Path) -> None:
    import pyarrow.parquet

    for output in FORMATS:
        name = output.split('"')[1]
        make(photos.parent, f"{TINTED}[output]\n{output}\n", models, name)
    table = pyarrow.parquet.read_table(photos.parent / "parquet" / "shard-000000.parquet")
    assert table["photo_path"].to_pylist() == list(NAMES)
    with np.load(photos.parent / "npz" / "shard-000000.npz", allow_pickle=False) as arrays:
        assert arrays["photo_path"].tolist() == list(NAMES)
        assert arrays["photo_sha256"].tolist() == table["photo_sha256"].to_pylist()


@pytest.mark.server
def test_a_server_and_processes_here_draw_the_same(
    masks: Path, photos: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with run_server(models, "--instances", "1") as server:
        for text in (TINTED + SMALL, FILLED + SMALL):
            job, name = write_job(tmp_path, text), text[9:15]
            expected = local_run(job, tmp_path / name, models, workers=2).finish()
            options = ("--draw-with", "server", "--url", server.url, "--workers", "2")
            assert JobRun(job, tmp_path / f"{name}-server", options).finish() == expected


# --- bad files, and samples that are not taken ----------------------------------------------------


def spoil(photos: Path) -> None:
    """Put bad files among the good ones."""
    write_picture(photos / "a0.png", 1, size=(12, 16))
    (photos / "b" / "c0.png").write_bytes(b"no picture")
    (photos / "b" / "d0.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "f.jpg").touch()
    os.truncate(photos / "f.jpg", 2**28 + 1)
    Image.new("I;16", (12, 16)).save(photos / "g.png")


BAD = [
    (1, "a0.png: photo is a picture of 12 x 16; it takes pictures of 16 x 12 x 3, uint8; scale"),
    (4, "b/c0.png: photo is no picture that can be decoded"),
    (6, "b/d0.png: photo is no picture that can be decoded"),
    (8, "f.jpg: photo cannot be read: it is larger than 268,435,456 bytes"),
    (9, "g.png: photo has mode I;16; 8 bits a channel are taken"),
]


@pytest.mark.parametrize("text", [TINTED, FILLED])
def test_a_bad_file_is_named_and_missing_and_the_others_are_made(
    masks: Path, photos: Path, models: Path, text: str
) -> None:
    spoil(photos)
    for name in ("a0", "b/c0", "b/d0", "f", "g"):
        shutil.copy(masks / "a.png", masks / f"{name}.png")
    totals = make(photos.parent, text + SMALL, models)
    assert (totals.samples, dict(totals.missing)) == (5, {"": 5})
    out = photos.parent / "out"
    assert [sample.inputs["photo_path"] for sample in samples_in(out)] == list(NAMES)
    # Each once, with its own seed: no seed of the reserve makes a picture of it.
    found = rejections(out)
    assert [(index, seed) for index, seed, _ in found] == [(index, index) for index, _ in BAD]
    for (_, _, reason), (_, words) in zip(found, BAD, strict=True):
        assert reason.startswith(words)
    assert not (out / "index.json").exists()
    make(photos.parent, text + SMALL, models, "again")
    assert tree(photos.parent / "again") == tree(out)
    assert verdict_of(photos.parent, models).problems == [
        f"{out} has no index.json; 5 samples are missing"
    ]


def test_the_command_ends_with_1_and_the_bad_files(
    photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(photos)
    job, out = write_job(photos.parent, TINTED), photos.parent / "out"
    options = ["--draw-with", "local", "--repository", str(models), "--workers", "1"]
    assert main(["synthesize", str(job), "--out", str(out), *options]) == 1
    captured = capsys.readouterr()
    assert "1 b/c0.png: photo is no picture that can be decoded" in captured.out
    assert (
        "error: incomplete: 5 missing, the shards' reserves are used up, or pictures are bad"
        in (captured.err)
    )


def filter_of(folder: Path, verdict: str) -> str:
    """Write a filter and return what names it; ``verdict`` is a reason or None for a seed."""
    name = f"judge_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    (folder / f"{name}.py").write_text(
        f"def judge(images, seeds, inputs):\n    return [{verdict} for seed in seeds.tolist()]\n"
    )
    return f'[[filters]]\nkind = "python"\nfunction = "{name}:judge"\n'


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", sys.path.copy())


def test_a_fault_of_the_machine_ends_the_job_and_says_nothing_of_the_file(
    photos: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, *, most: int) -> bytes:
        if path.name == "c.webp":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_regular(path, most=most)

    with monkeypatch.context() as patch:
        patch.setattr("latentry.synthesis.sources.folders.read_regular", failing)
        with pytest.raises(
            JobError, match="c.webp cannot be read: Input/output error; it could be"
        ):
            make(photos.parent, TINTED + SMALL, models)
    assert make(photos.parent, TINTED + SMALL, models).samples == 5
    assert rejections(photos.parent / "out") == []


@pytest.mark.usefixtures("own_path")
def test_a_rejected_sample_is_drawn_again_of_the_same_picture_with_a_seed_of_the_reserve(
    masks: Path, photos: Path, models: Path, by_hand: Client
) -> None:
    text = f"{FILLED}[samples]\nreserve = 1\n" + filter_of(
        photos.parent, '"no luck" if seed in (1, 3, 5) else None'
    )
    totals = make(photos.parent, text, models)
    assert (totals.samples, totals.rejected["no luck"]) == (5, 3)
    found = samples_in(photos.parent / "out")
    assert [sample.inputs["photo_path"] for sample in found] == list(NAMES)
    assert [sample.seed for sample in found] == [0, 7, 2, 6, 4]
    one = by_hand.generate("filled", seeds=7, photo=photos / NAMES[1], mask=masks / "b.png")
    np.testing.assert_array_equal(pixels_in(photos.parent / "out")[1], one.images[0])
    assert verdict_of(photos.parent, models).drawn_again == 5


@pytest.mark.usefixtures("own_path")
def test_a_model_without_seeds_has_no_second_try_unless_something_is_drawn(
    photos: Path, models: Path
) -> None:
    filters = filter_of(photos.parent, '"no luck" if seed == 1 else None')
    totals = make(photos.parent, TINTED + filters, models)
    assert (totals.samples, dict(totals.missing)) == (4, {"": 1})
    assert rejections(photos.parent / "out") == [(1, 1, "no luck")]
    drawn = TINTED.replace("0.5", "{ uniform = [0, 1] }") + "[samples]\nreserve = 1\n" + filters
    totals = make(photos.parent, drawn, models, "drawn")
    assert totals.samples == 5
    found = samples_in(photos.parent / "drawn")
    assert [sample.seed for sample in found] == [0, 5, 2, 3, 4]
    assert len({sample.inputs["strength"] for sample in found}) == 5


def test_what_comes_out_as_nan_is_found_among_pictures_without_seeds(
    photos: Path, models: Path
) -> None:
    for name in ("b/c.png", "d.png", "f.png"):
        white = np.full((16, 12, 3), 255, np.uint8)
        white[5:] = 7
        Image.fromarray(white).save(photos / name)
    totals = make(photos.parent, TINTED, models)
    assert (totals.samples, dict(totals.missing)) == (5, {"": 3})
    assert dict(totals.rejected) == {"NaN or infinity": 3}
    assert [s.inputs["photo_path"] for s in samples_in(photos.parent / "out")] == list(NAMES)


def test_pictures_of_other_sizes_are_scaled_where_the_job_says_so(
    tmp_path: Path, models: Path, by_hand: Client
) -> None:
    paths = [
        write_picture(tmp_path / "photos" / f"{size[0]}.png", size=size)
        for size in ((16, 12), (64, 90), (7, 5))
    ]
    totals = make(tmp_path, TINTED, models, "refused")
    assert (totals.samples, sum(totals.missing.values())) == (1, 2)
    text = TINTED.replace('"photos"', '"photos", resize = true')
    assert make(tmp_path, text, models).samples == 3
    ordered = sorted(paths, key=lambda path: path.name)
    expected = by_hand.generate("tinted", photo=ordered, strength=0.5, resize=True).images
    np.testing.assert_array_equal(pixels_in(tmp_path / "out"), expected)
    assert [s.inputs["photo_sha256"] for s in samples_in(tmp_path / "out")] == [
        sha256_of(path) for path in ordered
    ]
    verdict = verdict_of(tmp_path, models)
    assert (verdict.problems, verdict.drawn_again) == ([], 3)
