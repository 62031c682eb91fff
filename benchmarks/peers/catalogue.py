"""The peers: how each is started, which settings are tried, how it is asked."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peers.http_target import get, post

FOLDER = Path(__file__).resolve().parent
SERVERS = FOLDER / "servers"
ROOT = FOLDER.parents[1]
MODEL = "generator"

CORES = len(os.sched_getaffinity(0))
Settings = Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """One of the servers that are compared.

    Attributes:
        name: Of its folder under ``servers/`` and of its environment under ``.peers/``.
        title: What the tables call it.
        command: Shell command that starts it in its work folder; it finds PORT and the settings
            in the environment.
        grid: The settings that are tried; the first are those of ``--quick``.
        request: Makes an HTTP request for a seed; None where the peer speaks Triton's gRPC.
        kind: ``eager`` draws one image a request, ``batched`` are the others outside Triton.
    """

    name: str
    title: str
    command: str
    grid: tuple[Settings, ...]
    request: Callable[[int], bytes] | None = None
    kind: Literal["eager", "batched", "triton", "ours"] = "batched"

    @property
    def folder(self) -> Path:
        """Where the files lie that a user of this peer would write."""
        return SERVERS / self.name

    @property
    def user_files(self) -> list[Path]:
        """What a user of this peer would write."""
        return sorted(
            path
            for path in self.folder.rglob("*")
            if path.suffix in (".py", ".pbtxt", ".json", ".sh")
        )


def settings(**values: object) -> Settings:
    """Return settings as they stand in the environment."""
    return {name: str(value) for name, value in values.items()}


# One worker with all cores, spinning or not, or one worker for each core.
_ALL_CORES = settings(WORKERS=1, THREADS=CORES, SPINNING=1)
_ALL_CORES_CALM = settings(WORKERS=1, THREADS=CORES, SPINNING=0)
_ONE_EACH = settings(WORKERS=CORES, THREADS=1, SPINNING=0)
_UVICORN = "uvicorn server:app --host 127.0.0.1 --port $PORT --workers $PROCESSES --no-access-log"


def _latentry_commands() -> list[str]:
    lines = (SERVERS / "latentry" / "commands.sh").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


LATENTRY_EXPORT, _LATENTRY_SERVE = _latentry_commands()

PEERS = (
    Peer(
        "fastapi_tutorial",
        "FastAPI, as its tutorial",
        "fastapi run server.py --host 127.0.0.1 --port $PORT",
        ({},),
        get("/images/{seed}"),
        "eager",
    ),
    Peer(
        "fastapi_batch_torch",
        "FastAPI, batching queue, PyTorch",
        _UVICORN,
        (
            settings(PROCESSES=1, BATCHERS=1, THREADS=CORES, WAIT_S=0),
            settings(PROCESSES=1, BATCHERS=1, THREADS=CORES, WAIT_S=0.002),
            settings(PROCESSES=1, BATCHERS=CORES, THREADS=1, WAIT_S=0),
            settings(PROCESSES=CORES, BATCHERS=1, THREADS=1, WAIT_S=0),
        ),
        get("/images/{seed}"),
    ),
    Peer(
        "fastapi_batch_onnx",
        "FastAPI, batching queue, ONNX Runtime",
        _UVICORN,
        (
            settings(PROCESSES=1, BATCHERS=CORES, THREADS=1, SPINNING=0, WAIT_S=0),
            settings(PROCESSES=1, BATCHERS=CORES, THREADS=1, SPINNING=0, WAIT_S=0.002),
            settings(PROCESSES=1, BATCHERS=1, THREADS=CORES, SPINNING=1, WAIT_S=0),
            settings(PROCESSES=CORES, BATCHERS=1, THREADS=1, SPINNING=0, WAIT_S=0),
        ),
        get("/images/{seed}"),
    ),
    Peer(
        "litserve",
        "LitServe, ONNX Runtime",
        "python server.py",
        (
            {**_ONE_EACH, "WAIT_S": "0.002"},
            {**_ONE_EACH, "WAIT_S": "0"},
            {**_ALL_CORES_CALM, "WAIT_S": "0.002"},
            {**_ALL_CORES, "WAIT_S": "0.005"},
        ),
        post("/predict"),
    ),
    Peer(
        "bentoml",
        "BentoML, ONNX Runtime",
        "bentoml serve server:Images --host 127.0.0.1 --port $PORT",
        (
            {**_ONE_EACH, "FRONTS": "1", "LATENCY_MS": "10000"},
            {**_ONE_EACH, "FRONTS": "2", "LATENCY_MS": "10000"},
            {**_ALL_CORES, "FRONTS": "1", "LATENCY_MS": "10000"},
            {**_ONE_EACH, "FRONTS": "1", "LATENCY_MS": "1000"},
        ),
        post("/generate"),
    ),
    Peer(
        "ray",
        "Ray Serve, ONNX Runtime",
        "python server.py",
        (
            {**_ONE_EACH, "WAIT_S": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            {**_ONE_EACH, "WAIT_S": "0.005"},
            {**_ALL_CORES_CALM, "WAIT_S": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            {**_ALL_CORES, "WAIT_S": "0"},
        ),
        get("/?seed={seed}"),
    ),
    Peer(
        "pytriton",
        "PyTriton, ONNX Runtime",
        "python server.py",
        (
            {**_ONE_EACH, "DELAY_US": "0"},
            {**_ONE_EACH, "DELAY_US": "2000"},
            {**_ALL_CORES, "DELAY_US": "0"},
            {**_ALL_CORES_CALM, "DELAY_US": "0"},
        ),
        kind="triton",
    ),
    Peer(
        "triton",
        "Triton, model.py by hand",
        "tritonserver --model-repository=repository --allow-http=false --allow-metrics=false "
        "--grpc-address=127.0.0.1 --grpc-port=$PORT",
        (
            {**_ONE_EACH, "DELAY_US": "0"},
            {**_ONE_EACH, "DELAY_US": "2000"},
            settings(WORKERS=CORES, THREADS=CORES, SPINNING=0, DELAY_US=0),
            {**_ALL_CORES, "DELAY_US": "0"},
        ),
        kind="triton",
    ),
    Peer("latentry", "Latentry", _LATENTRY_SERVE, ({},), kind="ours"),
)
