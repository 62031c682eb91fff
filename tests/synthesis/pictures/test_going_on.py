"""Jobs over folders that were changed meanwhile; jobs that were killed; and verify."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from jobs.pictures import (
    NAMES,
    SMALL,
    TINTED,
    make,
    sha256_of,
    verdict_of,
    write_picture,
)
from jobs.runs import (
    Kills,
    kill_until_done,
    local_run,
    stamps,
    tree,
    work_seconds,
    write_job,
)

from latentry.cli.main import main
from latentry.contract.errors import JobError
from latentry.synthesis import run as running
from latentry.synthesis.job import job_from_file
from latentry.synthesis.shard_making import Origin, SampleDrawer

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


@pytest.fixture
def half(photos: Path, models: Path) -> Path:
    """Return the folder of a job of which the first two of three shards are made."""
    make(photos.parent, TINTED + SMALL, models)
    for name in ("index.json", "shard-000002.json"):
        (photos.parent / "out" / name).unlink()
    return photos.parent / "out"


CHANGES: list[tuple[Callable[[Path], object], list[str]]] = [
    (
        lambda folder: write_picture(folder / "a0.png"),
        [
            "folders.photo.files was 5, here it is 6",
            "sample 1 was made of photo b.JPG, which is a0",
        ],
    ),
    (
        lambda folder: (folder / "e.jpeg").unlink(),
        ["folders.photo.files was 5, here it is 4", "folders.photo.sha256 was "],
    ),
    (
        lambda folder: (folder / "b").rename(folder / "a"),
        ["folders.photo.sha256 was", "sample 1 was made of photo b.JPG, which is a/c.webp now"],
    ),
    (
        lambda folder: write_picture(folder / "e.jpeg", 77, size=(8, 8)),
        ["folders.photo.sha256 was "],
    ),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_folder_that_gained_lost_or_renamed_files_is_refused_with_what_differs(
    photos: Path, models: Path, half: Path, change: Callable[[Path], object], words: list[str]
) -> None:
    change(photos)
    before = stamps(half)
    with pytest.raises(JobError, match="was started differently") as refusal:
        make(photos.parent, TINTED + SMALL, models)
    assert all(text in str(refusal.value) for text in words)
    assert stamps(half) == before


def test_a_folder_may_move(photos: Path, models: Path, half: Path) -> None:
    whole = tree(half)
    (photos.parent / "far" / "away").mkdir(parents=True)
    photos.rename(photos.parent / "far" / "away" / "pictures")
    text = TINTED.replace('"photos"', '"far/away/pictures"') + SMALL
    assert make(photos.parent, text, models).samples == 5
    assert whole.items() <= tree(half).items()
    assert str(photos.parent).encode() not in (half / "job.json").read_bytes()


def test_what_is_pinned_is_the_list_as_anybody_computes_it(photos: Path, models: Path) -> None:
    make(photos.parent, TINTED, models)
    lines = [json.dumps([name, (photos / name).stat().st_size]) + "\n" for name in NAMES]
    found = json.loads((photos.parent / "out" / "job.json").read_bytes())["folders"]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert found == {"photo": {"files": 5, "sha256": digest}}


def test_a_folder_that_changes_while_the_job_runs_ends_it(photos: Path, models: Path) -> None:
    job, origin = job_from_file(write_job(photos.parent, TINTED)), Origin(repository=models)
    record = running.open_record(job, origin)
    drawer = SampleDrawer(record, origin)
    try:
        write_picture(photos / "b/d.bmp", 8, size=(8, 8))
        with pytest.raises(
            JobError, match="d.bmp was changed since the folder was listed: it has "
        ):
            drawer.draw_samples(record.plan.shard(0), 5)
        (photos / "b/d.bmp").unlink()
        with pytest.raises(
            JobError, match="d.bmp cannot be read: No such file or directory; it co"
        ):
            drawer.draw_samples(record.plan.shard(0), 5)
    finally:
        drawer.close()
    with pytest.raises(JobError, match=r"folder of the job \(photo\) has gained, lost or renamed"):
        SampleDrawer(record, origin)


def test_killed_at_any_moment(photos: Path, models: Path, tmp_path: Path) -> None:
    for seed in range(40):
        write_picture(photos / f"k{seed}.png", seed)
    job = write_job(tmp_path, TINTED + SMALL)
    expected = local_run(job, tmp_path / "whole", models).finish()
    run = local_run(job, tmp_path / "out", models, workers=2)
    kills, random = Kills(work_seconds(run)), Random(2)
    while kills.kills < 2:  # the first moment may lie behind the end
        kill_until_done(run, expected, random, kills, at_most=4)
    assert not kills.differing | kills.extra
    assert kills.most_redone <= 2
    assert kills.touched == 0


# --- verify ---------------------------------------------------------------------------------------


def test_a_picture_that_was_changed_is_told_from_one_drawn_differently(
    photos: Path, models: Path
) -> None:
    make(photos.parent, TINTED + SMALL, models)
    data = bytearray((photos / "b/d.bmp").read_bytes())
    data[-1] ^= 1  # of the same size: nothing but the hash tells
    before = sha256_of(photos / "b/d.bmp")
    (photos / "b/d.bmp").write_bytes(data)
    verdict = verdict_of(photos.parent, models)
    assert verdict.problems == [
        "sample 3 is not drawn again: its photo b/d.bmp was changed since: the SHA-256 is "
        f"{sha256_of(photos / 'b/d.bmp')}, then it was {before}"
    ]
    assert verdict.drawn_again == 4


def test_a_picture_that_is_missing_and_one_that_came_are_found(photos: Path, models: Path) -> None:
    make(photos.parent, TINTED + SMALL, models)
    (photos / "b/d.bmp").rename(photos / "b/dd.bmp")
    problems = verdict_of(photos.parent, models).problems
    assert problems[0].startswith("the folder of photo holds 5 files, when the job was made 5; ")
    assert problems[1:] == [
        "sample 3 was made of photo b/d.bmp, which is b/dd.bmp now",
        "sample 3 is not drawn again: its photo b/d.bmp is no longer in the folder",
    ]
    (photos / "b/dd.bmp").rename(photos / "b/d.bmp")
    write_picture(photos / "z.png")
    verdict = verdict_of(photos.parent, models)
    (problem,) = verdict.problems
    assert problem.startswith("the folder of photo holds 6 files, when the job was made 5; ")
    assert verdict.drawn_again == 5


def test_verify_is_told_where_the_folders_are(
    photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(photos.parent, TINTED + SMALL, models)
    command = ["synthesize", "verify", str(photos.parent / "out"), "--draw-with", "local"]
    command += ["--repository", str(models)]
    assert main(command) == 1
    assert "give its job's file with --job, or --samples 0" in capsys.readouterr().err
    assert main([*command, "--samples", "0"]) == 0
    assert main([*command, "--job", str(photos.parent / "job.toml")]) == 0
    assert "5 drawn again and equal" in capsys.readouterr().out
