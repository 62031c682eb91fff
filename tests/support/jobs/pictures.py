"""Folders of pictures, jobs over them, and what is in their shards."""

import hashlib
from pathlib import Path

import numpy as np
from jobs.runs import (
    run_here,
    write_job,
)
from jobs.samples import pixels_of_data
from numpy.typing import NDArray
from PIL import Image

from latentry.synthesis.job import job_from_file
from latentry.synthesis.records import Totals, made_shards, read_job
from latentry.synthesis.run import samples_of_shard
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import JobVerdict, verify_job

NAMES = ("a.png", "b.JPG", "b/c.webp", "b/d.bmp", "e.jpeg")  # in the order of a job
TINTED = 'model = "tinted"\n[inputs]\nphoto = { folder = "photos" }\nstrength = 0.5\n'
FILLED = 'model = "filled"\n[inputs]\nphoto = { folder = "photos" }\nmask = { folder = "masks" }\n'
SMALL = "[output]\nshard_size = 2\n"
FORMATS = ['format = "webdataset"', 'format = "parquet"', 'format = "npz"']


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (16, 12)) -> Path:
    """Write a picture of noise, none of whose pixels is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 240, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format={".jpg": "JPEG"}.get(path.suffix.lower()))
    return path


def make(folder: Path, text: str, models: Path, out: str = "out") -> Totals:
    """Make the job of this text, whose file is in ``folder``."""
    return run_here(write_job(folder, text), folder / out, models)


def samples_in(out: Path) -> list[Sample]:
    """Return every sample of a job as the readers of its shards find it."""
    storage = LocalFolder(out)
    record = read_job(storage)
    shards = made_shards(storage, record)
    return [sample for made in shards for sample in samples_of_shard(storage, record, made)]


def pixels_in(out: Path) -> list[NDArray[np.uint8]]:
    record = read_job(LocalFolder(out))
    output = record.job.output
    return [pixels_of_data(sample.data, output, record.spec) for sample in samples_in(out)]


def rejections(out: Path) -> list[tuple[int, int, str]]:
    storage = LocalFolder(out)
    shards = made_shards(storage, read_job(storage))
    return [(item.index, item.seed, item.reason) for made in shards for item in made.rejected]


def verdict_of(folder: Path, models: Path, samples: int = 100) -> JobVerdict:
    folders = job_from_file(folder / "job.toml").folders
    origin = Origin(repository=models)
    return verify_job(str(folder / "out"), origin, samples=samples, folders=folders)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
