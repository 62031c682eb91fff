"""Models that hang on demand, inside a real Triton, and a ``latentry serve`` that runs them.

A request's first seed says what is to happen; a stream's is its chunk size::

    python misbehaving_models.py SILENT_S LONGEST_EXECUTE_S serve --repository ...
"""

import sys
import threading
import time
from pathlib import Path

KEEP_THE_GIL, DEADLOCK, ENDLESS, LONG_BATCH = (
    4_000_000_001,
    4_000_000_002,
    4_000_000_003,
    4_000_000_004,
)
BLOCK_THE_LOOP = 4_001
LONG_BATCH_FILE = "long-batch-s"

FRONT_MODEL = """
import sys
sys.path.insert(0, {support!r})
from misbehaving_models import front_model_class
TritonPythonModel = front_model_class()
"""
STREAM_MODEL = FRONT_MODEL.replace("front_model_class", "stream_model_class")


def front_model_class() -> type:
    """Return the front model, with a way to hang."""
    from latentry.serving.front_model import FrontModel

    class Misbehaving(FrontModel):
        def _answer(self, requests):  # type: ignore[no-untyped-def]
            for request in requests:
                for tensor in request.inputs():
                    if tensor.name() == "seed":
                        _misbehave(int(tensor.as_numpy().flat[0]))
            return super()._answer(requests)

    return Misbehaving


def stream_model_class() -> type:
    """Return the stream model, with a way to block its event loop."""
    from latentry.serving.stream_model import StreamModel

    class Misbehaving(StreamModel):
        async def _stream(self, request, sender):  # type: ignore[no-untyped-def]
            for tensor in request.inputs():
                if tensor.name() == "chunk_size" and tensor.as_numpy().flat[0] == BLOCK_THE_LOOP:
                    time.sleep(10_000)
            await super()._stream(request, sender)

    return Misbehaving


def _misbehave(seed: int) -> None:
    if seed == KEEP_THE_GIL:
        import ctypes

        ctypes.PyDLL(None).sleep(10_000)
    elif seed == DEADLOCK:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif seed == ENDLESS:
        while True:
            pass
    elif LONG_BATCH <= seed < LONG_BATCH + 1_000:
        end = time.monotonic() + seed - LONG_BATCH
        while time.monotonic() < end:
            pass


def main(silent_s: str, longest_execute_s: str, *arguments: str) -> int:
    """Run the command line with these models and limits in place of the usual ones."""
    from latentry.clients.cli import main as run
    from latentry.serving import server_folder, vitals

    support = str(Path(__file__).parent)
    vitals.SILENT_S = vitals.IDLE_S = float(silent_s)
    vitals.LONGEST_EXECUTE_S = float(longest_execute_s)
    server_folder.MODEL_PY = FRONT_MODEL.format(support=support).encode()
    copy_stream_model = server_folder._copy_stream_model

    def copy_and_replace(repository: Path) -> None:
        copy_stream_model(repository)
        path = repository / "generate_stream" / "1" / "model.py"
        path.write_text(STREAM_MODEL.format(support=support))

    server_folder._copy_stream_model = copy_and_replace
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
