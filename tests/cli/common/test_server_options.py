"""The options that name a server, in every command that talks to one."""

import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from certificates import Authority, tls_server
from running_server import LATENTRY

from latentry.cli.main import main
from latentry.clients import BadRequest
from latentry.clients.server import Server

TOKEN = "s3cret-token"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
def tls_url(authority: Authority, arithmetic_server: ArithmeticServer) -> Iterator[str]:
    with tls_server(authority.certificate(), arithmetic_server.double) as url:
        yield url


@pytest.mark.parametrize(
    "command",
    [
        ["health", "--json"],
        ["generate", "plain", "--seeds", "0-3", "--out", "images"],
        ["stream", "plain", "--seeds", "0-30", "--out", "images"],
    ],
)
def test_commands_talk_through_tls_with_a_token(
    command: list[str],
    authority: Authority,
    arithmetic_server: ArithmeticServer,
    tls_url: str,
    token_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--url", tls_url, "--ca", str(authority.roots)]
    assert main([*command, *where, "--token-file", str(token_file)]) == 0
    assert arithmetic_server.double.metadata
    sent = {metadata.get("authorization") for metadata in arithmetic_server.double.metadata}
    assert sent == {f"Bearer {TOKEN}"}


def test_the_token_of_the_environment_and_tls_with_the_machines_roots(
    authority: Authority,
    arithmetic_server: ArithmeticServer,
    tls_url: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    environment = {
        **os.environ,
        "LATENTRY_TOKEN": TOKEN,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(authority.roots),
    }
    command = [str(LATENTRY), "health", "--url", tls_url, "--tls", "--json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["ready"]
    assert arithmetic_server.double.metadata[0]["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in run.stdout + run.stderr


def test_a_certificate_that_is_not_trusted_is_one_line(
    tls_url: str, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["generate", "plain", "--url", tls_url, "--tls", "--token-file", str(token_file)])
    error = capsys.readouterr().err
    assert code == 1
    assert "certificate of an authority that is not trusted here" in error
    assert TOKEN not in error


def test_no_token_without_tls_but_on_this_machine(
    arithmetic_server: ArithmeticServer, token_file: Path
) -> None:
    with Server(arithmetic_server.url, token_file=token_file).open_client() as client:
        assert client.models()
    assert arithmetic_server.double.metadata[0]["authorization"] == f"Bearer {TOKEN}"
    with pytest.raises(BadRequest, match=r"is not sent to 10\.0\.0\.1:8001 without TLS") as error:
        Server("10.0.0.1:8001", token_file=token_file).open_client()
    assert TOKEN not in str(error.value)
    Server("10.0.0.1:8001", tls=True, token_file=token_file).open_client().close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"one\ntwo\n", "is not one line of printable ASCII"),
        (b"one\x1b[2J", "is not one line of printable ASCII"),
        ("schlüssel".encode(), "is not one line of printable ASCII"),
        (b"x" * 100_000, "larger than"),
    ],
)
def test_token_files_that_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(BadRequest, match=f"--token-file.*{words}") as error:
        Server(token_file=file).open_client(token_called="--token-file")
    assert "two" not in str(error.value)


def test_a_token_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", "."):
        with pytest.raises(BadRequest, match="^token_file "):
            Server(token_file=tmp_path / name).open_client()


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_one_line_ending_is_no_part_of_a_token(
    ending: bytes, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN.encode() + ending)
    with Server(arithmetic_server.url, token_file=file).open_client() as client:
        client.models()
    assert arithmetic_server.double.metadata[0]["authorization"] == f"Bearer {TOKEN}"


def test_a_server_is_pickled_and_shown_without_its_token(
    arithmetic_server: ArithmeticServer, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTRY_TOKEN", TOKEN)
    for where in (
        Server(arithmetic_server.url, token_file=token_file),
        Server(arithmetic_server.url),
    ):
        assert TOKEN.encode() not in pickle.dumps(where)
        assert TOKEN not in repr(where)
        client = where.open_client()
        assert TOKEN not in repr(client) + repr(vars(client))


def test_profile_says_that_it_speaks_neither(
    capsys: pytest.CaptureFixture[str], token_file: Path
) -> None:
    for options in (["--tls"], ["--ca", "x.pem"], ["--token-file", str(token_file)]):
        assert main(["profile", "digits", *options]) == 2
        assert "profile measures without TLS and tokens" in capsys.readouterr().err


def test_a_job_and_its_workers_talk_through_tls(
    authority: Authority,
    arithmetic_server: ArithmeticServer,
    tls_url: str,
    token_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tmp_path / "job.toml"
    job.write_text('model = "digits"\n[samples]\nper_class = { "0-2" = 4 }\n')
    where = ["--url", tls_url, "--ca", str(authority.roots), "--token-file", token_file.name]
    assert main(["synthesize", str(job), "--out", "out", "--workers", "2", *where]) == 0
    assert main(["synthesize", "verify", "out", "--workers", "2", *where]) == 0
    assert (
        arithmetic_server.double.calls.count("infer")
        + arithmetic_server.double.calls.count("stream")
        > 0
    )
    sent = {metadata.get("authorization") for metadata in arithmetic_server.double.metadata}
    assert sent == {f"Bearer {TOKEN}"}
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


COMMANDS = (
    *(["health"], ["generate"], ["stream"], ["profile"]),
    *(["synthesize", "run"], ["synthesize", "verify"]),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_talks_to_a_server_has_the_options(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--url", "--tls", "--ca", "--token-file"))
