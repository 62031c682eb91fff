import errno
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from arithmetic_server import ArithmeticServer
from doubles import RunCommand
from running_server import LATENTRY

from latentry.cli import main as cli
from latentry.cli.common.exit_codes import EXIT_TRY_LATER, EXIT_USAGE
from latentry.cli.main import COMMANDS, Command, main
from latentry.contract.errors import BadRequest, Busy

ROOT = Path(__file__).resolve().parents[2]

PutCommand = Callable[..., None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> PutCommand:
    """Put a command into the table that does what the given function does."""

    def put(function: Callable[..., None], extras: str = "") -> None:
        monkeypatch.setattr(sys.modules[__name__], "probe", function, raising=False)
        monkeypatch.setitem(sys.modules, "latentry_probe", sys.modules[__name__])
        monkeypatch.setitem(COMMANDS, "probe", Command("latentry_probe:probe", "Probe.", extras))

    return put


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(run_command: RunCommand, arguments: list[str]) -> None:
    code, out, _ = run_command(*arguments)
    assert code == 0
    assert all(name in out and command.help in out for name, command in COMMANDS.items())


def test_version(run_command: RunCommand) -> None:
    code, out, _ = run_command("--version")
    assert code == 0
    assert re.fullmatch(r"latentry \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("genrate", "did you mean generate?"), ("xyz", "there are train"), ("--url", "no option")],
)
def test_unknown_commands(run_command: RunCommand, name: str, hint: str) -> None:
    code, _, err = run_command(name)
    assert code == 2
    assert hint in err


@pytest.mark.parametrize("name", ["health", "generate", "stream"])
def test_help_of_a_command_shows_examples(run_command: RunCommand, name: str) -> None:
    code, out, _ = run_command(name, "--help")
    assert code == 0
    assert f"latentry {name}" in out.split("For example:")[1]


@pytest.mark.parametrize("name", ["generate", "serve", "synthesize", "models tune", "train"])
def test_paragraphs_of_help_flow(
    run_command: RunCommand, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run_command(*name.split(), "--help")
    description = out.split("╭")[0].split("Usage:")[1]
    for paragraph in re.split(r"\n\s*\n", description.strip())[1:]:
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0].startswith("latentry"):
            continue  # an example, which ends where it ends
        for line, following in itertools.pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > 58


def test_usage_errors(run_command: RunCommand) -> None:
    assert run_command("generate")[0] == 2
    assert run_command("generate", "digits", "--colour", "red")[0] == 2
    assert run_command("stream", "digits")[0] == 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadRequest("too much"), 1, "error: too much"),
        (Busy("full"), 75, "error: full"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 75, "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_end_without_a_traceback(
    run_command: RunCommand, command: PutCommand, error: BaseException, code: int, words: str
) -> None:
    def probe() -> None:
        raise error

    command(probe)
    found, _, err = run_command("probe")
    assert found == code
    assert words in err
    assert "Traceback" not in err


def test_ctrl_c_while_a_room_is_being_loaded_is_one_line(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interrupted_room.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "probe", Command("interrupted_room:probe", "Probe.", ""))
    done = run_command("probe")
    assert (done.code, done.err.strip()) == (130, "error: interrupted")


def test_a_reader_that_left_is_no_error_to_speak_of(
    run_command: RunCommand, command: PutCommand
) -> None:
    def probe() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    command(probe)
    assert run_command("probe")[2] == ""


def test_a_missing_extra_is_named(run_command: RunCommand, command: PutCommand) -> None:
    def probe() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    command(probe, extras="train")
    code, _, err = run_command("probe")
    assert code == 1
    assert err.strip() == 'error: latentry probe needs torch: pip install "latentry[train]"'


def test_a_missing_module_of_ours_is_a_fault(command: PutCommand) -> None:
    def probe() -> None:
        raise ModuleNotFoundError("No module named 'latentry.x'", name="latentry.x")

    command(probe)
    with pytest.raises(ModuleNotFoundError, match="latentry.x"):
        main(["probe"])


def test_a_table_entry_may_be_an_app_with_subcommands(
    run_command: RunCommand, command: PutCommand
) -> None:
    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def show(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo("all")

    @app.command()
    def remove(name: str) -> None:
        typer.echo(f"removed {name}")

    command(app)
    assert run_command("probe")[1] == "all\n"
    assert run_command("probe", "remove", "digits")[1] == "removed digits\n"


def test_an_exit_code_of_a_command_is_kept(run_command: RunCommand, command: PutCommand) -> None:
    def probe() -> None:
        raise typer.Exit(75)

    command(probe)
    assert run_command("probe")[0] == 75


def test_the_entry_point_runs() -> None:
    code = "from latentry.cli.main import main; raise SystemExit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, "nonsense"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: latentry has no command nonsense")


def test_every_target_names_a_module_and_a_function() -> None:
    for command in cli.COMMANDS.values():
        assert re.fullmatch(r"latentry\.[a-z]+\.[a-z_]+:[a-z]+", command.target)


@pytest.mark.parametrize(
    ("module", "extras", "advice"),
    [
        ("ray", "synthesis,cpu", 'pip install "latentry[synthesis,cpu,ray]"'),
        ("pyarrow", "synthesis,cpu", 'pip install "latentry[synthesis,cpu]"'),
        ("torch.nn", "export,cpu", 'pip install "latentry[export,cpu]"'),
        ("torch", "", 'pip install "latentry[export]"'),
        ("onnxruntime", "serve,cpu", 'pip install "latentry[serve,cpu]"'),
    ],
)
def test_advice_brings_what_is_missing(
    run_command: RunCommand, command: PutCommand, module: str, extras: str, advice: str
) -> None:
    def probe() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    command(probe, extras)
    code, _, err = run_command("probe")
    assert code == 1
    assert err.strip().endswith(advice)


def test_every_extra_in_an_advice_is_there() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    there = set(pyproject["project"]["optional-dependencies"])
    of_commands = {extra for c in COMMANDS.values() for extra in c.extras.split(",") if extra}
    assert of_commands | {extra for extras in cli._EXTRAS.values() for extra in extras} <= there


# As on Windows; macOS lacks the functions of os.
ELSEWHERE = """
import os, sys
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "memfd_create", "getuid"):
    if hasattr(os, name):
        delattr(os, name)
from latentry.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run_elsewhere(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", ELSEWHERE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["health", "--help"],
        ["health", "--json"],
        ["generate", "plain", "--grid", "plain.png"],
        ["stream", "plain", "--seeds", "0-40", "--out", "images"],
    ],
)
def test_clients_run_on_other_systems(
    arguments: list[str],
    arithmetic_server: ArithmeticServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTRY_URL", arithmetic_server.url)
    done = run_elsewhere(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthesize", "job.toml"],
        ["synthesize", "verify", "out"],
        ["models", "remove", "digits"],
        ["profile", "digits"],
        ["serve"],
        ["export", "checkpoint"],
    ],
)
def test_other_commands_say_that_they_need_linux(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_elsewhere(*arguments)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: latentry {arguments[0]} needs Linux: .*\n", done.stderr)


def test_a_missing_function_of_the_system_is_one_line(
    run_command: RunCommand, command: PutCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    command(lambda: typer.echo(os.sched_getaffinity(0)))
    code, _, err = run_command("probe")
    assert (code, "Linux: this system has no os.sched_getaffinity" in err) == (1, True)
    command(lambda: typer.echo(os.path.nothing))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing"):
        run_command("probe")


PIPES = {
    "health": 0,
    "--help": 0,
    "generate plain --seeds 0-3 --out images": 0,
    "stream plain --seeds 0-3 --out images --json": 0,
    "generate plain --seeds=-1": 2,
    "generate nothing": 1,
    "nonsense": 2,
}


@pytest.mark.parametrize("arguments", PIPES)
def test_a_reader_that_leaves_changes_no_exit_code(
    arguments: str, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "LATENTRY_URL": arithmetic_server.url}
    command = [str(LATENTRY), *arguments.split()]
    for errors in (subprocess.PIPE, write):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=write, stderr=errors, check=False
        )
        assert done.returncode == PIPES[arguments]
        assert b"BrokenPipe" not in (done.stderr or b"")
    os.close(write)
    if "images" in arguments:
        assert len(list((tmp_path / "images").iterdir())) == 4


def test_a_closed_output_is_none(arithmetic_server: ArithmeticServer, tmp_path: Path) -> None:
    command = f"exec {LATENTRY} health --url {arithmetic_server.url} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_an_error_is_no_output_where_nobody_reads_errors() -> None:
    command = f"exec {LATENTRY} nonsense 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (EXIT_USAGE, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["models", "--help"]])
def test_a_full_disk_is_told_of_once(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(LATENTRY), *arguments],
            env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.stderr == "error: [Errno 28] No space left on device\n"
    assert done.returncode == EXIT_TRY_LATER


def test_ctrl_c_is_looked_after_before_anything_slow_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules); import latentry.cli.main;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"typer", "rich", "click", "pydantic", "numpy", "tomllib", "hashlib"}
    assert not slow & set(done.stdout.split())
