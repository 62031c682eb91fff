import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from latentry.cli.train import train
from latentry.training.metrics import METRICS

TINY = """
name = "tiny"
data = "digits"
seed = 0
steps = 3
batch_size = 4

[generator]
architecture = "conditional_dcgan"
config = { z_dim = 4, width = 2, channels = 1, num_classes = 10 }

[discriminator]
width = 2

[optimizer]
generator_lr = 1e-3
discriminator_lr = 1e-3
betas = [0.5, 0.99]
ema_decay = 0.9

[at_least]
label_agreement = 0.97
"""


@pytest.fixture
def run_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.setitem(METRICS, "digits", lambda _images, _labels: {"label_agreement": 0.1})
    (tmp_path / "tiny.toml").write_text(TINY)
    app = typer.Typer()
    app.command()(train)

    def invoke(*arguments: str) -> Result:
        out = ["--out", str(tmp_path / "runs")]
        return CliRunner().invoke(app, [str(tmp_path / "tiny.toml"), *out, *arguments])

    return invoke


def test_train_says_where_the_checkpoint_is_and_what_to_type_next(
    run_train: Callable[..., Result], tmp_path: Path
) -> None:
    result = run_train()
    folder = tmp_path / "runs/tiny/checkpoint"
    assert result.exit_code == 0, result.output
    assert (folder / "weights.safetensors").is_file()
    assert f"Checkpoint: {folder}\n" in result.output
    assert f"Next: latentry export {folder} --repository model_repository" in result.output


def test_train_says_when_the_aim_is_missed(run_train: Callable[..., Result]) -> None:
    assert "label_agreement is 0.1, should be at least 0.97" in run_train().output


def test_train_takes_more_steps_on_resume(run_train: Callable[..., Result]) -> None:
    assert "1/1" in run_train("--steps", "1").output
    result = run_train("--resume", "--steps", "2", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "2/2" in result.output


def test_an_interrupted_train_says_how_to_go_on(
    run_train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentry.training.runs.continue_run", lambda *_arguments: False)
    result = run_train()
    assert result.exit_code == 130
    assert "Stopped at step 0; everything is saved in" in result.output
    assert "same command with --resume" in result.output


def test_help_needs_no_torch() -> None:
    code = "import sys; import latentry.cli.train; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
