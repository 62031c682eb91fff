import io
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.samples import (
    BLACK,
    DIGEST,
    FACTS,
    OUTPUTS,
    RGB,
    SMALL,
    pixel_sha256,
    pixels_of,
    png_of,
    read,
    refuse,
    written,
)
from PIL import Image

from latentry.synthesis.job import OutputPart


@pytest.mark.parametrize("image_format", ["png", "webp", "raw"])
def test_tar_entries_are_sorted_and_of_nobody(image_format: str) -> None:
    output = OutputPart.model_validate({"image": image_format})
    with tarfile.open(fileobj=io.BytesIO(written(output, RGB)), mode="r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    suffix = {"raw": "npy"}.get(image_format, image_format)
    assert names[:2] == sorted(["0000001000.json", f"0000001000.{suffix}"])
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    assert all(member.isreg() and not member.pax_headers for member in members)


def test_gnu_tar_and_pillow_read_a_shard(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(written(OUTPUTS[0], RGB))
    listing = subprocess.check_output(
        ["tar", "--utc", "--full-time", "-tvf", "shard.tar"], cwd=tmp_path, text=True
    )
    assert len(listing.splitlines()) == 14
    assert all(re.match(r"-rw-r--r-- 0/0 .* 1970-01-01 ", line) for line in listing.splitlines())
    subprocess.check_call(["tar", "-xf", "shard.tar", "--no-same-owner"], cwd=tmp_path)
    for place, pixels in enumerate(pixels_of(RGB, 7)):
        with Image.open(tmp_path / f"{1000 + place:010d}.png") as picture:
            picture.verify()
        with Image.open(tmp_path / f"{1000 + place:010d}.png") as picture:
            assert picture.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(picture), pixels)
        facts = json.loads((tmp_path / f"{1000 + place:010d}.json").read_text())
        assert facts == {
            "index": 1000 + place, "seed": 2**32 - 1 - place, "class_label": place % 3,
            "truncation_psi": 0.7, "model_digest": DIGEST, "sha256": pixel_sha256(pixels),
        }  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # webdataset leaves its files to the collector
@pytest.mark.parametrize("image_format", ["png", "webp", "raw"])
def test_webdataset_reads_a_shard(tmp_path: Path, image_format: str) -> None:
    webdataset = pytest.importorskip("webdataset", reason="a tool of development")
    output = OutputPart.model_validate({"image": image_format})
    (tmp_path / "shard-000000.tar").write_bytes(written(output, RGB))
    dataset = webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False)
    found = list(dataset.decode("pil"))
    assert [sample["__key__"] for sample in found] == [f"{1000 + place:010d}" for place in range(7)]
    assert [sample["json"]["class_label"] for sample in found] == [0, 1, 2, 0, 1, 2, 0]
    suffix = {"raw": "npy"}.get(image_format, image_format)
    for sample, pixels in zip(found, pixels_of(RGB, 7), strict=True):
        np.testing.assert_array_equal(np.asarray(sample[suffix]), pixels)


def tar_of(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def odd(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def claiming(size: int) -> bytes:
    """Return a tar file whose first member says that it has so many bytes."""
    header = odd("0.json", size=size).tobuf(tarfile.GNU_FORMAT)
    return header + bytes(1024)


TARS = {
    "a large picture": tar_of(("0.json", FACTS), ("0.png", png_of(60_000, 60_000))),
    "a picture of another size": tar_of(("0.json", FACTS), ("0.png", png_of(8, 8))),
    "gigabytes": claiming(8 * 2**30),
    "a terabyte": claiming(2**40),
    "less than nothing": claiming(-1),
    "a link": tar_of((odd("0.json", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "a hard link": tar_of((odd("0.json", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
    "a device": tar_of((odd("0.json", tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "a FIFO": tar_of((odd("0.json", tarfile.FIFOTYPE), b"")),
    "a folder": tar_of((odd("0.json", tarfile.DIRTYPE), b"")),
    "a long name": tar_of(("0" * 300 + ".json", FACTS)),
    "a path": tar_of(("../../0.json", FACTS), ("/etc/0.png", b"")),
    "deep facts": tar_of(("0.json", b"[" * 60_000), ("0.png", b"")),
    "facts of another kind": tar_of(("0.json", b"[1]"), ("0.png", png_of(4, 4))),
    "an input of another kind": tar_of(
        ("0.json", FACTS[:-1] + b', "class_label": [1, 2]}'), ("0.png", png_of(4, 4))
    ),
    "an input that no model takes": tar_of(
        ("0.json", FACTS[:-1] + b', "class_label": 1e300}'), ("0.png", png_of(4, 4))
    ),
    "facts alone": tar_of(("0.json", FACTS)),
    "more samples": tar_of(*[("0.json", FACTS), ("0.png", png_of(4, 4))] * 2),
    "nothing": b"",
    "no tar": b"x" * 2000,
    "no sound number": odd("0.json").tobuf()[:124] + b"9" * 388,
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(TARS[name], "webdataset")


def test_the_sound_one_among_them_is_read() -> None:
    sound = tar_of(("0.json", FACTS), ("0.png", png_of(4, 4)))
    (sample,) = read(sound, OutputPart(), SMALL, 1)
    assert (sample.index, sample.seed, sample.sha256) == (0, 0, BLACK)
