import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from running_server import is_running, wait_until

from latentry.contract.system import is_loopback, time_now


def test_the_time_is_written_in_utc_to_the_second() -> None:
    before = datetime.now(UTC)
    text = time_now()
    assert text.endswith("+00:00")
    assert "." not in text
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(text)
    assert before - datetime.fromisoformat(text) < timedelta(seconds=1)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.8.7", "::1"])
def test_hosts_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "[::1]", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[]"],
)
def test_hosts_that_may_be_others(host: str) -> None:
    assert not is_loopback(host)


PARENT = """
import signal, subprocess, sys
from latentry.contract.system import dying_with_parent
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, preexec_fn=dying_with_parent(signal.SIGKILL))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has death signals")
def test_a_child_dies_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))
