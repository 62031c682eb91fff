"""What the tests share: one repository of real exports, one real server on it.

Other runs of the same tests may go on beside this one, on a machine that is busy with them.
"""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings
from running_server import RunningServer, run_server, wait_until
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.clients.transports.grpc_library import library

library()  # before any test imports gRPC as it comes: its own handlers of a fork are unsound

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "training" / "checkpoints"

SPECS = {
    "wide": make_spec([z(16)], [image(48, 80)]),
    "mapped": make_spec(
        [z(12), classes("cat", "dog", "emu", "fox"), w(3, 20), psi()],
        [image(24, 24, 1)],
        stages_of_stylegan(w_avg=[0.01 * i for i in range(20)]),
    ),
    "large": make_spec([z(8)], [image(256, 256)]),
    "breaking": make_spec([z(4)], [image(8, 8, 1)]),
}


# What an example takes says more of the machine than of what is tested.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

EXPORTS = "LATENTRY_TEST_EXPORTS"
RUN = "LATENTRY_TEST_RUN"  # in the environment of every process of this run
KEPT = ("ray", ".ses", "torchinductor_")  # what libraries leave in the temporary folder


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a temporary folder of its own, and its processes a mark."""
    # By these, and on a dumb terminal, commands print otherwise.
    for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "NO_COLOR"):
        os.environ.pop(name, None)
    os.environ["TERM"] = "xterm"
    # PyTorch's threads else spin while they wait: half of the time of cores that others need, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # likewise, in every process at its start
    # A shell that starts this in the background ignores Ctrl-C, and so would every command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays there
    folder = tempfile.mkdtemp(prefix="latentry-tests-")  # short: paths of sockets are
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["XDG_RUNTIME_DIR"] = folder
    os.environ[RUN] = folder


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the folder away."""
    if folder := os.environ.pop(RUN, None):
        shutil.rmtree(folder, ignore_errors=True)


def own_processes() -> list[psutil.Process]:
    """Return what this run started and what still runs, without what ends with pytest itself."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(RUN) == os.environ[RUN]
            tracks = "resource_tracker" in " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        if marked and not tracks and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """See that the run leaves no process and no file behind; servers look after shared memory."""
    yield
    wait_until(lambda: not own_processes())
    folder = Path(os.environ[RUN])
    home = folder / f"latentry-{os.getuid()}"  # of the private folders of servers
    left = [*folder.iterdir(), *(home.iterdir() if home.exists() else ())]
    assert not [path for path in left if path != home and not path.name.startswith(KEPT)]


def exported_once(folder: Path, export: Callable[[Path], None]) -> Path:
    """Return the model repository ``folder``, filled by ``export``.

    Runs beside each other (``make test``) name a folder that they share in EXPORTS: the first of
    them to come exports, and the others copy.
    """
    if EXPORTS not in os.environ:
        export(folder)
        return folder
    shared = Path(os.environ[EXPORTS])
    made = shared / export.__name__
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(shared / "half", ignore_errors=True)  # of a run that failed at it
            export(shared / "half")
            (shared / "half").rename(made)
    shutil.copytree(made, folder)
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model repository with the two committed models and the tests' own generators."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    folder = tmp_path_factory.mktemp("serving") / "model_repository"
    return exported_once(folder, export_committed_and_own)


def export_committed_and_own(folder: Path) -> None:
    """Export the two committed models and the tests' own generators."""
    import sample_generators

    from latentry.export.publish import Source, export_generator, source_from_checkpoint

    for checkpoint in sorted(CHECKPOINTS.iterdir()):
        export_generator(source_from_checkpoint(checkpoint), folder)
    for name, spec in SPECS.items():
        module = getattr(sample_generators, f"build_{name}")().eval()
        source = Source(name, spec, module, name, "0" * 64)
        most = 32 if name == "large" else 16
        export_generator(source, folder, max_batch_size=most)


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model repository with generators that take and give more than z and a picture."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    folder = tmp_path_factory.mktemp("varied") / "model_repository"
    return exported_once(folder, export_varied)


def export_varied(folder: Path) -> None:
    """Export generators that take and give more than z and a picture."""
    from varied_generators import export_embedded, export_restyled, export_steered

    export_steered(folder)
    export_embedded(folder)
    export_restyled(folder, "restyled", 256, 256, 3)
    export_restyled(folder, "megabyte", 512, 512, 4)


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[RunningServer]:
    """Return a real server on the shared repository; no test may break it."""
    with run_server(repository, "--instances", "1") as running:
        yield running
