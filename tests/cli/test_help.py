"""Every command explains itself."""

import re
import subprocess

import pytest
from running_server import LATENTRY

COMMANDS = (
    *("train", "export", "models", "serve", "health", "generate", "stream"),
    *("synthesize", "profile", "doctor"),
)


@pytest.fixture(scope="module")
def listed() -> str:
    done = subprocess.run([str(LATENTRY), "--help"], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, listed: str) -> None:
    done = subprocess.run(
        [str(LATENTRY), command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"latentry {command}" in done.stdout  # the usage, and an example
    assert re.search(rf"^\s+{command}\s+\w", listed, re.MULTILINE)
