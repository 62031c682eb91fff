from pathlib import Path

from doubles import RunCommand, on_terminal


def test_a_batch_beyond_what_was_proved_is_not_served(
    run_command: RunCommand, repository: Path
) -> None:
    options = ["--models", "wide", "--max-batch-size", "17", "--port", "0", "--metrics-port", "0"]
    done = run_command("serve", "--repository", str(repository), *options)
    assert done.code == 1
    assert "17 is more than the export of wide proved (16)" in done.err


def test_serve_says_that_it_starts_to_a_terminal_only(
    run_command: RunCommand, tmp_path: Path
) -> None:
    options = ("serve", "--repository", tmp_path / "nowhere")
    assert "starting Triton" in on_terminal(*options).partition("error: ")[0]
    assert "starting" not in run_command(*options).err


def test_a_size_that_is_none_is_wrong_usage(run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("serve", "--repository", tmp_path, "--most-memory", "much")
    assert done.code == 2
    assert "'much' is no size" in done.err
