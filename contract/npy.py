"""Reading one ``.npy`` whose dtype and shape are known, so that nothing larger is ever unpacked."""

import math
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def read_npy(file: IO[bytes], dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array in ``file``, which may be a member of a zip archive.

    Raises:
        Exception: It is no such array. What a damaged header raises shares no base: ValueError,
            SyntaxError, RecursionError and, out of an archive, zipfile's and zlib's own.
    """
    dtype = np.dtype(dtype)
    if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("it is of another version of the format")
    found_shape, is_fortran, found_dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if (found_dtype, found_shape, is_fortran) != (dtype, shape, False):
        raise ValueError(f"it holds {found_dtype} {found_shape}, which should be {dtype} {shape}")
    size = dtype.itemsize * math.prod(shape)
    data = file.read(size)
    if len(data) != size or file.read(1):
        raise ValueError(f"it does not hold the {size:,} bytes that its header says")
    return np.frombuffer(data, dtype).reshape(shape)
