"""Ctrl-C ends every command with exit code 130 and no traceback, and leaves nothing half done."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import LATENTRY, RunningServer, wait_until
from tritonclient.grpc import InferenceServerClient

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]


def interrupt(*arguments: str, once: Callable[[str], object]) -> str:
    """Return what a command says when it is interrupted once ``once`` holds of what it said."""
    # Progress is shown to terminals only, and is what tells how far a command is.
    environment = {**os.environ, "FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(LATENTRY), *arguments], stdout=pipe, stderr=subprocess.STDOUT, env=environment
    ) as process:
        assert process.stdout is not None
        output = b""
        while not once(output.decode(errors="ignore")):
            output += os.read(process.stdout.fileno(), 65_536)
            assert process.poll() is None, f"it was over before it could be interrupted: {output!r}"
        process.send_signal(signal.SIGINT)
        output += process.communicate(timeout=120)[0]
    text = output.decode()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    return text


# A busy machine now and then shows the next stage first.
@pytest.mark.parametrize("stage", ["loading", "exporting to ONNX|proving it", "proving it"])
def test_export(tmp_path: Path, stage: str) -> None:
    checkpoint = str(ROOT / "training" / "checkpoints" / "textures")
    repository = tmp_path / "model_repository"
    slow = ("--max-batch", "256")  # many more samples to prove
    options = ("--repository", str(repository), *slow)
    interrupt("export", checkpoint, *options, once=re.compile(stage).search)
    assert list(tmp_path.iterdir()) == []


def test_train_says_how_to_go_on(tmp_path: Path) -> None:
    options = ("--out", str(tmp_path), "--threads", "1")
    stepped = re.compile(r" [1-9]\d*/\d{3,}")
    output = interrupt("train", "digits", *options, once=stepped.search)
    assert "--resume" in output
    assert (tmp_path / "digits" / "state.safetensors").exists()


@pytest.mark.server
def test_generate(triton: RunningServer, tmp_path: Path) -> None:
    def drawn() -> int:
        with InferenceServerClient(triton.url) as raw:
            statistics = raw.get_inference_statistics("large", as_json=True)
        return int(statistics["model_stats"][0].get("inference_count", 0))

    before = drawn()
    seeds = ("--seeds", "0-4000", "--out", str(tmp_path / "out"))
    interrupt(
        *("generate", "large", *seeds, "--url", triton.url),
        once=lambda _: wait_until(lambda: drawn() > before),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.server
def test_stream_says_how_many_were_delivered(triton: RunningServer, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def several() -> bool:
        return out.exists() and len(os.listdir(out)) > 8  # the first chunk holds eight

    seeds = ("--seeds", "0-999999", "--out", str(out))
    output = interrupt(
        *("stream", "textures", *seeds, "--url", triton.url), once=lambda _: wait_until(several)
    )
    match = re.search(r"stopped: (\d+) of 1000000 samples are in", output)
    assert match
    # The chunk that was being written may lie there too.
    written = len(list(out.iterdir()))
    assert 0 < int(match[1]) <= written <= int(match[1]) + 32
