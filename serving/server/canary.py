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
from latentry.contract.images import Uint8
from latentry.serving.entries.engine_class import engine_class
from latentry.serving.entries.goldens import (
    GoldenVerdict,
    compare_with_goldens,
    golden_inputs,
    read_goldens,
    save_worst_pair,
)
from latentry.serving.entries.repository import Entry
from latentry.serving.server.probe import DIRECT

_QUESTION_S = 2.0
_AGAIN_S = 0.1


class NoGolden(Exception):
    """The server did not answer with an image at all, right or wrong; another start may help."""


class QueueFull(NoGolden):
    """The server has more requests than it lets wait."""


class Pending:
    """A golden that was asked for and may be answered later."""

    def __init__(self) -> None:
        self._answers: queue.Queue[InferResult | InferenceServerException] = queue.Queue()

    def resolve(self, result: InferResult, error: InferenceServerException | None) -> None:
        """Take the answer; called by gRPC."""
        self._answers.put(error or result)

    def answer(self, timeout_s: float = 0.0) -> Uint8 | None:
        """Return the images [N, H, W, C], or None where none came in time.

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
        images: Uint8 = answer.as_numpy("image")
        return images


class Canary:
    """Compares what a server draws with the goldens of its entries."""

    def __init__(self, url: str, entries: list[Entry]) -> None:
        self._client = InferenceServerClient(url, channel_args=DIRECT)
        self._entries = {entry.name: entry for entry in entries}
        self._goldens = {
            name: read_goldens(e.folder, e.manifest) for name, e in self._entries.items()
        }

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
        inputs = golden_inputs(self._entries[name].manifest.model.spec)
        tensors = [_infer_input(key, array[golden : golden + 1]) for key, array in inputs.items()]
        self._client.async_infer(name, tensors, callback=pending.resolve)
        return pending

    def compare(self, name: str, image: Uint8, golden: int) -> GoldenVerdict:
        """Compare the one image that :meth:`ask` brought with its golden."""
        return self._compare(name, image, slice(golden, golden + 1))

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
            images = np.concatenate([self._draw(name, index, patience) for index in range(count)])
            verdict = self._compare(name, images, slice(None))
            if not verdict.passed:
                picture = Path(f"latentry-canary-{name}.png").resolve()
                save_worst_pair(images, self._goldens[name], verdict, picture)
                raise ServeError(
                    f"{name} does not draw its goldens: {verdict}. Made by "
                    f"{entry.manifest.record.goldens.engine_class}, served by {engine_class()}. "
                    f"Golden and answer side by side: {picture}. Export {name} again on a machine "
                    "you trust; do not serve this one"
                )
            if not verdict.exact:
                warnings.append(f"{name}: other engine class than its goldens; {verdict}")
        return warnings

    def _draw(self, name: str, golden: int, patience: Callable[[str, float], bool]) -> Uint8:
        """Return one golden, asking again while clients of an earlier start fill the queue."""
        asked_s = time.monotonic()
        pending = self.ask(name, golden)
        while True:
            try:
                if (image := pending.answer(_AGAIN_S)) is not None:
                    return image
            except QueueFull:
                time.sleep(_AGAIN_S)
                pending = self.ask(name, golden)
            if not patience(name, time.monotonic() - asked_s):
                raise NoGolden(f"{name} did not draw its goldens in time")

    def _compare(self, name: str, images: Uint8, rows: slice) -> GoldenVerdict:
        made_by = self._entries[name].manifest.record.goldens.engine_class
        return compare_with_goldens(
            images, self._goldens[name][rows], same_class=made_by == engine_class()
        )


def _infer_input(name: str, array: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
