"""Jobs over WebDatasets of pictures: one output for one sample of the tar files."""

import gzip
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from jobs.pictures import (
    FILLED,
    NAMES,
    SMALL,
    TINTED,
    make,
    pixels_in,
    rejections,
    samples_in,
    verdict_of,
    write_picture,
)
from jobs.runs import write_job

from latentry.contract.errors import BadRequest, JobError
from latentry.synthesis.job import job_from_file

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

TINTED_TARS = TINTED.replace('folder = "photos"', 'webdataset = "tars"')
FILLED_TARS = (
    FILLED.replace('folder = "photos"', 'webdataset = "tars", extension = "photo.png"')
    .replace('folder = "masks"', 'webdataset = "tars", extension = "mask.png"')
)  # fmt: skip


def png(path: Path) -> bytes:
    """Return a picture's file as PNG, whatever the file is."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(path).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def tars(photos: Path, masks: Path) -> Path:
    """Return a folder of two tar files, as the library writes them: five photos, each a mask."""
    folder = photos.parent / "tars"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%02d.tar"), maxcount=3, verbose=0) as writer:
        for index, name in enumerate(NAMES):
            mask = (masks / name).with_suffix(".png").read_bytes()
            photo = png(photos / name)
            sample = {"photo.png": photo, "mask.png": mask, "cls": b"3", "json": b"{}"}
            writer.write({"__key__": f"{index:06d}", **sample})
    return folder


def one_tar(folder: Path, members: dict[str, bytes], **changes: Any) -> Path:
    path = folder / "tars" / "a.tar"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for attribute, value in changes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_every_sample_makes_one_as_the_same_files_in_folders_do(
    tars: Path, photos: Path, models: Path
) -> None:
    for index, name in enumerate(NAMES):  # the very pixels, in the order of the keys
        data = png(photos / name)
        (photos / name).unlink()
        (photos / f"{index:06d}.png").write_bytes(data)
    masks = photos.parent / "masks"
    for index, name in enumerate(NAMES):
        (masks / name).with_suffix(".png").rename(masks / f"{index:06d}.png")
    make(photos.parent, FILLED + SMALL, models, "of_folders")
    assert make(photos.parent, FILLED_TARS + SMALL, models).samples == 5
    np.testing.assert_array_equal(
        pixels_in(photos.parent / "out"), pixels_in(photos.parent / "of_folders")
    )
    samples = samples_in(photos.parent / "out")
    assert [sample.inputs["photo"] for sample in samples] == [
        *(f"train-00.tar/00000{index}.photo.png" for index in range(3)),
        *(f"train-01.tar/00000{index}.photo.png" for index in range(3, 5)),
    ]
    assert samples[4].inputs["mask"] == "train-01.tar/000004.mask.png"
    verdict = verdict_of(photos.parent, models)
    assert (verdict.problems, verdict.drawn_again) == ([], 5)


@pytest.mark.parametrize(
    ("given", "count"),
    [("tars", 5), ("tars/train-*.tar", 5), ("tars/train-01.tar", 2), ("tars/*0.tar", 3)],
)
def test_a_file_a_folder_and_a_pattern_are_taken(
    tars: Path, photos: Path, models: Path, given: str, count: int
) -> None:
    text = TINTED_TARS.replace('"tars"', f'"{given}", extension = "photo.png"')
    assert make(photos.parent, text, models).samples == count


def test_the_only_picture_needs_no_extension(tmp_path: Path, models: Path) -> None:
    data = write_picture(tmp_path / "x.png").read_bytes()
    members = {"b/1.json": b"{}", "b/1.PNG": data, "a.cls": b"1", "a.png": data, "._a.png": b""}
    one_tar(tmp_path, members)
    assert make(tmp_path, TINTED_TARS, models).samples == 2
    found = [sample.inputs["photo"] for sample in samples_in(tmp_path / "out")]
    assert found == ["a.tar/a.png", "a.tar/b/1.PNG"]


def test_what_is_no_picture_is_told_of_and_the_others_are_made(
    tmp_path: Path, models: Path
) -> None:
    data = write_picture(tmp_path / "x.png").read_bytes()
    one_tar(tmp_path, {"1.png": data, "2.png": data[:90], "3.png": b"", "4.png": data})
    totals = make(tmp_path, TINTED_TARS, models)
    assert (totals.samples, sum(totals.missing.values())) == (2, 2)
    reasons = [reason for _, _, reason in rejections(tmp_path / "out")]
    assert [reason.partition(": ")[0] for reason in reasons] == ["a.tar/2.png", "a.tar/3.png"]


def compressed(folder: Path) -> None:
    path = one_tar(folder, {"a.png": b"x"})
    path.write_bytes(gzip.compress(path.read_bytes()))


def truncated(folder: Path) -> None:
    path = one_tar(folder, {"a.png": b"x" * 5_000})
    path.write_bytes(path.read_bytes()[:3_000])


def endless_header(folder: Path) -> None:
    """Write a header that says that the member's name has four gigabytes, in a sparse file."""
    path = one_tar(folder, {"a.png": b"x"})
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**32
    with path.open("r+b") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33)


def two_of_a_name(folder: Path) -> None:
    path = one_tar(folder, {"a.png": b"x"})
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (compressed, "header; a compressed one has to be unpacked"),
    (truncated, "a.tar cannot be read as a tar file: unexpected end of data; a"),
    (endless_header, "a.tar cannot be read as a tar file: "),
    (two_of_a_name, "photo: a.tar/a.png is there twice"),
    (lambda f: one_tar(f, {}), "tars holds no files"),
    (lambda f: one_tar(f, {"a.cls": b"", "b.txt": b""}), "no picture (.bmp, .jpeg, .jpg, .png, ."),
    (
        lambda f: one_tar(f, {"a.x.png": b"", "a.y.jpg": b""}),
        "a sample has a.tar/a.x.png and a.tar/a.y.jpg; say which with extension, one of x.png, y.j",
    ),
    (
        lambda f: one_tar(f, {"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a.tar holds a.png, which is no plain file",
    ),
    (lambda f: one_tar(f, {"x" * 1_000 + ".png": b""}), "..., over 1000 characters"),
    (lambda f: one_tar(f, {"\udcff.png": b""}), r"holds a.tar/\xff.png, which is no UTF-8; rename"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "words"), WRONG)
def test_tar_files_that_hold_something_else_are_refused(
    tmp_path: Path, models: Path, write: Callable[[Path], object], words: str
) -> None:
    (tmp_path / "tars").mkdir()
    write(tmp_path)
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        make(tmp_path, TINTED_TARS, models)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


REFUSED = [
    (TINTED_TARS.replace('"tars"', '"none-*.tar"'), "none-*.tar is no tar file and no folder or p"),
    (TINTED_TARS.replace('"tars"', '"photos"'), "photos is no tar file and no folder or pattern"),
    (TINTED_TARS.replace('"tars"', "5"), "inputs.photo.webdataset is 5; it must be a text, in q"),
    (TINTED_TARS.replace('"tars"', '"tars", extension = ".x"'), "give it without the dot before"),
    (TINTED_TARS.replace('"tars"', '"tars", part = "x"'), "no such key; there are resize, webd"),
    (TINTED_TARS.replace('"tars"', '"tars", extension = "x"'), "there is no x in the samples tr"),
    (TINTED_TARS, "say which with extension, one of mask.png, photo.png"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_wrong_job_is_refused_in_one_line(
    tars: Path, models: Path, text: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        make(tars.parent, text, models)
    assert "\n" not in str(refusal.value)


def test_a_sample_that_was_changed_is_not_drawn_again_and_is_named(
    tmp_path: Path, models: Path
) -> None:
    data = write_picture(tmp_path / "x.png").read_bytes()
    path = one_tar(tmp_path, {"1.png": data, "2.png": data})
    make(tmp_path, TINTED_TARS, models)
    other = bytearray(path.read_bytes())
    other[other.rindex(b"IDAT") + 20] ^= 1  # in the second
    path.write_bytes(other)
    (problem,) = verdict_of(tmp_path, models).problems
    assert problem.startswith(
        "sample 1 is not drawn again: its photo a.tar/2.png was changed since: the SHA-256 is "
    )


def test_a_job_goes_on_where_it_lay_and_with_no_other_files(tmp_path: Path, models: Path) -> None:
    data = write_picture(tmp_path / "x.png").read_bytes()
    path = one_tar(tmp_path, {f"{index}.png": data for index in range(5)})
    make(tmp_path, TINTED_TARS + SMALL, models)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    for name in ("index.json", "shard-000002.tar", "shard-000002.json"):
        (tmp_path / "out" / name).unlink()
    path.parent.rename(tmp_path / "moved")  # its place is no part of the job
    make(tmp_path, TINTED_TARS.replace('"tars"', '"moved"') + SMALL, models)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "index.json").unlink()
    one_tar(tmp_path, {f"{index}.png": data for index in range(6)})
    with pytest.raises(JobError, match=r"folders\.photo\.files was 5, here it is 6"):
        make(tmp_path, TINTED_TARS + SMALL, models)


def test_a_tar_that_shrank_after_it_was_listed_ends_the_job(tmp_path: Path) -> None:
    data = write_picture(tmp_path / "x.png").read_bytes()
    path = one_tar(tmp_path, {"1.png": data})
    folder = job_from_file(write_job(tmp_path, TINTED_TARS)).folders["photo"]
    listing = folder.list_files("photo")
    assert listing.read("a.tar/1.png") == data
    path.write_bytes(path.read_bytes()[: 512 + 40])
    assert len(listing.read("a.tar/1.png")) == 40  # which is not its size: the job says so


def test_a_header_of_any_length_is_not_read(tmp_path: Path) -> None:
    endless_header(tmp_path)
    folder = job_from_file(write_job(tmp_path, TINTED_TARS)).folders["photo"]
    with pytest.raises(BadRequest, match=re.escape("a header of 4,294,967,296 bytes")):
        folder.list_files("photo")
