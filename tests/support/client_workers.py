"""A program that draws in worker processes: ``client_workers.py URL METHOD``.

By a DataLoader of torch and by processes that get a client as an argument, while the parent draws,
too. It ends with 0 where every image is the parent's.
"""

import multiprocessing
import sys
import threading
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from latentry.clients import Client

_HANGS_S = 120


class DrawnImages:
    """A data set for torch: one image an item."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.size = len(client.models()) * 4

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        image: np.ndarray[Any, Any] = self.client.generate("wide", seeds=index).images[0]
        return image


def draw_seven(client: Client, answers: Any) -> None:
    """Draw with a client that came with the process's arguments."""
    answers.put(client.generate("wide", seeds=7).images)


def main(url: str, method: str) -> None:
    """Compare what the workers draw."""
    with Client(url, timeout_s=_HANGS_S) as client:
        images = DrawnImages(client)
        expected = client.generate("wide", seeds=range(len(images))).images
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                client.generate("wide", seeds=range(8))

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            loader: Any = DataLoader(
                images,  # type: ignore[arg-type]
                batch_size=4,
                num_workers=2,
                multiprocessing_context=method,
                timeout=_HANGS_S,
            )
            assert np.array_equal(np.concatenate([batch.numpy() for batch in loader]), expected)
            context = multiprocessing.get_context(method)
            answers = context.Queue()
            child = context.Process(target=draw_seven, args=(client, answers))  # type: ignore[attr-defined]
            child.start()
            assert np.array_equal(answers.get(timeout=_HANGS_S), expected[7:8])
            child.join()
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
