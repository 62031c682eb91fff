"""What models take for which jobs are planned."""

from typing import Any

from numpy.typing import NDArray

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import Job

IMAGE = {"height": 8, "width": 8, "channels": 1}


Z = {"role": "z", "shape": [8]}


PLAIN = GeneratorSpec.model_validate({"inputs": [Z], "image": IMAGE})


DIGITS = GeneratorSpec.model_validate(
    {
        "inputs": [Z, {"role": "class_label", "classes": [str(i) for i in range(10)]}],
        "image": IMAGE,
    }
)


MAPPED = GeneratorSpec.model_validate(
    {
        "inputs": [
            Z,
            {"role": "class_label", "classes": ["cat", "dog", "emu", "fox"]},
            {"role": "w", "shape": [2, 3], "w_avg": [0, 0, 0]},
            {"role": "truncation_psi", "default": 0.5},
        ],
        "image": IMAGE,
    }
)


def controls_of(
    job: Job, seeds: NDArray[Any], labels: NDArray[Any] | None = None, spec: GeneratorSpec = MAPPED
) -> dict[str, NDArray[Any]]:
    """Return every control of a job that a model takes."""
    job.check(spec)
    return job.controls_of(spec, seeds, labels)
