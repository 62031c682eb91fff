"""Ctrl-C ends every command with exit code 130 and no traceback, and leaves nothing half done."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running_server import LATENTRY, RunningServer

ROOT = Path(__file__).resolve().parents[2]


def interrupt(*arguments: str, after_s: float) -> str:
    """Return what a command says when it is interrupted."""
    command = [str(LATENTRY), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        time.sleep(after_s)
        assert process.poll() is None, "it was over before it could be interrupted"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("after_s", [0.4, 1.5, 2.5])
def test_export(tmp_path: Path, after_s: float) -> None:
    checkpoint = str(ROOT / "training" / "checkpoints" / "textures")
    repository = tmp_path / "model_repository"
    slow = ("--max-batch", "256")  # many more samples to prove
    interrupt("export", checkpoint, "--repository", str(repository), *slow, after_s=after_s)
    assert list(tmp_path.iterdir()) == []


def test_train_says_how_to_go_on(tmp_path: Path) -> None:
    output = interrupt("train", "digits", "--out", str(tmp_path), "--threads", "1", after_s=8)
    assert "--resume" in output
    assert (tmp_path / "digits" / "state.safetensors").exists()


@pytest.mark.server
def test_generate(server: RunningServer, tmp_path: Path) -> None:
    seeds = ("--seeds", "0-4000", "--out", str(tmp_path / "out"))
    interrupt("generate", "large", *seeds, "--url", server.url, after_s=1.0)


@pytest.mark.server
def test_stream_says_how_many_were_delivered(server: RunningServer, tmp_path: Path) -> None:
    seeds = ("--seeds", "0-999999", "--out", str(tmp_path / "out"))
    output = interrupt("stream", "textures", *seeds, "--url", server.url, after_s=3.0)
    match = re.search(r"stopped: (\d+) of 1000000 images are in", output)
    assert match
    # The chunk that was being written may lie there too.
    written = len(list((tmp_path / "out").iterdir()))
    assert 0 < int(match[1]) <= written <= int(match[1]) + 32
