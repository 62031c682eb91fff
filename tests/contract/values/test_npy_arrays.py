import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentry.contract.values.npy import read_npy

ARRAY = np.arange(24, dtype=np.float32).reshape(4, 6)


def saved(array: NDArray[Any], version: tuple[int, int] = (1, 0)) -> io.BytesIO:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)  # type: ignore[no-untyped-call]
    return io.BytesIO(file.getvalue())


def test_an_array_survives_its_file() -> None:
    np.testing.assert_array_equal(read_npy(saved(ARRAY), np.float32, (4, 6)), ARRAY)


@pytest.mark.parametrize(
    "other", [ARRAY.astype(np.int32), ARRAY.reshape(6, 4), np.asfortranarray(ARRAY)]
)
def test_as_many_bytes_of_another_kind_are_no_such_array(other: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"which should be float32 \(4, 6\)"):
        read_npy(saved(other), np.float32, (4, 6))


def test_a_file_of_another_length_is_no_such_array() -> None:
    data = saved(ARRAY).getvalue()
    for bad in (data[:-1], data + b"\0"):
        with pytest.raises(ValueError, match="does not hold the 96 bytes"):
            read_npy(io.BytesIO(bad), np.float32, (4, 6))


def test_another_version_of_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match="another version of the format"):
        read_npy(saved(ARRAY, (2, 0)), np.float32, (4, 6))
