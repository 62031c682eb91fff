"""Which folders of pictures a job takes, and what may lie in them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    write_picture,
)
from jobs.runs import (
    write_job,
)
from PIL import Image
from specs import classes, image, make_spec, z

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest
from latentry.synthesis.job import job_from_file
from latentry.synthesis.sources.folders import Folder
from latentry.synthesis.sources.pictures import Folders
from latentry.synthesis.verify import verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


def bare(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".hidden.png").touch()


def undecodable(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).touch()


def deepen(folder: Path) -> None:
    for _ in range(5):
        folder /= "x" * 200
    folder.mkdir(parents=True)


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "b/labels.csv").touch(), "holds b/labels.csv; files of pictures end"),
    (bare, "photos holds no files that end in .bmp, .jpeg, .jpg, .png, .webp"),
    (lambda folder: (folder / "b" / "up").symlink_to(folder), "b/up leads back to a folder above"),
    (undecodable, r"photos holds \xff.png, which is no UTF-8; rename it"),
    (deepen, "..., over 1000 characters"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_a_folder_that_holds_something_else_is_refused(
    photos: Path, models: Path, change: Callable[[Path], object], words: str
) -> None:
    change(photos)
    with pytest.raises(BadRequest, match=re.escape(words)):
        make(photos.parent, TINTED, models)
    assert not (photos.parent / "out").exists()


def test_folders_whose_names_do_not_match_are_refused_with_the_first(
    masks: Path, photos: Path, models: Path
) -> None:
    (masks / "b/c.png").rename(masks / "b/cc.png")
    words = "photo has b/c.webp and mask no file of that name, but for its suffix"
    with pytest.raises(BadRequest, match=words):
        make(photos.parent, FILLED, models)
    (masks / "b/cc.png").rename(masks / "b/c.png")
    write_picture(masks / "z.png")
    with pytest.raises(BadRequest, match="mask has z.png and photo no file of that name"):
        make(photos.parent, FILLED, models)
    (masks / "z.png").rename(masks / "a.bmp")
    with pytest.raises(BadRequest, match="mask has a.bmp and a.png; beside another folder"):
        make(photos.parent, FILLED, models)


REFUSED = [
    (TINTED.replace('"photos"', '"nowhere"'), "inputs.photo.folder: "),
    (TINTED.replace('"photos"', '"photos/a.png"'), "photos/a.png is no folder; give the path of"),
    (TINTED.replace('"photos"', "5"), "inputs.photo.folder is 5; it must be a text, in quotes"),
    (TINTED.replace('"photos"', '"photos", deep = 1'), "inputs.photo.deep: there is no such key; "),
    (TINTED.replace('{ folder = "photos" }', "1"), "samples: give either seeds = "),
    (TINTED.replace("0.5", '{ folder = "photos" }'), "tinted takes no pictures as strength; it ta"),
    (TINTED.replace("strength", "gain"), "tinted takes no gain in a job; it takes strength"),
    (TINTED + '[samples]\nseeds = "0-9"', 'seeds = "0-9" are 10 and there are 5 files of photo;'),
    (TINTED + '[samples]\nper_class = { "0" = 5 }', "per_class counts samples, and so does the fo"),
    (TINTED + "[samples]\nreserve = 1", "tinted draws nothing from seeds: what is rejected comes"),
    (TINTED + "[samples]\nfirst_seed = 4294967292", "5 files have seeds to 4294967296, past 4294"),
    (FILLED.replace("mask =", "# "), 'out of folders: [inputs] mask = { folder = "pictures" }'),
    ('model = "filled"\n[samples]\nseeds = "0-4"', "filled needs photo (pictures of 16 x 12 x 3"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_wrong_job_is_refused_in_one_line(
    photos: Path, models: Path, text: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        make(photos.parent, text, models)
    assert "\n" not in str(refusal.value)
    assert not re.search("pydantic|validat|Input|instance|dict|tuple", str(refusal.value))


OTHER_SPECS = [
    (
        [image(8, 8, name="photo"), classes("a", "b", name="photo_sha256")],
        "m takes an input called photo_sha256, which is what shards call something else",
    ),
    (
        [image(8, 8, name="photo"), classes("a", "b", name="photo_path")],
        "m takes an input called photo_path, which is what shards call something else",
    ),
    ([z(4)], "m takes no pictures as photo; it takes seed, z, format"),
]


@pytest.mark.parametrize(("inputs", "words"), OTHER_SPECS)
def test_a_model_of_which_no_job_can_be_made_is_refused(
    photos: Path, inputs: list[Any], words: str
) -> None:
    out = image(8, 8, name="out")
    text = 'model = "m"\n[inputs]\nphoto = { folder = "photos" }\n'
    job = job_from_file(write_job(photos.parent, text))
    with pytest.raises(BadRequest, match=re.escape(words)):
        job.check(make_spec(inputs, [out]))


# --- what may lie in a folder ---------------------------------------------------------------------


def test_any_name_goes_into_a_shard_and_is_shown_escaped(
    photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["new\nline.png", "\x1b[31m.png", '"quoted", \\ {0} %s.png', "über 写真 🖼.png", "'.png"]
    for seed, name in enumerate(names, 5):
        write_picture(photos / name, seed)
    (photos / "\x1b[2J\n.png").write_text("none")
    (photos / ".DS_Store").touch()
    (photos / ".git").mkdir()
    (photos / ".git" / "config").touch()
    for output in FORMATS:
        job = write_job(photos.parent, f"{TINTED}[output]\n{output}\n")
        out, options = photos.parent / output.split('"')[1], ["--repository", str(models)]
        run = ["synthesize", str(job), "--out", str(out), "--draw-with", "local", "--workers", "1"]
        assert main([*run, *options]) == 1  # one is no picture
        captured = capsys.readouterr()
        assert r"1 \x1b[2J\x0a.png: photo is no picture that can be decoded" in captured.out
        assert "\x1b[2J" not in captured.out + captured.err
        assert [s.inputs["photo_path"] for s in samples_in(out)] == sorted([*names, *NAMES])
        assert not verify_job(str(out), None).problems[1:]  # but that one is missing


TINTED_SPEC = make_spec([image(16, 12, name="photo")], [image(16, 12)])


def test_label_maps_have_their_labels_and_no_others(tmp_path: Path) -> None:
    part = {"name": "map", "kind": "label_map", "height": 2, "width": 2, "labels": 3}
    spec = make_spec([part], [image(8, 8)])
    for name, levels in (("a.png", [[0, 1], [2, 0]]), ("b.png", [[0, 1], [2, 3]])):
        Image.fromarray(np.array(levels, np.uint8)).save(tmp_path / name)
    found = Folders(spec, {"map": Folder(folder=tmp_path)}).read([0, 1])
    assert found.rows[0]["map"].tolist() == [[0, 1], [2, 0]]
    assert found.faults[0] == ""
    assert found.faults[1].startswith("b.png: map in row 0 is 3; it takes label maps of 2 x 2")
    assert found.facts[0]["map_path"] == "a.png"


def test_a_machine_that_is_short_of_memory_says_nothing_of_a_file(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    folders = Folders(TINTED_SPEC, {"photo": Folder(folder=photos)})
    monkeypatch.setattr("latentry.contract.images._pixels", short)
    with pytest.raises(MemoryError):
        folders.read([0])


def test_links_are_followed_and_only_regular_files_are_opened(
    photos: Path, models: Path, by_hand: Client, tmp_path: Path
) -> None:
    elsewhere = write_picture(tmp_path / "elsewhere" / "deep" / "x.png", 9)
    (photos / "f.png").symlink_to(elsewhere)
    (photos / "g").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(photos / "h.png")
    (photos / "i.png").symlink_to("/dev/zero")
    (photos / "j.png").symlink_to("/nowhere/at/all")
    (photos / "k.png").symlink_to(photos / "k.png")
    totals = make(tmp_path, TINTED + SMALL, models)
    assert (totals.samples, dict(totals.missing)) == (7, {"": 4})
    samples = samples_in(tmp_path / "out")
    assert [s.inputs["photo_path"] for s in samples][5:] == ["f.png", "g/deep/x.png"]
    expected = by_hand.generate("tinted", photo=elsewhere, strength=0.5).images[0]
    np.testing.assert_array_equal(pixels_in(tmp_path / "out")[5], expected)
    assert [reason for _, _, reason in rejections(tmp_path / "out")] == [
        "h.png: photo cannot be read: it is no regular file",
        "i.png: photo cannot be read: it is no regular file",
        "j.png: photo cannot be read: No such file or directory",
        "k.png: photo cannot be read: Too many levels of symbolic links",
    ]


def test_a_path_out_of_a_shard_leads_to_no_file_but_those_of_the_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = write_picture(photos.parent / "secret.png")
    folders = Folders(TINTED_SPEC, {"photo": Folder(folder=photos)})
    monkeypatch.setattr(
        "latentry.synthesis.sources.folders.read_regular", None
    )  # nothing is opened
    for path in ("../secret.png", str(secret), "b/../a.png", "./a.png", "b", ""):
        rows, fault = folders.read_again({"photo_path": path, "photo_sha256": "0" * 64})
        assert (rows, fault) == ({}, f"its photo {path} is no longer in the folder")
