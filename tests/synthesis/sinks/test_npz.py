import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.samples import BLACK, DIGEST, SMALL, any_image, pixels_of, read, refuse, written

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.shards import read_shard


@any_image
def test_numpy_reads_npz_without_pickle(tmp_path: Path, spec: GeneratorSpec) -> None:
    (tmp_path / "shard.npz").write_bytes(written(OutputPart(format="npz"), spec))
    with np.load(tmp_path / "shard.npz", allow_pickle=False) as arrays:
        assert arrays.files == [
            "images", "index", "seed", "class_label", "truncation_psi", "model_digest",
        ]  # fmt: skip
        np.testing.assert_array_equal(arrays["images"], pixels_of(spec, 7))
        assert arrays["seed"].dtype == arrays["class_label"].dtype == np.int64
        assert arrays["truncation_psi"].dtype == np.float32
        assert arrays["model_digest"].item() == DIGEST


def npz_of(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    sound = {"images": np.zeros((1, 4, 4, 1), np.uint8), "index": np.zeros(1, np.int64)}
    save(buffer, **{**sound, "seed": np.zeros(1, np.int64), **arrays})
    return buffer.getvalue()


NPZS: dict[str, dict[str, Any]] = {
    "many images": {"images": np.zeros((60_000, 32, 32, 1), np.uint8)},
    "images of another kind": {"images": np.zeros((1, 4, 4, 1), np.float64)},
    "many seeds": {"seed": np.zeros(10_000_000, np.int64)},
    "texts for seeds": {"seed": np.array(["x" * 100_000])},
    "objects": {"seed": np.array([{}], object)},
    "a large column": {"extra": np.zeros((1, 10_000_000), np.int64)},
    "a column of another name": {"extra": np.zeros(1, np.int64)},
    "large numbers": {"truncation_psi": np.zeros(1, np.longdouble)},
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", NPZS)
def test_an_npz_file_of_another_kind_is_refused_and_not_unpacked(
    name: str, save: Callable[..., None]
) -> None:
    refuse(npz_of(save, **NPZS[name]), "npz")


def test_a_packed_npz_file_is_none_of_ours() -> None:
    with pytest.raises(ValueError, match=r"its images\.npy is compressed"):
        read(npz_of(np.savez_compressed), OutputPart(format="npz"), SMALL, 1)


def test_an_npz_file_of_many_members_is_refused_before_they_are_listed() -> None:
    buffer = io.BytesIO(npz_of())
    with zipfile.ZipFile(buffer, "a") as archive:
        for number in range(2000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(ValueError, match="its directory takes over"):
        list(read_shard(buffer, OutputPart(format="npz"), SMALL, 1))


def test_the_sound_one_among_them_is_read() -> None:
    (sample,) = read(npz_of(), OutputPart(format="npz"), SMALL, 1)
    assert (sample.index, sample.seed, sample.sha256) == (0, 0, BLACK)
