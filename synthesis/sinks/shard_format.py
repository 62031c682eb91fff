"""What a format of shards has to answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.sinks.output_data import SampleOutput
from latentry.synthesis.sinks.sample import Sample

# What a file may take beside its samples; more is nothing that was written here.
ROOM_OF_FILE = 64 * 2**10


@dataclass(frozen=True)
class ShardFormat:
    """A format of shards.

    Attributes:
        suffix: Ending of a file's name.
        write: Return the file of samples, given what makes a sample, what the model takes, and its
            digest.
        read: Yield so many samples of a file, given what makes a sample, and what the model takes.
        library: On whose version a file's bytes depend; empty for Python alone.
        pixels_only: Whether pictures are written as raw pixels and no other way.
        takes_features: Whether feature vectors can be written.
    """

    suffix: str
    write: Callable[[Sequence[Sample], Sequence[SampleOutput], GeneratorSpec, str], bytes]
    read: Callable[[BinaryIO, Sequence[SampleOutput], GeneratorSpec, int], Iterator[Sample]]
    library: str = ""
    pixels_only: bool = False
    takes_features: bool = False
