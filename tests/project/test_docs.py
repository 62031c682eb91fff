"""Every code block of the README and of docs/ runs, or says why not.

A page is followed from top to bottom in an empty folder, as a reader would:

- ``bash`` blocks run in a shell, ``python`` blocks in an interpreter of their own;
- ``<!-- file: NAME -->`` before a block writes it to a file instead;
- ``<!-- not run: REASON -->`` before a block leaves it out; where another page exports a model, it
  is in this page's ``model_repository`` from the start;
- a block with ``latentry serve`` runs in the background until the page ends.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from running_server import LATENTRY, RunningServer

from latentry.contract.spec import spec_from_json

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>file|not run): (?P<note>[^>]+?) -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_RUN = ("bash", "python")


@dataclass(frozen=True)
class Block:
    kind: str | None
    note: str | None
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in _BLOCK.finditer(page.read_text())]


@contextmanager
def serving(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a ``latentry serve`` of a page on free ports; clients find it by LATENTRY_URL."""
    command = command.strip() + " --json --port 0 --metrics-port 0"
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            environment["LATENTRY_URL"] = json.loads(process.stdout.readline())["url"]
            yield
        finally:
            process.terminate()


def run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    done = subprocess.run(
        [*program[block.language], block.text],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.server
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.acceptance
def test_every_code_block_runs(
    page: Path, tmp_path: Path, triton: RunningServer, repository: Path
) -> None:
    environment = {
        **os.environ,
        "LATENTRY_URL": triton.url,  # until the page starts a server of its own
        "PATH": os.pathsep.join([str(LATENTRY.parent), os.environ["PATH"]]),
        "PYTHONPATH": str(tmp_path),
    }
    (tmp_path / "training").symlink_to(ROOT / "training")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    if any("its model_repository is here" in (block.note or "") for block in blocks(page)):
        (tmp_path / "model_repository").symlink_to(repository)
    with ExitStack() as servers:
        for block in blocks(page):
            if block.kind == "file" and block.note:
                path = tmp_path / block.note
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.kind == "not run" or block.language not in _RUN:
                continue
            elif block.text.startswith("latentry serve"):
                servers.enter_context(serving(block.text, tmp_path, environment))
            else:
                run(block, tmp_path, environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_that_do_not_run_say_why_or_hold_no_code(page: Path) -> None:
    for block in blocks(page):
        assert block.kind or block.language in (*_RUN, "text", "json", "toml"), block.text


def test_specs_of_the_pages_are_specs() -> None:
    texts = [
        block.text
        for page in PAGES
        for block in blocks(page)
        if block.language == "json" and '"outputs": [' in block.text
    ]
    assert texts
    for text in texts:
        spec_from_json(text, "a page's spec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
