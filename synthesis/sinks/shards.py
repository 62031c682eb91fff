"""Files of samples: WebDataset tar, Parquet and NPZ, the same bytes for the same samples.

Nothing of the time, the user or the machine goes into a file; what the libraries that write it add
depends on their versions, which :func:`encoder_versions` names.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import BinaryIO

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.facts import Facts
from latentry.synthesis.sinks.formats import FORMATS
from latentry.synthesis.sinks.output_data import image_encoder_versions
from latentry.synthesis.sinks.sample import MOST_FEATURES, Sample
from latentry.synthesis.sinks.shard_format import ROOM_OF_FILE


def shard_stem(number: int, shards: int) -> str:
    """Return the name of shard ``number`` without its suffix, such as ``shard-000012``."""
    digits = max(6, len(str(shards - 1)))
    return f"shard-{number:0{digits}d}"


def encoder_versions(output: OutputPart, spec: GeneratorSpec) -> dict[str, str]:
    """Return the versions of the libraries on which a shard's bytes depend."""
    library = FORMATS[output.format].library
    versions = {library: version(library)} if library else {}
    return {"shards": "2", **versions, **image_encoder_versions(output.of_sample(spec))}


def shard_bytes(
    samples: Sequence[Sample], output: OutputPart, spec: GeneratorSpec, model_digest: str
) -> bytes:
    """Return a shard's file.

    Args:
        samples: What it holds, in order.
        output: How it is written.
        spec: What the model takes and gives.
        model_digest: The model that drew them.
    """
    return FORMATS[output.format].write(samples, output.of_sample(spec), spec, model_digest)


def read_shard(
    file: BinaryIO, output: OutputPart, spec: GeneratorSpec, count: int
) -> Iterator[Sample]:
    """Yield the ``count`` samples of a shard's file; their ``sha256`` is that of what was found.

    Nothing larger than such samples is unpacked, whatever the file says of itself.

    Raises:
        Exception: The file is not what :func:`shard_bytes` writes. What the libraries that read it
            raise shares no base.
    """
    return FORMATS[output.format].read(file, output.of_sample(spec), spec, count)


def most_shard_bytes(output: OutputPart, spec: GeneratorSpec, count: int) -> int:
    """Return the largest size that a file of ``count`` samples may have."""
    most = sum(item.most_bytes for item in output.of_sample(spec)) + Facts(spec).most_bytes
    features = 4 * MOST_FEATURES if output.features else 0
    return ROOM_OF_FILE + count * (most + features)
