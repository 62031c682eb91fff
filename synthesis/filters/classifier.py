"""The filter ``classifier``: images that a network takes for another class than was asked for."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from latentry.contract.errors import BadRequest
from latentry.synthesis.filters.judging import Candidates, Filter
from latentry.synthesis.filters.network import ImageNetwork, NetworkOptions, load_network


class ClassifierOptions(NetworkOptions):
    """Reject images that a classifier takes for another class than the one asked for.

    Attributes:
        min_probability: Also reject those to which it gives the class less than this.
        labels: Class labels of the classifier's outputs, where they are not 0, 1, 2, ...
    """

    kind: Literal["classifier"]
    min_probability: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    labels: tuple[int, ...] | None = None

    def load(self) -> Filter:
        """Return the filter."""
        return _Classifier(self, load_network(self))


class _Classifier:
    def __init__(self, options: ClassifierOptions, network: ImageNetwork) -> None:
        self._options = options
        self._network = network

    def judge(self, candidates: Candidates) -> list[str | None]:
        output = self._network.run(candidates.images)
        asked = candidates.labels
        if asked is None:
            raise BadRequest("the filter classifier needs samples of a class; this model has none")
        found, sure = self._answers(output)
        reasons: list[str | None] = []
        for label, wanted, probability in zip(found.tolist(), asked.tolist(), sure, strict=True):
            if label != wanted:
                reasons.append(f"classified as {label}")
            elif probability < self._options.min_probability:
                reasons.append("classified with low probability")
            else:
                reasons.append(None)
        return reasons

    def _answers(self, output: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the class labels [N] in a network's output, and how likely each is, [N]."""
        if output.dtype.kind not in "iuf":
            raise BadRequest(f"{self._options.file} answers {output.dtype}; it must answer numbers")
        if output.dtype.kind in "iu" and output.size == len(output):
            if self._options.min_probability:
                raise BadRequest(
                    f"{self._options.file} answers labels alone; for min_probability name its "
                    "output of probabilities with output"
                )
            return output.reshape(-1), np.ones(len(output))
        probabilities = _probabilities(output.reshape(len(output), -1))
        if not np.isfinite(probabilities).all() or probabilities.shape[1] < 2:
            raise BadRequest(
                f"{self._options.file} gave {output[:1].tolist()} for an image; a classifier "
                "gives a finite number for each class"
            )
        labels = np.array(self._options.labels or range(probabilities.shape[1]))
        if len(labels) != probabilities.shape[1]:
            raise BadRequest(
                f"{self._options.file} has {probabilities.shape[1]} outputs, the job names "
                f"{len(labels)} labels"
            )
        return labels[probabilities.argmax(axis=1)], probabilities.max(axis=1)


def _probabilities(output: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities [N, K] of probabilities or logits, each row for itself."""
    values = output.astype(np.float64)
    ready = (values >= 0).all(axis=1) & np.isclose(values.sum(axis=1), 1, atol=1e-3)
    with np.errstate(invalid="ignore"):  # NaN and infinity are told of by who asked
        powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return np.where(ready[:, None], values, shares)
