from pathlib import Path

from doubles import Run


def test_a_batch_beyond_what_was_proved_is_not_served(run: Run, repository: Path) -> None:
    options = ["--models", "wide", "--max-batch-size", "17", "--port", "0", "--metrics-port", "0"]
    done = run("serve", "--repository", str(repository), *options)
    assert done.code == 1
    assert "17 is more than the export of wide proved (16)" in done.err
