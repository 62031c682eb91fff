"""Whether a batch may be computed as one: the proof, and what is done where rows round otherwise.

Where an operator of ONNX Runtime rounds a row otherwise beside other rows, each row is computed in
a run of its own: identity then holds by construction. Where rows reach each other, nothing helps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import WATCH, GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import eval_copy
from latentry.export.proofs.first_difference import first_difference
from latentry.export.proofs.parity import MIXING, RowsDiffer, batch_sizes, prove, scale_of
from latentry.export.proofs.proof_bench import ProofBench, count_rows, draw_rows, load_engines
from latentry.export.proofs.speed import relative_speed
from latentry.serving.entries.manifests import Parity, RowMode

ROUNDING = 1e-5
"""Largest difference between batches that is taken for rounding, for values of up to 1."""

_LEAST_ROWS = 16


@dataclass(frozen=True)
class RowFinding:
    """What a proof found about rows.

    Attributes:
        parity: The proof's figures.
        mode: How rows must be computed.
        apart: Largest difference between a row in a batch and alone, in units of the output's
            largest value; 0 where there is none.
        operator: The first one that differs, in words; None where none does for itself.
        speed: Images per second in single rows over those in largest batches; None for batches.
    """

    parity: Parity
    mode: RowMode
    apart: float = 0.0
    operator: str | None = None
    speed: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know of it: nothing where batches are computed as one."""
        if self.mode == "batch":
            return ()
        cause = self.operator or "a group of operators that ONNX Runtime joins"
        return (
            f"{cause} gives a row another rounding beside other rows (up to {self.apart:.1e} of "
            "the range), so each row is computed alone, which draws "
            f"{self.speed:.2f} times as many images a second",
        )


def prove_rows(
    module: nn.Module,
    spec: GeneratorSpec,
    artefacts: Mapping[str, bytes],
    max_batch_size: int,
    *,
    single: bool = False,
) -> RowFinding:
    """Prove ``artefacts`` as :func:`~latentry.export.proofs.parity.prove` does, rows alone if need.

    Args:
        module: The generator in PyTorch.
        spec: What it takes and gives.
        artefacts: File name to ONNX bytes.
        max_batch_size: The largest batch to be served.
        single: Compute rows alone also where they differ by more than rounding.

    Raises:
        ExportRefused: A proof failed; rows reach each other; or they differ by more than rounding
            and ``single`` was not said.
    """
    try:
        return RowFinding(prove(module, spec, artefacts, max_batch_size), "batch")
    except RowsDiffer as error:
        bench = ProofBench(spec, load_engines(spec, artefacts, threads=1), eval_copy(module))
        apart, operator = _judge(error, bench, artefacts, max_batch_size)
        if apart > ROUNDING and not single:
            raise ExportRefused(_too_far(error, apart, operator)) from error
    parity = prove(module, spec, artefacts, max_batch_size, row_mode="single")
    speed = relative_speed(
        spec,
        load_engines(spec, artefacts),
        load_engines(spec, artefacts, rows="single"),
        max_batch_size,
    )
    return RowFinding(parity, "single", apart, operator, speed)


def _judge(
    error: RowsDiffer, bench: ProofBench, artefacts: Mapping[str, bytes], max_batch_size: int
) -> tuple[float, str | None]:
    """Return how far rows are apart by the batch, and the first operator where they are.

    Raises:
        ExportRefused: It is more than the batch's size and the place in it that changes them.
    """
    rows = draw_rows(bench.spec, max(2 * max_batch_size, _LEAST_ROWS))
    shared = replace(bench, engines=load_engines(bench.spec, artefacts))
    alone = bench.run_onnx(rows, 1)
    apart = {
        size: max(_apart(alone, each.run_onnx(rows, size)) for each in (bench, shared))
        for size in batch_sizes(max_batch_size)
    }
    if not any(apart.values()):
        raise error
    if _reach_each_other(bench, rows):
        raise ExportRefused(
            f"{error.what}, and it changes with what the other rows hold: {MIXING}"
        ) from error
    size = next(size for size, found in apart.items() if found)
    return max(apart.values()), _first_operator(bench, artefacts, rows, size)


def _apart(alone: Arrays, together: Arrays) -> float:
    """Return how far outputs are apart, in units of each one's largest value or of 1.

    Of what was made of floats, levels and labels, those floats tell.
    """
    return max(
        float(np.abs(together[name].astype(np.float64) - values).max()) / scale_of(values)
        for name, values in alone.items()
        if name != WATCH and f"{name}.sample" not in alone
    )


def _reach_each_other(bench: ProofBench, rows: Arrays) -> bool:
    """Whether a sample changes when other rows of its batch hold something else.

    Rounding changes with the place and the size of a batch alone.
    """
    count = count_rows(rows) // 2
    own = {name: values[:count] for name, values in rows.items()}
    drawn = bench.run_onnx(own, count)
    for kept in (0, 1):
        other = {name: values[count : 2 * count].copy() for name, values in rows.items()}
        for name, values in other.items():
            values[kept::2] = own[name][kept::2]
        again = bench.run_onnx(other, count)
        if any((again[name][kept::2] != drawn[name][kept::2]).any() for name in drawn):
            return True
    return False


def _first_operator(
    bench: ProofBench, artefacts: Mapping[str, bytes], rows: Arrays, size: int
) -> str | None:
    """Return the first operator that differs in the batches of ``size`` into which ``rows`` go."""
    board = {**rows, **bench.run_onnx(rows, 1)}
    for stage in bench.spec.pipeline:
        if not isinstance(stage, NetworkStage):
            continue
        inputs = bench.feed(stage, board)
        for start in range(0, count_rows(inputs), size):
            part = {name: values[start : start + size] for name, values in inputs.items()}
            if found := first_difference(artefacts[f"{stage.network}.onnx"], part):
                return found
    return None


def _too_far(error: RowsDiffer, most: float, operator: str | None) -> str:
    first = f"; the first operator that differs is {operator}" if operator else ""
    return (
        f"{error.what}. In all, up to {most:.1e} of the output's range, more than rounding "
        f"explains ({ROUNDING:.0e}){first}. No row reaches another one, so with --rows single it "
        "can be published: each row is then computed in a run of its own"
    )
