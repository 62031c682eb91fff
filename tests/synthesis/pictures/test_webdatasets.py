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
    assert [sample.inputs["photo_path"] for sample in samples] == [
        *(f"train-00.tar/00000{index}.photo.png" for index in range(3)),
        *(f"train-01.tar/00000{index}.photo.png" for index in range(3, 5)),
    ]
    assert samples[4].inputs["mask_path"] == "train-01.tar/000004.mask.png"
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
    found = [sample.inputs["photo_path"] for sample in samples_in(tmp_path / "out")]
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


def cut_to(size: int) -> Callable[[Path], None]:
    """Return what cuts off a tar file of four members of 1,024 bytes each, without its end mark."""

    def cut(folder: Path) -> None:
        path = one_tar(folder, {f"{index}.png": b"x" for index in range(4)})
        path.write_bytes(path.read_bytes()[:size])

    return cut


def one_bit_of_a_header(folder: Path) -> None:
    path = one_tar(folder, {f"{index}.png": b"x" for index in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 101] ^= 1
    path.write_bytes(data)


def two_in_one(folder: Path) -> None:
    path = one_tar(folder, {"a.png": b"x"})
    path.write_bytes(path.read_bytes() * 2)


def raw_header(folder: Path, kind: bytes, size: int, body: bytes = b"", times: int = 1) -> None:
    """Put a header of this kind and size, with what comes after it, before another member."""
    path = one_tar(folder, {"a.png": b"x"})
    header = tarfile.TarInfo("b.png")
    header.type, header.size = kind, size
    made = header.tobuf(tarfile.GNU_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")
    path.write_bytes(made * times + path.read_bytes())


def pax(text: bytes) -> Callable[[Path], None]:
    return lambda folder: raw_header(folder, tarfile.XHDTYPE, len(text), text)


def two_of_a_name(folder: Path) -> None:
    path = one_tar(folder, {"a.png": b"x"})
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("./a.png"))


def beside(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        one_tar(folder, {"a.png": b"x"})
        (folder / "tars" / name).symlink_to("/nowhere")

    return put


DAMAGED = "a.tar cannot be read as a tar file: "
WRONG: list[tuple[Callable[[Path], object], str]] = [
    (compressed, "cut off: there is no end mark; a compressed one has to be unpacked"),
    (cut_to(2 * 1_024 + 200), DAMAGED + "it is cut off: there is no end mark"),
    (cut_to(2 * 1_024 + 700), DAMAGED + "it is cut off, or damaged"),
    (cut_to(2 * 1_024), DAMAGED + "it is cut off: there is no end mark"),
    (one_bit_of_a_header, DAMAGED + "it is no tar file, or damaged (bad checksum)"),
    (two_in_one, DAMAGED + "something comes after its end; give each tar file by itself"),
    (lambda f: raw_header(f, tarfile.REGTYPE, -512), DAMAGED + "it is cut off, or damaged"),
    (lambda f: raw_header(f, tarfile.REGTYPE, -1), DAMAGED + "it is cut off, or damaged"),
    (lambda f: raw_header(f, tarfile.REGTYPE, 2**60), DAMAGED + "it is cut off, or damaged"),
    (lambda f: raw_header(f, b"L", 2**32), DAMAGED + "it is damaged: a header of 4,294,967,296"),
    (lambda f: raw_header(f, b"L", -1), DAMAGED + "it is damaged: a header of -1 bytes"),
    (lambda f: raw_header(f, tarfile.GNUTYPE_SPARSE, 0), "a.tar holds b.png, which is no plain f"),
    (pax(b"11 size=-1\n"), DAMAGED + "it is damaged: '-1' is no number of bytes"),
    (pax(b"12 size=1e3\n"), DAMAGED + "it is damaged: '1e3' is no number of bytes"),
    (pax(b"0 size=1\n"), DAMAGED + "it is damaged: a pax header that is none"),
    (pax(b"9" * 16_000), DAMAGED + "it is damaged: a pax header that is none"),
    (pax(b"26 GNU.sparse.realsize=-1\n"), "a.tar holds a.png, which is no plain file"),
    (two_of_a_name, "photo: a.tar/a.png is there twice"),
    (beside("b.tar.gz"), "tars holds b.tar.gz, which are no .tar files; unpack what is compressed"),
    (beside("b.tar"), "b.tar cannot be read as a tar file: No such file or directory"),
    (lambda f: one_tar(f, {}), "tars holds no files"),
    (lambda f: one_tar(f, {".x/a.png": b"x"}), "tars holds no files"),
    (lambda f: one_tar(f, {"a.cls": b"", "b.txt": b""}), "no picture (.bmp, .jpeg, .jpg, .png, ."),
    (
        lambda f: one_tar(f, {"a.x.png": b"", "a.y.jpg": b""}),
        "a sample has a.tar/a.x.png and a.tar/a.y.jpg; say which with extension, one of x.png, y.j",
    ),
    (
        lambda f: one_tar(f, {"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a.tar holds a.png, which is no plain file",
    ),
    (lambda f: one_tar(f, {"../a.png": b""}), "a.tar holds ../a.png, which is no plain file"),
    (lambda f: one_tar(f, {"x" * 1_000 + ".png": b""}), "..., over 1000 characters"),
    (lambda f: one_tar(f, {"\udcff\x1b.png": b""}), r"holds a.tar/\xff\x1b.png, which is no UTF-8"),
]


@pytest.mark.parametrize(("write", "words"), WRONG)
def test_tar_files_that_hold_something_else_are_refused(
    tmp_path: Path, models: Path, write: Callable[[Path], object], words: str
) -> None:
    (tmp_path / "tars").mkdir()
    write(tmp_path)
    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        make(tmp_path, TINTED_TARS, models)
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_long_names_are_read_however_often_they_are_told(tmp_path: Path) -> None:
    """A thousand headers before a member, of which the last one holds."""
    name = "n" * 300 + ".png"
    raw_header(tmp_path, tarfile.GNUTYPE_LONGNAME, 300 + 4, name.encode(), times=1_000)
    folder = job_from_file(write_job(tmp_path, TINTED_TARS)).folders["photo"]
    assert list(folder.list_files("photo").sizes) == [f"a.tar/{name}"]
    raw_header(tmp_path, tarfile.XHDTYPE, 15, b"15 path=\xc3\xbc.png\n", times=1_000)
    assert list(folder.list_files("photo").sizes) == ["a.tar/ü.png"]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_what_python_writes_is_read(tmp_path: Path, tar_format: int) -> None:
    names = ["a.png", "d/" * 60 + "long.png", "写真" * 40 + ".png"]
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w", format=tar_format) as tar:
        for size, name in enumerate(names[: 2 if tar_format == tarfile.USTAR_FORMAT else 3]):
            member = tarfile.TarInfo(name)
            member.size = size * 700
            tar.addfile(member, io.BytesIO(bytes([size]) * member.size))
    folder = job_from_file(write_job(tmp_path, TINTED_TARS)).folders["photo"]
    listing = folder.list_files("photo")
    assert listing.sizes == {
        f"a.tar/{name}": names.index(name) * 700
        for name in names
        if f"a.tar/{name}" in listing.sizes
    }
    assert len(listing.sizes) == (2 if tar_format == tarfile.USTAR_FORMAT else 3)
    assert listing.read("a.tar/" + names[1]) == b"\1" * 700


def test_tar_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        one_tar(tmp_path / part, {f"{part}.png": b"x"})
    text = TINTED_TARS.replace('"tars"', '"*/tars/a.tar"')
    folder = job_from_file(write_job(tmp_path, text)).folders["photo"]
    with pytest.raises(BadRequest, match=r"x/tars/a\.tar and \S*y/tars/a\.tar have one name"):
        folder.list_files("photo")


def test_a_pattern_is_one_beside_the_job_whatever_its_folder_is_called(tmp_path: Path) -> None:
    odd = tmp_path / "jobs[1]*"
    odd.mkdir()
    one_tar(odd, {"a.png": b"x"})
    text = TINTED_TARS.replace('"tars"', '"tars/*.tar"')
    folder = job_from_file(write_job(odd, text)).folders["photo"]
    assert list(folder.list_files("photo").sizes) == ["a.tar/a.png"]


REFUSED = [
    (TINTED_TARS.replace('"tars"', '"none-*.tar"'), "none-*.tar is no tar file and no folder or p"),
    (TINTED_TARS.replace('"tars"', '"photos"'), "photos holds a.png, b, b.JPG, and 1 more, which"),
    (TINTED_TARS.replace('"tars"', "5"), "inputs.photo.webdataset is 5; it must be a text, in q"),
    (TINTED_TARS.replace('"tars"', '"tars", extension = ".x"'), "give it without the dot before"),
    (TINTED_TARS.replace('"tars"', '"tars", part = "x"'), "no such key; there are resize, webd"),
    (TINTED_TARS.replace('"tars"', '"tars", extension = "x"'), "there is no x in the samples tr"),
    (TINTED_TARS.replace('"tars"', '"tars", resize = 1'), "resize is 1; it must be true or false"),
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
