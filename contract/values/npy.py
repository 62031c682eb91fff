"""Reading one ``.npy``, so that nothing larger than expected is ever unpacked."""

import io
import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.files import open_regular

_MOST_BYTES = 2**30


def read_npy(
    file: IO[bytes], dtype: DTypeLike, shape: tuple[int, ...], *, largest: tuple[int, ...] = ()
) -> NDArray[Any]:
    """Return the array in ``file``, which may be a member of a zip archive.

    Args:
        file: The file.
        dtype: Its element type.
        shape: Its shape; -1 where an axis may have any length.
        largest: The largest shape, where one may.

    Raises:
        Exception: It is no such array. What a damaged header raises shares no base: ValueError,
            SyntaxError, RecursionError and, out of an archive, zipfile's and zlib's own.
    """
    dtype = np.dtype(dtype)
    if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("it is of another version of the format")
    found_shape, is_fortran, found_dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    fits = len(found_shape) == len(shape) and all(
        length == wanted or (wanted == -1 and 0 < length <= most)
        for length, wanted, most in zip(found_shape, shape, largest or shape, strict=True)
    )
    if not fits or (found_dtype, is_fortran) != (dtype, False):
        raise ValueError(f"it holds {found_dtype} {found_shape}, which should be {dtype} {shape}")
    size = dtype.itemsize * math.prod(found_shape)
    data = file.read(size)
    if len(data) != size or file.read(1):
        raise ValueError(f"it does not hold the {size:,} bytes that its header says")
    return np.frombuffer(data, dtype).reshape(found_shape)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return the ``.npy`` of an array of numbers."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def array_from_file(name: str, path: Path) -> NDArray[Any]:
    """Return the array in a user's ``.npy`` of up to 1 GiB; objects are never unpickled.

    Args:
        name: What it is for, for the message.
        path: The file.

    Raises:
        BadRequest: There is no such file, or it is no array of numbers.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise ValueError(f"it has over {_MOST_BYTES:,} bytes")
            array: NDArray[Any] = np.load(file, allow_pickle=False)
    except OSError as error:
        raise BadRequest(f"{name}: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged header raises shares no base
        raise BadRequest(f"{name}: {path} is no NPY file of numbers ({error})") from error
    return array
