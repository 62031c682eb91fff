"""What hangs inside a running server is replaced; limits of seconds in place of the usual ones."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hangs import load, seconds_until_mended
from misbehaving_models import LONG_BATCH
from running_server import RunningServer, run_server

from latentry.clients import Client

pytestmark = pytest.mark.server

SUPPORT = Path(__file__).resolve().parents[2] / "support"
SILENT_S, LONGEST_EXECUTE_S = 3, 30
# The others, and the real limits, have their turn in the slow tier.
KINDS = ["stopped stub", "stopped tritonserver", "deadlock", "blocked event loop"]


@pytest.fixture(scope="module")
def misbehaving(repository: Path) -> Iterator[RunningServer]:
    """Return a server with two processes of one model, which can be told to hang."""
    script = (str(SUPPORT / "misbehaving_models.py"), str(SILENT_S), str(LONGEST_EXECUTE_S))
    with run_server(
        repository, "--models", "wide", "--instances", "2", command=(sys.executable, *script)
    ) as server:
        yield server


@pytest.mark.parametrize("hang", KINDS)
def test_what_hangs_under_load_is_replaced(misbehaving: RunningServer, hang: str) -> None:
    with Client(misbehaving.url) as client:
        before = client.generate("wide", seeds=range(4)).images
        with load(misbehaving):
            seconds_until_mended(misbehaving, hang, timeout_s=120)
        np.testing.assert_array_equal(client.generate("wide", seeds=range(4)).images, before)


@pytest.mark.acceptance
def test_an_honest_long_batch_is_left_alone(misbehaving: RunningServer) -> None:
    triton = misbehaving.triton_pid()
    with Client(misbehaving.url) as client:
        client.generate("wide", seeds=LONG_BATCH + 2 * SILENT_S)
    assert misbehaving.triton_pid() == triton
