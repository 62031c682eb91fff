"""What the networks of a model are fed with while an engine finds out which range numbers have."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.contract.wire import Arrays, input_row_bytes
from latentry.export.proofs.proof_bench import EngineBench, draw_rows
from latentry.serving.runtime.engines import Engine, Feeds

FIRST_SEED = 2**31
"""Calibration draws from here on: none of these seeds is one that a proof or a gate judges by."""

MOST_EXAMPLES = 512
"""Of what is not drawn, so many examples at most; a gate judges by those that come after them."""

_MOST_BYTES = 256 * 2**20
_TOGETHER = 16


def feeds_of(
    spec: GeneratorSpec, reference: Mapping[str, Engine], pictures: Arrays
) -> dict[str, Feeds]:
    """Return what each network is fed with, by its name: what FP32 makes of other seeds.

    ``pictures`` are rows of inputs, which are gone through again and again.
    """
    bench = EngineBench(spec, reference)
    return {
        stage.network: partial(_feed, bench, stage, pictures)
        for stage in spec.pipeline
        if isinstance(stage, NetworkStage)
    }


def _feed(bench: EngineBench, stage: NetworkStage, pictures: Arrays, count: int) -> Arrays:
    spec = bench.spec
    row_bytes = spec.row_bytes(Format.FLOAT) + input_row_bytes(spec, [i.name for i in spec.inputs])
    count = max(1, min(count, MOST_EXAMPLES, _MOST_BYTES // row_bytes))
    rows = draw_rows(spec, count, first_seed=FIRST_SEED)
    rows |= {name: values[np.arange(count) % len(values)] for name, values in pictures.items()}
    if set(stage.takes) <= rows.keys():
        return bench.feed(stage, rows)
    return bench.feed(stage, {**rows, **bench.run_onnx(rows, _TOGETHER)})
