"""A job that goes on believes nothing that lies in its folder: every finished shard is checked."""

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs.runs import SHARDS, JobRun, flip, tree

from latentry.cli.common import console
from latentry.cli.main import main
from latentry.contract.errors import BadRequest, JobError
from latentry.synthesis.crews.crew import make_here
from latentry.synthesis.job import Job
from latentry.synthesis.records import check_shard, read_job, read_shard_record
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin, Progress, Settled, Work
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.object_store import ObjectStore
from latentry.synthesis.verify import verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

JOB = Job.model_validate(
    {"model": "digits", "samples": {"per_class": {"0-9": 6}}, "output": {"shard_size": 12}}
)
RECORD, SHARD = "shard-000002.json", "shard-000002.tar"


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole job; no test may change it."""
    out = tmp_path_factory.mktemp("resume") / "out"
    run_job(JOB, Origin(repository), str(out))
    return out


@pytest.fixture
def begun(made: Path, tmp_path: Path) -> Path:
    """Return a copy that lacks its last shard."""
    out = Path(shutil.copytree(made, tmp_path / "out"))
    for name in ("index.json", "contact-sheet.png", "shard-000004.tar", "shard-000004.json"):
        (out / name).unlink()
    return out


def go_on(out: Path | str, repository: Path, **options: Any) -> list[str]:
    """Run the job, and return what it says of shards that were not sound."""
    told: list[str] = []
    run_job(
        JOB, Origin(repository), str(out), on_fault=lambda text, _: told.append(text), **options
    )
    return told


# --- finished shards ----------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [SHARD, RECORD])
def test_a_flipped_bit_costs_that_shard_and_is_told(
    made: Path, begun: Path, repository: Path, name: str, whole: bool
) -> None:
    if whole:
        shutil.copytree(made, begun, dirs_exist_ok=True)
    size = (begun / name).stat().st_size
    for place in (0, size // 2, size - 3):
        flip(begun / name, place)
        before = (begun / "shard-000001.tar").stat().st_ino
        (told,) = go_on(begun, repository)
        assert str(begun / name) in told
        assert tree(begun) == tree(made)
        assert (begun / "shard-000001.tar").stat().st_ino == before


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return what changes a record, and gives it a seal that is right."""

    def write(out: Path) -> None:
        record = read_shard_record(LocalFolder(out), read_job(LocalFolder(out)), 2)
        facts = record.model_dump(exclude={"seal"})
        change(facts)
        changed = type(record).model_construct(**facts).sealed()
        (out / RECORD).write_bytes(changed.as_bytes())

    return write


def swap(out: Path) -> None:
    shutil.copy(out / "shard-000001.json", out / RECORD)


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what puts another thing under a file's name."""

    def put(out: Path) -> None:
        (out / name).unlink()
        make(out / name)

    return put


def of_version_0_2(out: Path) -> None:
    record = read_shard_record(LocalFolder(out), read_job(LocalFolder(out)), 2)
    old = record.model_copy(update={"seal": "", "md5": ""}).as_bytes()
    (out / RECORD).write_bytes(old.replace(b'"shard":2', b'"shard":3'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda out: (out / RECORD).write_bytes(b""),
    "torn": lambda out: (out / RECORD).write_bytes((out / RECORD).read_bytes()[:200]),
    "a space": lambda out: (out / RECORD).write_bytes((out / RECORD).read_bytes() + b" "),
    "samples in another order": damage(
        lambda facts: facts.update(indices=tuple(reversed(facts["indices"])))
    ),
    "another shard's": swap,
    "another number": of_version_0_2,
    "another file": damage(lambda facts: facts.update(file="shard-000001.tar")),
    "a path": damage(lambda facts: facts.update(file="../out/shard-000002.tar")),
    "an absolute path": damage(lambda facts: facts.update(file="/etc/passwd")),
    "too few samples": damage(
        lambda facts: facts.update(
            {key: facts[key][:-1] for key in ("indices", "seeds", "sample_sha256")}
        )
    ),
    "other counts": damage(lambda facts: facts.update(by_class={"1": 1})),
    "one seed twice": damage(lambda facts: facts.update(seeds=(facts["seeds"][0],) * 12)),
    "another shard's seed": damage(lambda facts: facts.update(seeds=(0, *facts["seeds"][1:]))),
    "another shard's sample": damage(
        lambda facts: facts.update(indices=(0, *facts["indices"][1:]))
    ),
    "another engine": damage(lambda facts: facts.update(engine_class="tensorrt")),
    "another size": damage(lambda facts: facts.update(size=facts["size"] + 1)),
    "another hash": damage(lambda facts: facts.update(sha256="0" * 64)),
    "a shorter shard": lambda out: (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-512]),
    "an empty shard": lambda out: (out / SHARD).write_bytes(b""),
    "a FIFO for a shard": replace(SHARD, os.mkfifo),
    "a FIFO for a record": replace(RECORD, os.mkfifo),
    "an endless shard": replace(SHARD, lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": replace(RECORD, lambda path: path.symlink_to(RECORD)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_shard_that_is_not_what_its_record_says_is_made_again(
    made: Path, begun: Path, repository: Path, name: str
) -> None:
    DAMAGES[name](begun)
    (told,) = go_on(begun, repository)
    assert "shard-000002" in told
    assert "\n" not in told
    assert tree(begun) == tree(made)


def test_a_record_of_version_0_2_is_taken_for_what_it_says(
    made: Path, begun: Path, repository: Path
) -> None:
    record = read_shard_record(LocalFolder(begun), read_job(LocalFolder(begun)), 2)
    old = record.model_copy(update={"seal": "", "md5": ""}).as_bytes()
    assert b"seal" not in old
    (begun / RECORD).write_bytes(old)
    assert go_on(begun, repository) == []
    assert verify_job(str(begun), None).problems == []
    flip(begun / SHARD, 1000)
    assert len(go_on(begun, repository)) == 1


def test_an_index_that_is_damaged_itself_condemns_no_shard(
    made: Path, tmp_path: Path, repository: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "index.json").write_text("[" * 100_000)
    assert go_on(out, repository) == []
    assert tree(out) == tree(made)


def test_no_index_is_written_over_what_this_run_has_not_looked_at(
    made: Path, begun: Path, repository: Path
) -> None:
    run_job(JOB, Origin(repository), str(begun))
    (begun / "index.json").unlink()
    flip(begun / "shard-000003.tar", 1000)
    run_job(JOB, Origin(repository), str(begun), limit=24)
    assert not (begun / "index.json").exists()
    run_job(JOB, Origin(repository), str(begun))
    assert tree(begun) == tree(made)


def test_a_shard_that_changes_after_it_was_checked_gets_no_index(
    begun: Path, repository: Path
) -> None:
    def crew(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        yield from make_here(work, numbers, progress)
        swap(begun)

    run_job(JOB, Origin(repository), str(begun), crew=crew)
    assert not (begun / "index.json").exists()


def test_what_is_missing_is_drawn_first_and_checking_goes_on_beside_it(
    made: Path, begun: Path, repository: Path
) -> None:
    (begun / "shard-000003.json").unlink()
    asked: list[int] = []

    def crew(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        asked.extend(numbers)
        return make_here(work, asked, progress)

    run_job(JOB, Origin(repository), str(begun), crew=crew)
    assert asked == [3, 0, 4, 1, 2]
    assert tree(begun) == tree(made)


def test_checking_alone_loads_no_model(made: Path, tmp_path: Path, repository: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))

    def crew(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        nowhere = Work(work.record, Origin(tmp_path / "nowhere"), work.out)
        return make_here(nowhere, numbers, progress)

    run_job(JOB, Origin(repository), str(out), crew=crew)
    assert tree(out) == tree(made)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_says_in_one_line_which_shard_was_made_again_and_why(
    begun: Path, made: Path, repository: Path, tmp_path: Path, workers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    job = tmp_path / "job.toml"
    job.write_text(
        'model = "digits"\n[samples]\nper_class = { "0-9" = 6 }\n[output]\nshard_size = 12'
    )
    flip(begun / SHARD, 1000)
    found = hashlib.sha256((begun / SHARD).read_bytes()).hexdigest()
    command = [
        "synthesize",
        job,
        "--out",
        begun,
        "--draw-with",
        "local",
        "--repository",
        repository,
    ]
    assert main([*map(str, command), "--workers", str(workers), "--json"]) == 0
    line = f"{begun / SHARD} was changed: its SHA-256 is {found}, its record says "
    (told,) = [text for text in capsys.readouterr().err.splitlines() if SHARD in text]
    assert told.startswith(line)
    assert told.endswith("; it was made again")
    assert tree(begun) == tree(made)


# --- object stores ------------------------------------------------------------------------------


@pytest.fixture
def store(made: Path) -> Iterator[Any]:
    """Return fsspec's file system in memory, with the job in it."""
    files = pytest.importorskip("fsspec", reason="needs the extra [synthesis]").filesystem("memory")
    for path in made.iterdir():
        files.pipe_file(f"/job/{path.name}", path.read_bytes())
    files.rm_file("/job/index.json")
    yield files
    files.store.clear()


def flip_stored(files: Any, name: str) -> None:
    data = bytearray(files.cat_file(f"/job/{name}"))
    data[1000] ^= 1
    files.pipe_file(f"/job/{name}", bytes(data))


def test_a_flipped_bit_in_a_store_is_found(store: Any, made: Path, repository: Path) -> None:
    flip_stored(store, SHARD)
    (told,) = go_on("memory://job", repository)
    assert "memory:///job" in told or "memory://job" in told
    assert {Path(name).name: store.cat_file(name) for name in store.find("/job")} == tree(made)


def etag(data: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}


def google(data: bytes) -> dict[str, str]:
    return {"md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode()}


@pytest.mark.parametrize("tell", [etag, google])
def test_a_store_that_tells_the_md5_is_not_read(
    store: Any, repository: Path, monkeypatch: pytest.MonkeyPatch, tell: Callable[..., Any]
) -> None:
    info = type(store).info
    monkeypatch.setattr(
        type(store), "info", lambda self, path: {**info(self, path), **tell(store.cat_file(path))}
    )
    read: list[str] = []
    sha256 = ObjectStore.sha256

    def counted(self: ObjectStore, name: str, most: int) -> str:
        read.append(name)
        return sha256(self, name, most=most)

    monkeypatch.setattr(ObjectStore, "sha256", counted)
    record = read_job(ObjectStore("memory://job"))
    check_shard(ObjectStore("memory://job"), record, 2)
    assert read == []
    flip_stored(store, SHARD)
    with pytest.raises(JobError, match="its SHA-256 is"):
        check_shard(ObjectStore("memory://job"), record, 2)
    assert read == [SHARD]


@pytest.mark.parametrize("tag", ['"d41d8cd98f00b204e9800998ecf8427e-3"', "0" * 32, None])
def test_a_checksum_that_is_no_md5_of_the_file_condemns_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch, tag: str | None
) -> None:
    info = type(store).info
    monkeypatch.setattr(type(store), "info", lambda self, path: {**info(self, path), "ETag": tag})
    storage = ObjectStore("memory://job")
    assert check_shard(storage, read_job(storage), 2).file == SHARD


# --- what --out may be --------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "/deeper/still"])
@pytest.mark.parametrize("kind", ["file", "fifo", "dangling", "loop"])
def test_an_output_that_is_no_folder_is_named_for_what_it_is(
    tmp_path: Path, repository: Path, kind: str, below: str
) -> None:
    path = tmp_path / "out"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("mine"),
        "fifo": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to(tmp_path / "gone"),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()
    what = "is no folder" if kind in ("file", "fifo") else "leads to nothing"
    calls: tuple[Callable[[], object], ...] = (
        lambda: run_job(JOB, Origin(repository), f"{path}{below}"),
        lambda: verify_job(f"{path}{below}", None),
    )
    for call in calls:
        with pytest.raises(BadRequest, match=f"{path} {what}; give a folder, or a name that is"):
            call()
    assert not (tmp_path / "gone").exists()


def test_a_folder_that_cannot_be_written_says_so(repository: Path) -> None:
    with pytest.raises(JobError, match="/proc/job"):
        run_job(JOB, Origin(repository), "/proc/job")


# --- the rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[200], [100, 100], [1] * 40, [150, -50, 100]])
def test_the_bar_ends_with_the_rate_of_all_the_time_that_it_took(
    parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    screen = io.StringIO()

    def clock() -> float:
        return now[0]

    monkeypatch.setattr(console, "Console", lambda stderr: _terminal(screen))
    monkeypatch.setattr(console, "Progress", _with_clock(clock))
    with console.progress_bar("digits", 1, quiet=False) as advance:
        now[0] += 5  # before the job is known
        advance.start(sum(parts))
        for part in parts:
            now[0] += 4 / len(parts)
            advance(part)
        now[0] += 7  # until the index is written
    last = screen.getvalue().splitlines()[-1]
    assert f"{sum(parts)}/{sum(parts)}" in last
    assert f"{sum(parts) / 4:.0f} images/s" in last


def _terminal(screen: io.StringIO) -> Any:
    from rich.console import Console

    return Console(file=screen, width=120, force_terminal=False)


def _with_clock(clock: Callable[[], float]) -> Any:
    from rich.progress import Progress as Bar

    return lambda *columns, **options: Bar(*columns, get_time=clock, auto_refresh=False, **options)


def test_a_damaged_record_is_a_line_of_status(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun / RECORD).write_text("[" * 100_000)
    assert main(["synthesize", "status", str(begun)]) == 1
    out = capsys.readouterr().out
    assert "shards   3 of 5" in out
    assert f"fault    {begun / RECORD} is damaged: " in out
    assert main(["synthesize", "status", str(begun), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 1


def test_of_many_shards_that_were_made_again_some_are_named(job: JobRun, whole: Path) -> None:
    shutil.copytree(whole, job.out)
    for path in job.out.glob("*.tar"):
        flip(path, 600)
    done = job.run()
    lines = done.stderr.splitlines()
    assert done.returncode == 0
    assert len([line for line in lines if line.endswith("; it was made again")]) == 20
    assert lines[-1] == f"and {SHARDS - 20} more that were made again"
    assert tree(job.out) == tree(whole)
