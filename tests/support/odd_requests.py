"""Requests that no client of ours would send, drawn from a seed.

They go without the header ``triton_grpc_error``: with it any error kills Triton 2.51 some time.
"""

import random
import struct
from typing import Any

from tritonclient.grpc import service_pb2

MODELS = (
    "wide",
    "digits",
    "mapped",
    "wide.stream",
    "nobody",
    "",
    "../wide",
    "wide\0",
    "x" * 300,
)
NAMES = (
    *("seed", "z", "w", "class_label", "truncation_psi", "format", "model", "count", "chunk_size"),
    *("image", "image.sample", "image.encoded", "index", "", "nobody", "seed\0", "é" * 50),
)
DATATYPES = (
    *("INT64", "FP32", "BYTES", "UINT8", "INT32", "FP16", "FP64", "BOOL", "UINT64", "BF16"),
    *("", "int64", "STRING", "COMPLEX"),
)
NUMBERS = (0, 1, 2, 7, 32, 33, -1, -(2**63), 2**63 - 1, 2**31, 2**32, 4096, 10**6)
SOUND_LENGTHS = tuple(number for number in NUMBERS if -1 <= number < 2**32)
TEXTS = (b"", b"raw", b"png", b"float", b"gif", b"\xff\xfe", b"wide", b"nobody", b"x" * 300)
PARAMETERS = (
    *("sequence_id", "sequence_start", "priority", "timeout", "continues", "latentry_from_stream"),
    *("triton_enable_empty_final_response", "triton_final_response", "shared_memory_region"),
    *("binary_data", "headers", "", "x" * 300),
)


class OddRequests:
    """Draws odd requests; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lengths: tuple[int, ...] = NUMBERS

    def request(self, *models: str) -> bytes:
        """Return one serialized request, to one of ``models`` more often than not.

        Where a dimension is free, as in the stream model, a negative length (but -1) or one whose
        bytes overflow 64 bits ends the process of the model; those are left out there.
        """
        self._lengths = SOUND_LENGTHS if "wide.stream" in models else NUMBERS
        choose = self._random.choice
        request = service_pb2.ModelInferRequest(
            model_name=choose(models) if self._often() else choose(MODELS),
            model_version=choose(("", "", "", "1", "2", "x", "-1")),
            id=choose(("", "", "7", "x" * 300, "é\n")),
        )
        for _ in range(choose((0, 1, 1, 2, 2, 3, 6))):
            self._add_input(request)
        for _ in range(choose((0, 0, 0, 1, 2))):
            output = request.outputs.add(name=choose(NAMES))
            self._add_parameter(output.parameters)
        for _ in range(choose((0, 0, 0, 1, 2))):
            self._add_parameter(request.parameters)
        if self._random.random() < 0.1:
            request.raw_input_contents.append(self._random.randbytes(choose((0, 1, 8, 100))))
        return self._damaged(request.SerializeToString())

    def _often(self) -> bool:
        return self._random.random() < 0.9

    def _add_input(self, request: Any) -> None:
        choose = self._random.choice
        name, datatype, shape, raw = self._valid_tensor()
        if not self._often():
            name = choose(NAMES)
        if not self._often():
            datatype = choose(DATATYPES)
        if not self._often():
            shape = [choose(self._lengths) for _ in range(choose((0, 1, 2, 3, 9)))]
        if not self._often():
            raw = raw[: choose((0, 1, 3, 4, 7))] + self._random.randbytes(choose((0, 1, 5)))
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if self._random.random() < 0.1:
            self._add_parameter(tensor.parameters)
        if self._random.random() < 0.1:
            tensor.contents.int64_contents.extend([choose(NUMBERS)] * choose((1, 3)))
        if self._often() or self._random.random() < 0.5:
            request.raw_input_contents.append(raw)

    def _valid_tensor(self) -> tuple[str, str, list[int], bytes]:
        choose = self._random.choice
        rows = choose((1, 1, 2, 8, 33))
        kind = choose(("seed", "seed", "flat seed", "z", "class_label", "text", "text"))
        if kind in ("seed", "class_label"):
            return kind, "INT64", [rows, 1], struct.pack(f"<{rows}q", *[choose(NUMBERS)] * rows)
        if kind == "flat seed":
            return "seed", "INT64", [rows], struct.pack(f"<{rows}q", *[choose(NUMBERS)] * rows)
        if kind == "z":
            values = [choose((0.0, 1.0, float("nan"), float("inf"), 1e38))] * (16 * rows)
            return "z", "FP32", [rows, 16], struct.pack(f"<{16 * rows}f", *values)
        text = choose(TEXTS)
        length = len(text) if self._often() else choose((0, 1, 10, 2**31, 2**32 - 1))
        return "format", "BYTES", choose(([1], [1, 1])), struct.pack("<I", length) + text

    def _add_parameter(self, parameters: Any) -> None:
        choose = self._random.choice
        value = parameters[choose(PARAMETERS)]
        kind = choose(("bool_param", "int64_param", "string_param", "double_param", "none"))
        if kind == "bool_param":
            value.bool_param = True
        elif kind == "int64_param":
            value.int64_param = choose(NUMBERS)
        elif kind == "string_param":
            value.string_param = choose(("", "x", "x" * 1_000))
        elif kind == "double_param":
            value.double_param = choose((0.0, float("nan"), -1.0))

    def _damaged(self, message: bytes) -> bytes:
        """Flip a few bits, now and then: most of those are no protocol buffers any more."""
        if message and self._random.random() < 0.1:
            damaged = bytearray(message)
            for _ in range(self._random.choice((1, 3))):
                damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
            return bytes(damaged)
        return message
