"""Job folders that were damaged, or made to do harm: what is done to a sound one, by seed."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from latentry.cli.main import main
from latentry.synthesis.records import ShardRecord, read_job, read_shard_record
from latentry.synthesis.sinks.formats import FORMATS
from latentry.synthesis.storage.local_folder import LocalFolder

JOB = """
model = "digits"
[samples]
per_class = {{ "0-9" = 2 }}
[output]
shard_size = 10
format = "{}"
"""
_HANGS_S = 120
_MOST_LINE, _MOST_KB = 4000, 300_000
EVIL = "\x1b[31m\x9b\u202e\ud800"
VALUES: tuple[Any, ...] = (
    *(
        [],
        {},
        None,
        True,
        "",
        "5",
        EVIL,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        10**4000,
        0.5,
        "x" * 10**6,
    ),
    *(float("nan"), float("inf"), [[]] * 1000, {"a": {}}, "../../etc/passwd", "/dev/zero", "\0"),
)


def make_jobs(folder: Path, repository: Path) -> list[Path]:
    """Return a folder for each format, with a job's file and all that it makes."""
    folders = []
    for kind in FORMATS:
        folders.append(folder / kind)
        folders[-1].mkdir()
        (folders[-1] / "job.toml").write_text(JOB.format(kind))
        assert main(command("run", folders[-1], repository)) == 0
    return folders


def command(what: str, folder: Path, repository: Path) -> list[str]:
    """Return the arguments that run, verify or look at the job in ``folder``."""
    options = ["--draw-with", "local", "--repository", str(repository), "--workers", "1"]
    return {
        "run": ["synthesize", str(folder / "job.toml"), "--out", str(folder / "out"), *options],
        "verify": ["synthesize", "verify", str(folder / "out"), *options],
        "status": ["synthesize", "status", str(folder / "out")],
    }[what]


def attack(
    made: Path, repository: Path, scratch: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage a copy of a job; look at it, verify it and go on with it."""
    folder = Path(shutil.copytree(made, scratch / "job"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = f"seed {seed}, {damage(folder / 'out', Random(seed))}"
    for what in ("status", "verify", "run"):
        code = check(command(what, folder, repository), capsys, f"{what}: {told}")
    if code == 0:
        assert check(command("verify", folder, repository), capsys, told) == 0, told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_KB, told
    shutil.rmtree(folder)


def check(arguments: list[str], capsys: pytest.CaptureFixture[str], told: str) -> int:
    """Run a command; whatever lies in its way, it ends in lines that a terminal may be shown."""

    def late(*_: object) -> None:
        raise AssertionError(f"it hangs: {told}")

    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(_HANGS_S)
    try:
        code = main(arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert code in (0, 1), told
    assert "Traceback" not in captured.err, told
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", "".join(lines)), told
    assert sum(line.startswith("error: ") for line in lines) <= 1, told
    assert all(len(line) < _MOST_LINE for line in lines), told
    return code


def damage(folder: Path, random: Random) -> str:
    """Do one thing to one file of a job's folder; return what, for people."""
    names = [*sorted(path.name for path in folder.iterdir()), "job.lock"]
    path = folder / random.choice(names)
    kinds = [_flip, _cut, _grow, _replace]
    if path.suffix in (".json", ".lock"):
        kinds += [_change_json] * 6 + [_deepen]
    elif path.suffix in (".tar", ".parquet", ".npz"):
        kinds += [_forge] * 12
    if not path.exists():
        path.write_text('{"host": "h", "boot": "b", "namespace": "n", "pid": 1, "started": "1"}')
    kind = random.choice(kinds)
    return f"{kind.__name__} {path.name}: {kind(path, random)}"


def _flip(path: Path, random: Random) -> str:
    path.write_bytes(_flipped(path.read_bytes(), random))
    return "bits"


def _flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 5, 50))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(path: Path, random: Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data))])
    return "cut"


def _grow(path: Path, random: Random) -> str:
    with path.open("r+b") as file:
        file.truncate(2**40)
    return "a terabyte"


def _replace(path: Path, random: Random) -> str:
    path.unlink()
    kind = random.choice(("fifo", "folder", "zero", "null", "loop", "dangling", "tty"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        places: dict[str, str | Path] = {
            "zero": "/dev/zero",
            "null": "/dev/null",
            "tty": "/dev/tty",
            "loop": path,
        }
        path.symlink_to(places.get(kind, "/nowhere/at/all"))
    return kind


def _change_json(path: Path, random: Random) -> str:
    content = json.loads(path.read_bytes())
    told = ""
    for _ in range(random.choice((1, 1, 3))):
        holder, key = _place(content, random)
        if isinstance(holder, dict) and random.random() < 0.2:
            del holder[key]
            told += f"{key} gone, "
        else:
            holder[key] = random.choice(VALUES)
            told += f"{key} = {ascii(holder[key])[:40]}, "
    path.write_text(_text(content), errors="surrogatepass")
    if path.name.startswith("shard-") and random.random() < 0.8:
        content.pop("seal", None)
        data = (json.dumps(content, separators=(",", ":")) + "\n").encode()
        content["seal"] = hashlib.sha256(data).hexdigest()
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    return told


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


def _place(content: Any, random: Random) -> tuple[Any, Any]:
    """Return a list or a table of ``content`` and a key of it, at any depth."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = random.choice(keys)
        if not isinstance(content[key], dict | list) or not content[key] or random.random() < 0.3:
            return content, key
        content = content[key]


def _deepen(path: Path, random: Random) -> str:
    opening = random.choice(("[", '{"a":', '{"job":', '[{"files":'))
    path.write_text(opening * 100_000)
    return opening


def _forge(path: Path, random: Random) -> str:
    """Change a shard, with a record that is right about it."""
    data = _forged(path.read_bytes(), random)
    path.write_bytes(data)
    storage = LocalFolder(path.parent)
    number = int(path.stem.rpartition("-")[2])
    made = read_shard_record(storage, read_job(storage), number)
    facts = {
        **made.model_dump(),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": "",
        "seal": "",
    }
    record = ShardRecord.model_validate(facts).sealed()
    path.with_suffix(".json").write_bytes(record.as_bytes())
    return "forged"


def _forged(data: bytes, random: Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return _flipped(data, random)
    if kind == 1:  # in the parts that say how the rest is to be read
        edge = min(2048, len(data) // 3)
        head, middle, tail = data[:edge], data[edge:-edge], data[-edge:]
        return _flipped(head, random) + middle + _flipped(tail, random)
    if kind == 2:
        return data[: random.randrange(len(data))]
    if kind == 3:
        place = random.randrange(len(data))
        return data[:place] + random.randbytes(random.choice((1, 4, 512))) + data[place:]
    place, size = random.randrange(len(data)), random.choice((1, 4, 8, 512))
    filler = random.choice((b"\0", b"\xff", b"7", b"\x7f"))
    return data[:place] + filler * size + data[place + size :]
