"""The same checks on the synchronous and the asynchronous client."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from latentry.clients import AsyncClient, Client

# What is done with a client of either kind; what it returns may be awaited or read as a stream.
Step = Callable[[Any], Any]


class Driver:
    """Runs the same checks on both clients."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    def run(self, steps: Sequence[Step], *args: Any, **kwargs: Any) -> list[Any]:
        if self.asynchronous:
            return asyncio.run(self._run(steps, *args, **kwargs))
        with Client(*args, **kwargs) as client:
            return [step(client) for step in steps]

    async def _run(self, steps: Sequence[Step], *args: Any, **kwargs: Any) -> list[Any]:
        async with AsyncClient(*args, **kwargs) as client:
            return [await self._finish(step(client)) for step in steps]

    async def _finish(self, value: Any) -> Any:
        if hasattr(value, "__aiter__"):
            return [item async for item in value]
        return await value if hasattr(value, "__await__") else value


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def generate(**kwargs: Any) -> Step:
    arguments = {"seeds": range(3), "class_label": 1, **kwargs}
    return lambda client: client.generate("digits", **arguments)


def stream(count: int, **kwargs: Any) -> Step:
    def step(client: Any) -> Any:
        chunks = client.stream("plain", seeds=range(count), **kwargs)
        return chunks if hasattr(chunks, "__aiter__") else list(chunks)

    return step
