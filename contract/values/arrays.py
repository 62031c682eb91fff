"""From whatever people hold numbers in to NumPy: one rule for all arguments; pure.

Arrays of any library by ``__array__`` or DLPack, single numbers by ``__index__`` (``__float__``
where fractions are meant), anything else that can be iterated, once. A bool is no number, a text no
list, nor are bytes; dicts and sets are refused, having no order of their own. Whatever the caller's
objects raise meanwhile is a BadRequest that names the argument.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest, LatentryError

_NO_LISTS = (str, bytes, bytearray, Mapping, set, frozenset)

# A row is read up to here: more than any latent has along one of its axes.
_MOST_IN_ROW = 65536 + 1


@contextmanager
def converting(name: str, allowed: str) -> Iterator[None]:
    """Turn what the caller's own objects raise in the block into a BadRequest."""
    try:
        yield
    except LatentryError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {_text(error, str)}".removesuffix(": ")
        raise BadRequest(f"{name} cannot be read ({what}); it takes {allowed}") from error


def without_generators(value: Any, *, most: int) -> Any:
    """Return ``value``; where its length is not known, its first ``most`` elements as a list."""
    if isinstance(value, Sized) or _is_array(value) or not isinstance(value, Iterable):
        return value
    return list(islice(value, most))


def replacing_texts(value: Any, number_of: Callable[[str], int], *, most: int) -> Any:
    """Return ``value`` with every text in it, or in a list of texts, replaced by its number."""
    if _is_array(value):
        if getattr(getattr(value, "dtype", None), "kind", "") not in ("U", "O"):
            return value
        value = value.tolist()
    if isinstance(value, str):
        return number_of(value)
    if not isinstance(value, Iterable) or isinstance(value, _NO_LISTS) or _is_raw_memory(value):
        return value
    elements = list(islice(value, most)) if not isinstance(value, list | range) else value
    if not any(isinstance(element, str) for element in elements[:most]):
        return elements
    return [number_of(e) if isinstance(e, str) else e for e in elements[:most]]


def integers(name: str, value: Any, allowed: str, *, most: int) -> NDArray[np.int64]:
    """Return ``value`` as an int64 array: of no dimensions for one number.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        allowed: What may be given, for the message.
        most: An iterable is read up to this many elements.

    Raises:
        BadRequest: It holds something else than integers, or one that takes more than 64 bits.
    """
    with converting(name, allowed):
        array = _array(name, value, allowed, "iu", most)
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise BadRequest(f"{name} {array.max()} does not fit in 64 bits; it takes {allowed}")
    return array.astype(np.int64, copy=False)


def numbers(name: str, value: Any, allowed: str, *, most: int) -> NDArray[np.float32]:
    """Return ``value`` as a contiguous float32 array; as :func:`integers`.

    Raises:
        BadRequest: It holds something else than numbers.
    """
    with converting(name, allowed):
        array = _array(name, value, allowed, "iuf", most)
    with np.errstate(over="ignore"):  # becomes infinity, which the check refuses
        return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def pixels(name: str, value: Any, allowed: str, *, most: int) -> NDArray[np.uint8]:
    """Return ``value`` as a contiguous uint8 array; as :func:`integers`.

    Raises:
        BadRequest: It holds something else than integers from 0 to 255.
    """
    with converting(name, allowed):
        array = _array(name, value, allowed, "iu", most)
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise BadRequest(
            f"{name} holds numbers from {array.min()} to {array.max()}; it takes {allowed}"
        )
    return np.ascontiguousarray(array, np.uint8).reshape(array.shape)


def integer(name: str, value: Any, allowed: str) -> int:
    """Return one integer; raises BadRequest."""
    try:
        array = integers(name, value, allowed, most=2)
    except BadRequest:
        raise BadRequest(f"{name}={shown(value)}; it takes {allowed}") from None
    if array.ndim:
        raise BadRequest(f"{name}={shown(value)}; it takes {allowed}")
    return int(array)


def number(name: str, value: Any, allowed: str) -> float:
    """Return one number; raises BadRequest."""
    with converting(name, allowed):
        array = _array(name, value, allowed, "iuf", most=2)
    if array.ndim:
        raise BadRequest(f"{name} has shape {list(array.shape)}; it takes {allowed}")
    return float(array)


def shown(value: Any) -> str:
    """Return ``value`` as messages show it: at most 60 characters; never raises."""
    text = _text(value, repr)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _array(name: str, value: Any, allowed: str, kinds: str, most: int) -> NDArray[Any]:
    """Return ``value`` as an array of one of ``kinds``, letters as of NumPy."""
    if isinstance(value, _NO_LISTS) or _is_raw_memory(value):
        raise BadRequest(f"{_shown(name, value)}; it takes {allowed}")
    if isinstance(value, np.ma.MaskedArray):
        raise BadRequest(
            f"{name} is a masked array, which may lack values; give .filled(...) or .compressed()"
        )
    if _is_array(value):
        array = _from_library(name, value, allowed)
        if array.dtype == np.object_:
            return _array(name, array.tolist(), allowed, kinds, most)
    elif isinstance(value, Iterable):
        array = _from_elements(name, list(islice(value, most)), allowed, kinds)
    else:
        array = _from_number(name, value, allowed, kinds)
    if array.dtype.kind in kinds or not array.size:
        return array
    if array.dtype.name == "bfloat16" and "f" in kinds:
        return array.astype(np.float32)
    first = array.flat[0]
    first = first.item() if isinstance(first, np.generic) else first
    raise BadRequest(f"{_shown(name, first)}; it takes {allowed}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def _is_raw_memory(value: Any) -> bool:
    """Whether it is bytes in disguise; a memoryview of larger numbers is a list of these."""
    return isinstance(value, memoryview) and value.format in ("B", "c")


def _from_library(name: str, value: Any, allowed: str) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()  # torch: out of the graph, off the device
    try:
        return _numpy(value)
    except Exception as error:
        if not hasattr(value, "float"):
            raise BadRequest(
                f"{name} is no array for NumPy ({error}); it takes {allowed}"
            ) from None
    # torch's bfloat16 is no type of NumPy's.
    return _numpy(value.float())


def _numpy(value: Any) -> NDArray[Any]:
    return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)


def _from_elements(name: str, elements: list[Any], allowed: str, kinds: str) -> NDArray[Any]:
    """Return an array of numbers, or of rows of the same shape."""
    types = set(map(type, elements))
    if types <= {int} or (types <= {int, float} and "f" in kinds):
        return _from_numbers(name, elements, allowed, np.int64 if types <= {int} else np.float64)
    # One row may be longer than there are rows.
    arrays = [_array(name, element, allowed, kinds, _MOST_IN_ROW) for element in elements]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        what = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise BadRequest(f"{name} holds rows of different shapes, {what}; it takes {allowed}")
    if {array.dtype.kind for array in arrays} <= set("iu"):
        return _from_numbers(name, [array.tolist() for array in arrays], allowed, np.int64)
    return np.stack(arrays)


def _from_number(name: str, value: Any, allowed: str, kinds: str) -> NDArray[Any]:
    try:
        if not isinstance(value, bool):
            return _from_numbers(name, operator.index(value), allowed, np.int64)
    except TypeError:
        if "f" in kinds and hasattr(value, "__float__"):
            return np.array(float(value))
    raise BadRequest(f"{_shown(name, value)}; it takes {allowed}")


def _from_numbers(name: str, values: Any, allowed: str, dtype: Any) -> NDArray[Any]:
    try:
        return np.array(values, dtype)
    except OverflowError:
        raise BadRequest(f"{name} does not fit in 64 bits; it takes {allowed}") from None


def _shown(name: str, value: Any) -> str:
    return f"{name} holds {shown(value)}, a {type(value).__name__}"


def _text(value: Any, convert: Callable[[Any], str]) -> str:
    try:
        return convert(value)
    except Exception:  # the caller's own, or an integer of more digits than Python writes
        return f"<{type(value).__name__}>"
