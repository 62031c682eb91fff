"""The formats of shards, by the names that a job gives them."""

from typing import Literal

from latentry.synthesis.sinks.npz import NPZ
from latentry.synthesis.sinks.parquet import PARQUET
from latentry.synthesis.sinks.shard_format import ShardFormat
from latentry.synthesis.sinks.webdataset import WEBDATASET

FormatName = Literal["webdataset", "parquet", "npz"]
FORMATS: dict[FormatName, ShardFormat] = {
    "webdataset": WEBDATASET,
    "parquet": PARQUET,
    "npz": NPZ,
}
