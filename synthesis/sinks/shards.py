"""Files of samples: WebDataset tar, Parquet and NPZ, the same bytes for the same samples.

Nothing of the time, the user or the machine goes into a file; what the libraries that write it add
depends on their versions, which :func:`encoder_versions` names.
"""

import hashlib
import io
import json
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import features as pillow_features

from latentry.contract.files import parse_json
from latentry.contract.formats import Format
from latentry.contract.images import Uint8, decode_image, encode_image
from latentry.contract.npy import read_npy
from latentry.contract.spec import ImageOutput, Role
from latentry.synthesis.job import OutputPart

SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet", "npz": ".npz"}
_NPY = "npy"
_BLOCK = tarfile.BLOCKSIZE
# The largest feature vector.
MOST_FEATURES = 2**20
# What one sample may take beside its pixels, and a file beside its samples; more is nothing that
# was written here.
_ROOM, _ROOM_OF_FILE = 8 * 2**10, 64 * 2**10
_SHA256_CHARACTERS = 64
_CONTROLS = {Role.CLASS_LABEL.value, Role.TRUNCATION_PSI.value}


@dataclass(frozen=True)
class Sample:
    """One accepted sample as it goes into a shard.

    Attributes:
        index: Its place in the whole job.
        seed: What it was drawn from.
        controls: Every control in effect, by role.
        sha256: Hexadecimal SHA-256 of its pixels, uint8 [H, W, C].
        data: The image as it is written: a file's bytes, raw pixels, or empty.
        features: float32 [D]; empty where none are written.
    """

    index: int
    seed: int
    controls: Mapping[str, Any]
    sha256: str
    data: bytes
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def shard_stem(number: int, shards: int) -> str:
    """Return the name of shard ``number`` without its suffix, such as ``shard-000012``."""
    digits = max(6, len(str(shards - 1)))
    return f"shard-{number:0{digits}d}"


def pixel_sha256(image: Uint8) -> str:
    """Return the SHA-256 of the pixels of uint8 [H, W, C], as in the goldens."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def encoder_versions(output: OutputPart) -> dict[str, str]:
    """Return the versions of the libraries on which a shard's bytes depend."""
    versions = {"shards": "1"}
    if output.format == "parquet":
        versions["pyarrow"] = version("pyarrow")
    if output.format == "npz":
        versions["numpy"] = version("numpy")
    if output.image == "png":
        versions["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    if output.image == "webp":
        versions["webp"] = str(pillow_features.version_module("webp"))
    return versions


def data_from_image(image: Uint8, image_format: str) -> bytes:
    """Return uint8 [H, W, C] as ``png`` or ``webp`` file, as ``raw`` pixels, or nothing."""
    if image_format == "none":
        return b""
    if image_format == "raw":
        return image.tobytes()
    return encode_image(image, Format(image_format))


def image_from_data(data: bytes, image_format: str, image: ImageOutput) -> Uint8:
    """Return uint8 [H, W, C] of what :func:`data_from_image` gave."""
    if image_format == "raw":
        return np.frombuffer(data, np.uint8).reshape(image.row_shape)
    return decode_image(data, image.channels, size=(image.height, image.width))


def shard_bytes(
    samples: Sequence[Sample], output: OutputPart, image: ImageOutput, model_digest: str
) -> bytes:
    """Return a shard's file.

    Args:
        samples: What it holds, in order.
        output: How it is written.
        image: Size of the images.
        model_digest: The model that drew them.
    """
    write: Callable[..., bytes] = {
        "webdataset": _webdataset, "parquet": _parquet, "npz": _npz,
    }[output.format]  # fmt: skip
    return write(samples, output.image, image, model_digest)


def read_shard(
    file: BinaryIO, output: OutputPart, image: ImageOutput, count: int
) -> Iterator[Sample]:
    """Yield the ``count`` samples of a shard's file; their ``sha256`` is that of the pixels found.

    Nothing larger than such samples is unpacked, whatever the file says of itself.

    Raises:
        Exception: The file is not what :func:`shard_bytes` writes. What the libraries that read it
            raise shares no base.
    """
    read: Callable[..., Iterator[Sample]] = {
        "webdataset": _read_webdataset, "parquet": _read_parquet, "npz": _read_npz,
    }[output.format]  # fmt: skip
    return read(file, output.image, image, count)


def most_shard_bytes(output: OutputPart, image: ImageOutput, count: int) -> int:
    """Return the largest size that a file of ``count`` samples may have."""
    features = 4 * MOST_FEATURES if output.features else 0
    return _ROOM_OF_FILE + count * (_most_bytes(image) + features)


def _sidecar(sample: Sample, model_digest: str) -> bytes:
    facts = {
        "index": sample.index,
        "seed": sample.seed,
        **{name: number_from_scalar(value) for name, value in sample.controls.items()},
        "model_digest": model_digest,
        "sha256": sample.sha256,
    }
    return json.dumps(facts, separators=(",", ":")).encode()


def number_from_scalar(value: Any) -> int | float:
    """Return a control's value as it is written for people."""
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return float(str(value)) if isinstance(value, np.floating) else int(value)


def _webdataset(
    samples: Sequence[Sample], image_format: str, image: ImageOutput, model_digest: str
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            key = f"{sample.index:010d}"
            # Sorted by name, as tar --sort=name would: json before png, npy after it.
            members = {"json": _sidecar(sample, model_digest)}
            if image_format == "raw":
                members[_NPY] = _npy_bytes(sample.data, image)
            else:
                members[image_format] = sample.data
            for suffix, data in sorted(members.items()):
                # A TarInfo's defaults: no time, no owner, mode 0644.
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _npy_bytes(data: bytes, image: ImageOutput) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, image_from_data(data, "raw", image), allow_pickle=False)
    return buffer.getvalue()


def _read_webdataset(
    file: BinaryIO, image_format: str, image: ImageOutput, count: int
) -> Iterator[Sample]:
    for _ in range(count):
        # Sorted by name: json before png, npy after it.
        name, body = _read_member(file, image)
        members = {name.partition(".")[2]: body}
        name, body = _read_member(file, image)
        members[name.partition(".")[2]] = body
        facts = parse_json(members["json"])
        if image_format == "raw":
            data = read_npy(io.BytesIO(members[_NPY]), np.uint8, image.row_shape).tobytes()
        else:
            data = members[image_format]
        yield _found(facts, data, image_format, image)
    if file.read(_BLOCK).strip(b"\0"):
        raise ValueError("it holds more samples than its record says")


def _read_member(file: BinaryIO, image: ImageOutput) -> tuple[str, bytes]:
    """Return the name and the bytes of a tar file's next member, a plain and small one."""
    member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "strict")
    if member.type != tarfile.REGTYPE or not 0 <= member.size <= _most_bytes(image):
        raise ValueError(f"its member {member.name!r} has {member.size:,} bytes")
    padded = math.ceil(member.size / _BLOCK) * _BLOCK
    body = file.read(padded)
    if len(body) != padded:
        raise ValueError("it is truncated")
    return member.name, body[: member.size]


def _most_bytes(image: ImageOutput) -> int:
    """Return what one sample's image may take as a file, however badly it compresses."""
    return 2 * image.row_bytes + _ROOM


def _found(facts: Any, data: bytes, image_format: str, image: ImageOutput) -> Sample:
    known = {"index", "seed", "model_digest", "sha256"}
    return Sample(
        index=facts["index"],
        seed=facts["seed"],
        controls={key: _number(value) for key, value in facts.items() if key not in known},
        sha256=pixel_sha256(image_from_data(data, image_format, image)),
        data=data,
    )


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float) or not -(2**63) <= value < 2**63:
        raise ValueError("a control is no number that any model takes")
    return value


def _columns(samples: Sequence[Sample]) -> dict[str, NDArray[Any]]:
    names = samples[0].controls if samples else ()
    return {
        "index": np.array([sample.index for sample in samples], np.int64),
        "seed": np.array([sample.seed for sample in samples], np.int64),
        **{name: np.array([sample.controls[name] for sample in samples]) for name in names},
    }


def _parquet(
    samples: Sequence[Sample], image_format: str, image: ImageOutput, model_digest: str
) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: pyarrow.array(values) for name, values in _columns(samples).items()}
    columns["sha256"] = pyarrow.array([sample.sha256 for sample in samples], pyarrow.string())
    if image_format != "none":
        columns["image"] = pyarrow.array([sample.data for sample in samples], pyarrow.binary())
    if samples and samples[0].features.size:
        vectors = np.stack([sample.features for sample in samples])
        flat = pyarrow.array(vectors.reshape(-1))
        columns["features"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    facts = {
        "model_digest": model_digest,
        "image": image_format,
        "shape": json.dumps(list(image.row_shape)),
    }
    table = pyarrow.table(columns).replace_schema_metadata(facts)
    buffer = io.BytesIO()
    # Files of images do not compress any further; the other columns do.
    plain = ["image"] if image_format in ("png", "webp") else []
    compression = {name: "NONE" if name in plain else "SNAPPY" for name in columns}
    pyarrow.parquet.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


def _read_parquet(
    file: BinaryIO, image_format: str, image: ImageOutput, count: int
) -> Iterator[Sample]:
    import pyarrow.parquet

    # A value that stands there once and is named a million times is not unpacked a million times;
    # encodings that grow from one value to the next cannot be read like this, and are refused.
    texts = {"sha256": (_SHA256_CHARACTERS, _SHA256_CHARACTERS)}
    if image_format != "none":
        texts["image"] = (0, _most_bytes(image))
    parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=list(texts))
    names = _checked_columns(parquet, image_format)
    _check_sizes(parquet.metadata, names, count, _ROOM_OF_FILE + count * _most_bytes(image))
    for batch in parquet.iter_batches(batch_size=256, columns=names):
        columns = {name: batch.column(name) for name in names}
        for name, (least, most) in texts.items():
            _check_lengths(name, columns[name].dictionary, least, most)
        for place in range(batch.num_rows):
            row = {name: column[place].as_py() for name, column in columns.items()}
            # Without images there is only the recorded hash to go by.
            found = row["sha256"]
            if image_format != "none":
                found = pixel_sha256(image_from_data(row["image"], image_format, image))
            yield Sample(
                index=row["index"],
                seed=row["seed"],
                controls={key: _number(row[key]) for key in _CONTROLS & row.keys()},
                sha256=found,
                data=row.get("image", b""),
            )


def _checked_columns(parquet: Any, image_format: str) -> list[str]:
    """Return the names of the columns to read; feature vectors are not."""
    import pyarrow

    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    files = pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())
    needed = {"index": pyarrow.int64(), "seed": pyarrow.int64(), "sha256": texts}
    if image_format != "none":
        needed["image"] = files
    allowed = {**needed, "class_label": pyarrow.int64(), "truncation_psi": pyarrow.float32()}
    if len(parquet.schema_arrow) > len(allowed) + 1:
        raise ValueError(f"it holds {len(parquet.schema_arrow)} columns")
    names = list(parquet.schema_arrow.names)
    for field_ in parquet.schema_arrow:
        kind = field_.type
        if field_.name == "features" and pyarrow.types.is_fixed_size_list(kind):
            fits = kind.value_type == pyarrow.float32() and kind.list_size <= MOST_FEATURES
        else:
            fits = kind == allowed.get(field_.name)
        if not fits:
            raise ValueError(f"its column {field_.name} holds {kind}")
    if len(set(names)) < len(names) or not needed.keys() <= set(names):
        raise ValueError(f"its columns are {', '.join(names)}")
    return [name for name in names if name != "features"]


def _check_sizes(facts: Any, names: Sequence[str], count: int, most: int) -> None:
    """Refuse a file whose columns ``names`` hold another number of rows, or more than ``most``."""
    if facts.num_rows != count:
        raise ValueError(f"it holds {facts.num_rows} rows")
    for group in range(facts.num_row_groups):
        for column in range(facts.num_columns):
            chunk = facts.row_group(group).column(column)
            if chunk.path_in_schema in names and (
                max(chunk.total_compressed_size, chunk.total_uncompressed_size) > most
            ):
                raise ValueError(
                    f"its column {chunk.path_in_schema} takes {chunk.total_uncompressed_size:,} "
                    "bytes"
                )


def _check_lengths(name: str, values: Any, least: int, most: int) -> None:
    """Refuse texts or files of a column that are shorter than ``least`` or longer than ``most``."""
    import pyarrow.compute

    ends = pyarrow.compute.min_max(pyarrow.compute.binary_length(values)).as_py()
    if len(values) and not least <= ends["min"] <= ends["max"] <= most:
        raise ValueError(f"its column {name} has values of {ends['min']} to {ends['max']:,} bytes")


def _npz(
    samples: Sequence[Sample], image_format: str, image: ImageOutput, model_digest: str
) -> bytes:
    pixels = np.frombuffer(b"".join(sample.data for sample in samples), np.uint8)
    arrays: dict[str, NDArray[Any]] = {
        "images": pixels.reshape(len(samples), *image.row_shape),
        **_columns(samples),
        "model_digest": np.array(model_digest),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class _CarefulFile:
    """A file of which up to ``most`` bytes are read at once: zipfile reads a whole directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.most: int | None = _ROOM_OF_FILE
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes, or up to the end."""
        if self.most is None:
            return self._read(size)
        data = self._read(self.most + 1 if size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise ValueError(f"its directory takes over {self.most:,} bytes")
        return data


def _read_npz(
    file: BinaryIO, image_format: str, image: ImageOutput, count: int
) -> Iterator[Sample]:
    careful = _CarefulFile(file)
    with zipfile.ZipFile(careful) as archive:
        names = [name.removesuffix(f".{_NPY}") for name in archive.namelist()]
        if odd := set(names) - {"images", "model_digest", "index", "seed", *_CONTROLS}:
            raise ValueError(f"it holds {min(odd)[:100]}")
        careful.most = None
        columns = {
            name: _read_column(archive, name, count)
            for name in names
            if name not in ("images", "model_digest")
        }
        with archive.open(f"images.{_NPY}") as member:
            images = read_npy(member, np.uint8, (count, *image.row_shape))
    for place, pixels in enumerate(images):
        row = {name: values[place].item() for name, values in columns.items()}
        yield Sample(
            index=row.pop("index"),
            seed=row.pop("seed"),
            controls=row,
            sha256=pixel_sha256(pixels),
            data=pixels.tobytes(),
        )


def _read_column(archive: zipfile.ZipFile, name: str, count: int) -> NDArray[Any]:
    """Return a column of numbers, [count]; psi is the only one that is not of integers."""
    dtype = np.float32 if name == Role.TRUNCATION_PSI else np.int64
    with archive.open(f"{name}.{_NPY}") as member:
        return read_npy(member, dtype, (count,))
