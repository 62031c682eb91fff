"""What runs in worker processes that import it: a spawned one cannot import a test."""

from typing import Any

import numpy as np

from latentry.clients import Client


class Images:
    """A data set for torch: one image an item."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.size = len(client.models()) * 4

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        return self.client.generate("wide", seeds=index).images[0]


def draw_seven(client: Client, answers: Any) -> None:
    """Draw with a client that came with the process's arguments."""
    answers.put(client.generate("wide", seeds=[7]).images)
