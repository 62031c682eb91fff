"""Ask a running server for its goldens, the way any client would.

No inference carries a gRPC deadline: bursts of them
crash Triton 2.51, so a late answer is abandoned on this side.
"""

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from latentry.contract.errors import ServeError
from latentry.serving.entries.goldens import (
    GoldenVerdict,
    compare_with_goldens,
    goldens_to_meet,
    save_worst_pair,
)
from latentry.serving.entries.repository import Entry
from latentry.serving.runtime.engines.registry import expected_class
from latentry.serving.server.probe import DIRECT

_QUESTION_S = 2.0
_AGAIN_S = 0.1


class NoGolden(Exception):
    """The server did not answer at all, right or wrong; another start may help."""


class QueueFull(NoGolden):
    """The server has more requests than it lets wait."""


class Pending:
    """A golden that was asked for and may be answered later."""

    def __init__(self) -> None:
        self._answers: queue.Queue[InferResult | InferenceServerException] = queue.Queue()

    def resolve(self, result: InferResult, error: InferenceServerException | None) -> None:
        """Take the answer; called by gRPC."""
        self._answers.put(error or result)

    def answer(self, timeout_s: float = 0.0) -> InferResult | None:
        """Return the answer, or None where none came in time.

        Raises:
            NoGolden: The server answered with an error.
        """
        try:
            answer = self._answers.get(block=timeout_s > 0, timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(answer, InferenceServerException):
            kind = QueueFull if "maximum queue" in str(answer) else NoGolden
            raise kind(f"the canary got an error: {answer}")
        return answer


class Canary:
    """Compares what a server draws with the goldens of its entries."""

    def __init__(self, url: str, entries: list[Entry]) -> None:
        self._client = InferenceServerClient(url, channel_args=DIRECT)
        self._entries = {entry.name: entry for entry in entries}
        met = {
            name: goldens_to_meet(entry, expected_class(entry.build))
            for name, entry in self._entries.items()
        }
        self._goldens = {name: goldens for name, (goldens, _) in met.items()}
        self._least_psnr_db = {name: least for name, (_, least) in met.items()}

    def close(self) -> None:
        """Give up the connection."""
        self._client.close()

    def count_requests(self, name: str) -> int:
        """Return how many requests model ``name`` has answered; -1 where the server is silent."""
        try:
            statistics = self._client.get_inference_statistics(name, client_timeout=_QUESTION_S)
        except InferenceServerException:
            return -1
        counted = statistics.model_stats[0].inference_stats
        return int(counted.success.count + counted.fail.count)

    def ask(self, name: str, golden: int) -> Pending:
        """Ask model ``name`` for one of its goldens."""
        pending = Pending()
        request = self._goldens[name].request(golden)
        tensors = [_infer_input(key, array) for key, array in request.items()]
        self._client.async_infer(name, tensors, callback=pending.resolve)
        return pending

    def compare(self, name: str, answer: InferResult, golden: int) -> GoldenVerdict:
        """Compare what :meth:`ask` brought with its golden."""
        return self._compare(name, self._outputs(name, answer), slice(golden, golden + 1))

    def check_all(self, patience: Callable[[str, float], bool]) -> list[str]:
        """Compare every golden of every model; return a warning for each that is not exact.

        Args:
            patience: Told the model and the seconds that one of its goldens is waited for already;
                returns whether to go on.

        Raises:
            ServeError: A model draws something else; the worst pair lies in the named PNG.
            NoGolden: A model does not answer.
        """
        warnings = []
        for name, entry in self._entries.items():
            # One by one: a model's largest batch may be smaller than the number of goldens.
            count = len(self._goldens[name])
            parts = [
                self._outputs(name, self._draw(name, index, patience)) for index in range(count)
            ]
            found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            verdict = self._compare(name, found, slice(None))
            if not verdict.passed:
                raise ServeError(self._refusal(entry, found, verdict))
            if not verdict.exact:
                warnings.append(f"{name}: other engine class than its goldens; {verdict}")
        return warnings

    def _refusal(self, entry: Entry, found: dict[str, NDArray[Any]], verdict: GoldenVerdict) -> str:
        picture = Path(f"latentry-canary-{entry.name}.png").resolve()
        outputs = self._goldens[entry.name].outputs
        is_written = save_worst_pair(found, outputs, verdict, picture)
        seen = f"Golden and answer side by side: {picture}. " if is_written else ""
        return (
            f"{entry.name} does not draw its goldens: {verdict}. Made by "
            f"{entry.build.goldens.engine_class}, served by {expected_class(entry.build)}. {seen}"
            f"Export {entry.name} again on a machine you trust; do not serve this one"
        )

    def _outputs(self, name: str, answer: InferResult) -> dict[str, NDArray[Any]]:
        """Return the raw outputs in an answer; raises NoGolden where one is missing."""
        found = {key: answer.as_numpy(key) for key in self._goldens[name].outputs}
        if missing := [key for key, array in found.items() if array is None]:
            raise NoGolden(f"{name} answered without {', '.join(missing)}")
        return found

    def _draw(self, name: str, golden: int, patience: Callable[[str, float], bool]) -> InferResult:
        """Return one golden, asking again while clients of an earlier start fill the queue."""
        asked_s = time.monotonic()
        pending = self.ask(name, golden)
        while True:
            try:
                if (answer := pending.answer(_AGAIN_S)) is not None:
                    return answer
            except QueueFull:
                time.sleep(_AGAIN_S)
                pending = self.ask(name, golden)
            if not patience(name, time.monotonic() - asked_s):
                raise NoGolden(f"{name} did not draw its goldens in time")

    def _compare(self, name: str, found: dict[str, NDArray[Any]], rows: slice) -> GoldenVerdict:
        entry = self._entries[name]
        return compare_with_goldens(
            entry.spec,
            found,
            self._goldens[name].rows(rows),
            same_class=entry.build.goldens.engine_class == expected_class(entry.build),
            least_psnr_db=self._least_psnr_db[name],
        )


def _infer_input(name: str, array: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
