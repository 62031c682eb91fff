import os
from pathlib import Path

import numpy as np
import pytest

from latentry.contract.errors import BadRequest
from latentry.contract.values.npy import array_from_file, npy_bytes


@pytest.mark.parametrize("dtype", ["f4", ">f8", "i8", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_users_array_is_read_whatever_its_type_and_order(
    tmp_path: Path, dtype: str, order: str
) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "a.npy", np.asarray(array, order="F" if order == "F" else "C"))
    found = array_from_file("z", tmp_path / "a.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no NPY file of numbers"),
        (b"\x93NUMPY", "is no NPY file of numbers"),
        (npy_bytes(np.zeros(4))[:-1], "is no NPY file of numbers"),
        (b"\x80\x04K\x01.", "is no NPY file of numbers"),  # a pickle
    ],
)
def test_what_is_no_array(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(BadRequest, match=rf"^z: .*a\.npy {words}"):
        array_from_file("z", tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([print], np.object_), allow_pickle=True)
    with pytest.raises(BadRequest, match="is no NPY file of numbers .*allow_pickle"):
        array_from_file("z", tmp_path / "a.npy")


def test_what_is_no_file_and_what_is_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**30 + 1)
    for name, words in (
        ("missing", "cannot be read: No such file"),
        (".", "cannot be read"),
        ("fifo", "cannot be read"),
        ("huge", "is no NPY file of numbers .it has over 1,073,741,824 bytes"),
    ):
        with pytest.raises(BadRequest, match=f"^z: .*{words}"):
            array_from_file("z", tmp_path / name)
