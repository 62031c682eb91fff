"""Valid inputs for perf_analyzer, whose random defaults are all invalid."""

import json

from latentry.contract.spec import GeneratorSpec, Role

PERF_INPUT_FILE = "perf_input.json"

_ROWS = 64


def perf_input(spec: GeneratorSpec) -> bytes:
    """Return the ``--input-data`` file for perf_analyzer, whose random defaults are all invalid.

    Rows go through the seeds and the classes; controls are always there, so that every request has
    the same tensors and they batch together.
    """
    rows = []
    for seed in range(_ROWS):
        row: dict[str, list[int | float]] = {"seed": [seed]}
        if spec.classes:
            row[Role.CLASS_LABEL] = [seed % len(spec.classes)]
        if spec.w:
            row[Role.TRUNCATION_PSI] = [1.0]
        rows.append(row)
    return json.dumps({"data": rows}, indent=1).encode()
