"""A network in 8-bit integers: an ONNX file in which numbers between operators are quantised."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout

from latentry.contract.wire import Arrays
from latentry.serving.runtime.engines import EngineMissing, Feeds
from latentry.serving.runtime.engines.telemetry import silence

SAMPLES = 512
"""How many samples' numbers decide which range eight bits cover."""


def quantized(network: bytes, feeds: Feeds) -> bytes:
    """Return ``network`` with weights and what goes into convolutions and products in int8.

    Weights by channel and symmetric, what goes between operators by tensor, over the ranges seen
    (NNCF's post-training quantisation, preset "mixed"). Weights take seven bits of the eight, as
    processors without VNNI add products up in 16 bits, which eight would overflow: what was
    quantised here is not to draw something else elsewhere. The file holds pairs of QuantizeLinear
    and DequantizeLinear, which ONNX Runtime and OpenVINO join with the operator between them.

    Args:
        network: An ONNX file without other files.
        feeds: What the network is fed with.

    Raises:
        EngineMissing: NNCF is not installed.
    """
    silence()
    try:
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            OverflowFix,
        )
    except ModuleNotFoundError as error:
        raise EngineMissing(
            f'int8 is made by NNCF, and {error.name} is not installed: pip install "latentry[int8]"'
        ) from error
    import onnx

    nncf.set_log_level(logging.ERROR)
    rows = feeds(SAMPLES)
    # Progress bars, where the command line may print JSON; and what NumPy thinks of its arithmetic.
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nncf.quantize(
            onnx.load_from_string(network),
            nncf.Dataset([*_one_by_one(rows)]),
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            subset_size=len(next(iter(rows.values()))),
        )
    return bytes(model.SerializeToString(deterministic=True))


def _one_by_one(rows: Arrays) -> Iterator[Arrays]:
    for index in range(len(next(iter(rows.values())))):
        yield {name: array[index : index + 1] for name, array in rows.items()}
