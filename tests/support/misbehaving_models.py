"""Models that hang on demand inside a real Triton, and the ``latentry serve`` that runs them.

``python misbehaving_models.py SILENT_S LONGEST_EXECUTE_S serve ...``: a request's first seed, or a
stream's chunk size, says what is to happen; restarts come at once. SLOW_START_S and MOST_START_S in
the environment make models slow to load, and set how long a start may stand still.
"""

import ctypes
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

KEEP_THE_GIL, DEADLOCK, ENDLESS = 4_000_000_001, 4_000_000_002, 4_000_000_003
LONG_BATCH = 4_100_000_000  # and so many seconds
BLOCK_THE_LOOP = 4_001

MODEL_PY = """
import sys
sys.path.insert(0, {support!r})
from misbehaving_models import {function}
TritonPythonModel = {function}()
"""


def front_model() -> type:
    """Return the front model, with ways to hang."""
    from latentry.serving.triton.front_model import FrontModel

    class Misbehaving(FrontModel):
        def initialize(self, args: dict[str, str]) -> None:
            end = time.monotonic() + float(os.environ.get("SLOW_START_S", "0"))
            while time.monotonic() < end:
                pass
            super().initialize(args)

        def _answer(self, requests: list[Any]) -> list[Any]:
            for tensor in (tensor for request in requests for tensor in request.inputs()):
                if tensor.name() == "seed":
                    _misbehave(int(tensor.as_numpy().flat[0]))
            return super()._answer(requests)

    return Misbehaving


def stream_model() -> type:
    """Return the stream model, with a way to block its event loop."""
    from latentry.serving.triton.stream_model import StreamModel

    class Misbehaving(StreamModel):
        async def _stream(self, request: Any, sender: Any) -> None:
            for tensor in request.inputs():
                if tensor.name() == "chunk_size" and tensor.as_numpy().flat[0] == BLOCK_THE_LOOP:
                    threading.Event().wait()
            await super()._stream(request, sender)

    return Misbehaving


def _misbehave(seed: int) -> None:
    if seed == KEEP_THE_GIL:
        ctypes.PyDLL(None).sleep(10_000)
    elif seed == DEADLOCK:
        threading.Event().wait()
    elif seed == ENDLESS or seed >= LONG_BATCH:
        end = time.monotonic() + (seed - LONG_BATCH if seed >= LONG_BATCH else 10_000)
        while time.monotonic() < end:
            pass


def main(silent_s: str, longest_execute_s: str, *arguments: str) -> int:
    """Run the command line with these models and limits in place of the usual ones."""
    from latentry.cli.main import main as run
    from latentry.serving.server import folder as server_folder
    from latentry.serving.server import life as server_life
    from latentry.serving.server import supervisor, vitals

    def model_py(function: str) -> bytes:
        return MODEL_PY.format(support=str(Path(__file__).parent), function=function).encode()

    vitals.SILENT_S = vitals.IDLE_S = float(silent_s)
    vitals.LONGEST_EXECUTE_S = float(longest_execute_s)
    server_life.Limits = partial(  # type: ignore[assignment, misc]
        server_life.Limits, start_s=float(os.environ.get("MOST_START_S", "60"))
    )
    supervisor._BACK_OFF_S = (0.0,)
    server_folder.MODEL_PY = model_py("front_model")  # type: ignore[attr-defined]
    server_folder.STREAM_MODEL_PY = model_py("stream_model")  # type: ignore[attr-defined]
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
