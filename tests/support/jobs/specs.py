"""What models take for which jobs are planned."""

from typing import Any

from numpy.typing import NDArray
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import Job

IMAGE = image(8, 8, 1)


Z = z(8)


PLAIN = make_spec([Z], [IMAGE])


DIGITS = make_spec([Z, classes(*map(str, range(10)))], [IMAGE])


MAPPED = make_spec(
    [Z, classes("cat", "dog", "emu", "fox"), w(2, 3), psi(default=0.5)],
    [IMAGE],
    stages_of_stylegan(w_avg=[0, 0, 0]),
)


def inputs_of(
    job: Job, seeds: NDArray[Any], labels: NDArray[Any] | None = None, spec: GeneratorSpec = MAPPED
) -> dict[str, NDArray[Any]]:
    """Return every input of one number that a model takes, as a job gives it."""
    job.check(spec)
    return job.inputs_of(spec, seeds, labels)
