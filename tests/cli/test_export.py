import json
from pathlib import Path

import pytest
from doubles import RunCommand

CHECKPOINTS = Path(__file__).resolve().parents[2] / "training" / "checkpoints"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["my_package.my_module:build"], "needs --weights W.safetensors and --spec SPEC.json"),
        (["checkpoint", "--weights", "w.safetensors"], "checkpoint has no colon, so it would be"),
    ],
)
def test_a_wrong_option_says_what_is_right(
    run_command: RunCommand, arguments: list[str], words: str
) -> None:
    done = run_command("export", *arguments)
    assert (done.code, words in done.err) == (2, True)


def test_a_checkpoint_is_published_once(run_command: RunCommand, tmp_path: Path) -> None:
    options = [CHECKPOINTS / "digits", "--repository", tmp_path, "--max-batch", "4"]
    first = run_command("export", *options)
    assert first.code == 0
    assert f"published digits version 1 in {tmp_path / 'digits' / '1'}" in first.err
    assert f"next: latentry serve --repository {tmp_path}" in first.err
    again = run_command("export", *options)
    assert (again.code, "nothing was written" in again.err) == (0, True)
    facts = json.loads(run_command("export", *options, "--json").out)
    assert (facts["name"], facts["new"]) == ("digits", False)
