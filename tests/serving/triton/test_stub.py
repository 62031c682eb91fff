"""What every process of a model does beside its work."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from running_server import is_running, wait_until

# Triton's own module is there in its processes only; nothing of it is used here.
STUB = """
import sys, time, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
from latentry.serving.triton.stub import exit_with_parent
exit_with_parent()
before_s = time.process_time()
print(flush=True)
time.sleep(2)
print(time.process_time() - before_s, flush=True)
time.sleep(1000)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""


def test_it_ends_with_its_parent_and_costs_nothing_meanwhile() -> None:
    command = [sys.executable, "-c", PARENT, STUB]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert parent.stdout.readline() == "\n"
            used_s = float(parent.stdout.readline())
            assert is_running(child)
            parent.kill()
            wait_until(lambda: not is_running(child))
            assert used_s < 0.2
        finally:
            parent.kill()
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
