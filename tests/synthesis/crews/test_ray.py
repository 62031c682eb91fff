"""A synthesis job on Ray while nodes, workers and the command itself are killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs.runs import JobRun, end, is_running, local_run, run_here, tree, write_job
from running_server import wait_until

from latentry.contract.errors import ServerGone

pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = pytest.mark.acceptance

TEXT = """
model = "digits"
[samples]
per_class = { "0-9" = 600 }
[output]
shard_size = 60
"""

# A cluster of three nodes in a process of its own, which kills one of them on demand.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("killed", flush=True)
    nodes.append(cluster.add_node(num_cpus=1))
cluster.shutdown()
"""
QUIET = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


class Cluster:
    """Three Ray nodes on this machine."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.address = address
        self._process = process

    def replace_a_node(self) -> None:
        """Kill a node; another takes its place."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"

    def workers(self) -> list[psutil.Process]:
        """Return the processes that run tasks, or wait for the next one."""
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if re.match("ray::(IDLE|_make_shard)", " ".join(child.cmdline())):
                    found.append(child)
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a cluster that tests may break, as long as it is whole again."""
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=QUIET
    ) as process:
        below: list[psutil.Process] = []
        try:
            assert process.stdout
            address = process.stdout.readline().strip()
            assert address, "the cluster did not start"
            yield Cluster(process, address)
            below = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.communicate(timeout=120)
            for left in filter(is_running, below):
                left.kill()


@pytest.fixture
def job(repository: Path, tmp_path: Path, cluster: Cluster) -> JobRun:
    """Return a run of the job on the cluster."""
    options = ("--draw-with", "ray", "--address", cluster.address, "--repository", str(repository))
    return JobRun(write_job(tmp_path, TEXT), tmp_path / "out", options)


@pytest.fixture(scope="module")
def expected(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of the job, made without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_job(folder, TEXT), folder / "out", repository)
    return tree(folder / "out")


def test_ray_tells_nobody_of_its_use_unless_somebody_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latentry.synthesis.crews.ray import RayCrew

    told: list[str] = []
    no_work: Any = None

    def init(**_: object) -> None:
        told.append(os.environ["RAY_USAGE_STATS_ENABLED"])
        raise ConnectionError

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    for _ in range(2):
        with pytest.raises(ServerGone):
            next(RayCrew(None, 1)(no_work, [0], lambda _: None))
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert told == ["0", "1"]


@pytest.mark.slow
def test_killed_workers_and_a_killed_node_change_nothing(
    job: JobRun, cluster: Cluster, expected: dict[str, bytes]
) -> None:
    process, killed = job.start(), 0
    try:
        for count in (3, 10, 20):
            wait_until(lambda: len(job.records()) >= count)  # noqa: B023
            for worker in cluster.workers():
                worker.kill()
                killed += 1
        cluster.replace_a_node()
        assert process.poll() is None
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, message
    assert killed >= 3
    assert tree(job.out) == expected


@pytest.mark.slow
def test_a_second_command_is_refused_and_takes_over_once_the_first_is_dead(
    job: JobRun, cluster: Cluster, expected: dict[str, bytes]
) -> None:
    process = job.start()
    try:
        wait_until(lambda: len(job.records()) >= 3)
        owner = json.loads((job.out / "job.lock").read_bytes())
        process.send_signal(signal.SIGSTOP)  # so that it is not over before it is dead
        done = job.run()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        end(process)
    assert done.returncode == 1
    assert f"is locked by process {owner['pid']} on" in done.stderr
    # Tasks of the dead command may still be writing now.
    assert job.finish() == expected


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_ray_on_this_machine_ends_with_the_command(
    repository: Path, tmp_path: Path, expected: dict[str, bytes], number: signal.Signals
) -> None:
    options = ("--draw-with", "ray", "--workers", "2", "--repository", str(repository))
    job = JobRun(write_job(tmp_path, TEXT), tmp_path / "out", options)
    process = job.start()
    try:
        wait_until(lambda: job.records())
        children = psutil.Process(process.pid).children(recursive=True)
        agents = []
        if number is signal.SIGKILL:
            # Ray's own agents ask for a minute who is there, and write nothing of ours.
            agents = [child for child in children if "Agent" in " ".join(child.cmdline())]
        os.kill(process.pid, number)
        _, message = process.communicate(timeout=120)
        wait_until(lambda: not any(map(is_running, set(children) - set(agents))))
        for agent in filter(is_running, agents):
            agent.kill()
    finally:
        end(process)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert message == f"stopped: what is made stays in {job.out}; the same command goes on\n"
        assert not set(tree(job.out)) - set(expected)
    else:
        assert local_run(job.job, job.out, repository).finish() == expected
