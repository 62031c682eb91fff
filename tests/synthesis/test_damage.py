"""``verify`` finds whatever was done to a folder."""

import hashlib
import re
import shutil
from pathlib import Path
from random import Random

import numpy as np

from latentry.contract.errors import JobError
from latentry.contract.images import png_from_uint8
from latentry.synthesis.records import JOB_FILE
from latentry.synthesis.verify import JobVerdict, verify_job


def damage(out: Path, random: Random) -> tuple[str, list[str]]:
    """Do something to a job's folder; return the file and the hashes to expect in a message."""
    path = random.choice(sorted(out.iterdir()))
    data = path.read_bytes()
    kind = random.choice(["bit", "byte", "truncate", "append", "space", "swap", "delete", "add"])
    if kind == "delete" and path.name != JOB_FILE:
        path.unlink()
        return path.name, []
    if kind == "add":
        (out / f"{path.name}.bak").write_bytes(data)
        return f"{path.name}.bak", []
    if kind == "swap":
        other = random.choice(
            sorted({p for p in out.iterdir() if p.suffix == path.suffix} - {path})
        )
        if path.suffix == ".tar" or "shard" in path.name and "shard" in other.name:
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return path.name, []
    changed = bytearray(data)
    if kind == "truncate":
        del changed[random.randrange(len(changed)) :]
    elif kind == "append":
        changed += random.randbytes(random.randint(1, 600))
    elif kind == "space":
        changed += b" "
    elif kind == "byte":
        changed[random.randrange(len(changed))] ^= random.randint(1, 255)
    else:
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    path.write_bytes(changed)
    hashes = [hashlib.sha256(content).hexdigest() for content in (data, bytes(changed))]
    return path.name, hashes


def verdict_of(out: Path) -> str:
    """Return all that ``verify`` says of a folder."""
    try:
        verdict: JobVerdict = verify_job(str(out), None)
    except JobError as error:
        return str(error)
    return "\n".join(verdict.problems)


def test_any_damage_is_found(whole: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    random = Random(11)
    assert verdict_of(whole) == ""
    for turn in range(100):
        out = tmp_path / str(turn)
        shutil.copytree(whole, out)
        name, hashes = damage(out, random)
        message = verdict_of(out)
        assert name in message
        # What is no longer understood at all, or has another size, has no hash to expect.
        if not re.search("is damaged|bytes, its record says", message):
            assert all(sha256 in message for sha256 in hashes), (name, message)
        shutil.rmtree(out)


def test_another_contact_sheet_is_found(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    data = png_from_uint8(np.zeros((64, 64, 1), np.uint8))
    (out / "contact-sheet.png").write_bytes(data)
    message = verdict_of(out)
    assert f"{out}/contact-sheet.png was changed" in message
    assert hashlib.sha256(data).hexdigest() in message
