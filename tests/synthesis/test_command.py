"""The command ``latentry synthesize``: what it says, and its exit codes."""

import json
import re
import socket
import time
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from jobs.command import COUNTS, DIGITS, Synthesize, json_of, write
from jobs.runs import JobRun, end, tree, write_job

from latentry.cli.main import main
from latentry.clients import Client
from latentry.synthesis.shard_making import DEFAULT_RETRY_FOR_S

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


def test_a_dry_run_shows_the_plan_and_writes_nothing(synthesize: Synthesize) -> None:
    job = write(DIGITS)
    code, out, _ = synthesize(job, "--out", "out", "--dry-run")
    assert code == 0
    assert "samples  115, seeds 0 to 114" in out
    assert "         class 9: 7" in out
    assert "shards   3 of about 39, webdataset" in out
    assert "reserve  10 seeds a shard, to 144" in out
    assert re.search(r"size     about \d+ kB, by \d+ samples", out)
    assert re.search(r"time     about .* s, \d+ images/s", out)
    assert out.endswith("nothing was written\n")
    facts = json_of(synthesize(job, "--dry-run", "--json"))
    assert facts["planned_samples"] == 115
    assert facts["planned_shards"] == 3
    assert facts["seeds"] == [0, 114]
    assert {path.name for path in Path().iterdir()} == {"job.toml"}


def test_the_estimate_of_the_size_is_near(synthesize: Synthesize, made: Path) -> None:
    facts = json_of(synthesize(write(DIGITS), "--dry-run", "--json"))
    size = json.loads((made / "index.json").read_bytes())["bytes"]
    assert abs(facts["bytes"] / size - 1) < 0.2


def test_the_summary_counts_what_was_made(synthesize: Synthesize) -> None:
    code, out, _ = synthesize(write(DIGITS, "numbers.toml"))
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(r"numbers: 115 samples in 3 shards, \d+ kB, \d+\.\d s", lines[0])
    assert lines[1] == "classes  " + ", ".join(f"{label}: {n}" for label, n in COUNTS.items())
    assert lines[2:] == ["contact sheet: numbers/contact-sheet.png"]


def test_status_tells_how_far_it_is(synthesize: Synthesize, made: Path, client: Client) -> None:
    code, out, _ = synthesize("status", made)
    assert code == 0
    digest = client.info("digits").model_digest
    assert out.splitlines()[0] == f"{made}: whole, digits {digest[:12]}"
    assert "shards   3 of 3" in out
    assert "samples  115 of 115, " in out
    state = json_of(synthesize("status", made, "--json"))
    assert state["whole"] is True
    assert state["by_class"] == COUNTS
    assert state["model_digest"] == digest


def test_verify_tells_what_it_did(synthesize: Synthesize, made: Path) -> None:
    code, out, _ = synthesize("verify", made, "--samples", 20)
    assert code == 0
    assert out == "verified: 115 samples in 3 shards, 20 drawn again and equal\n"
    verdict = json_of(synthesize("verify", made, "--samples", 0, "--json"))
    assert verdict == {
        "verified": True, "shards": 3, "samples": 115, "problems": [], "duplicates": [],
        "drawn_again": 0, "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["synthesize job.toml --dry-run", "synthesize verify OUT", "--limit", "--take-over"]),
        (["run"], ["Make the samples of a job"]),
        (["verify"], ["Check every hash of a job's output", "--samples"]),
        (["status"], ["Tell how far a job is"]),
    ],
)
def test_help(synthesize: Synthesize, arguments: list[str], words: list[str]) -> None:
    code, out, _ = synthesize(*arguments, "--help")
    assert code == 0
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("text", "arguments", "code", "words"),
    [
        ("model = ", [], 1, "job.toml is no TOML"),
        ('model = "digits"\n[samples]\nseeds = "0-9"', [], 1, "digits needs class_label: say how"),
        ('model = "nosuch"\n[samples]\nseeds = "0-9"', [], 1, "nosuch"),
        (DIGITS, ["--limit", "0"], 2, "--limit"),
        (DIGITS, ["--workers", "0"], 2, "--workers"),
        (DIGITS, ["--url", "x:1"], 2, "go with --draw-with server; --draw-with local needs none"),
        (DIGITS, ["--address", "auto"], 2, "--address goes with --draw-with ray"),
        (DIGITS, ["--out", "nosuch://x"], 1, "--out nosuch://x: "),
        ('model_digest = "' + "0" * 64 + '"' + DIGITS, [], 1, "with the model digest 00000000"),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(
    synthesize: Synthesize, text: str, arguments: list[str], code: int, words: str
) -> None:
    found, out, err = synthesize(write(text), *arguments)
    assert found == code
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert {path.name for path in Path().iterdir()} == {"job.toml"}


def test_a_missing_job_is_named(synthesize: Synthesize) -> None:
    code, _, err = synthesize("gone.toml")
    assert code == 1
    assert "gone.toml cannot be read: No such file or directory" in err
    for command in ("verify", "status"):
        code, _, err = synthesize(command, "gone")
        assert code == 1
        assert "gone holds no job.json; give the folder of a job" in err


def test_a_server_that_was_never_there_is_told_at_once(
    synthesize: Synthesize, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text('model = "wide"\n[samples]\nseeds = "0-7"\n')
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = time.monotonic()
        code = main(["synthesize", str(tmp_path / "job.toml"), "--url", url])
    assert code == 75
    assert time.monotonic() - started < DEFAULT_RETRY_FOR_S / 2


def test_a_server_that_comes_late_is_waited_for_where_that_is_asked_for(tmp_path: Path) -> None:
    job = write_job(tmp_path, 'model = "plain"\n[samples]\nseeds = "0-7"\n')
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(60)
        port = nobody.getsockname()[1]
        options = ("--url", f"127.0.0.1:{port}", "--workers", "1", "--retry-for-s", "120")
        process = JobRun(job, tmp_path / "out", options).start()
        try:
            for _ in range(4):  # longer than anybody asks who does not wait
                nobody.accept()[0].close()
        except BaseException:
            end(process)
            raise
    server = ArithmeticServer(port)
    try:
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
        server.stop()
    assert process.returncode == 0, message
    assert "index.json" in tree(tmp_path / "out")


@pytest.mark.parametrize(
    ("typed", "meant"), [("verfy", "verify"), ("statsu", "status"), ("rnu", "run")]
)
@pytest.mark.parametrize("rest", [[], ["x"], ["x", "--json"]])
def test_a_command_that_is_mistyped_is_named(
    capsys: pytest.CaptureFixture[str], typed: str, meant: str, rest: list[str]
) -> None:
    assert main(["synthesize", typed, *rest]) == 2
    error = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert f"there is no command {typed}; did you mean {meant}?" in error


@pytest.mark.parametrize("name", ["verfy", "verify.toml"])
def test_a_job_may_have_nearly_the_name_of_a_command(synthesize: Synthesize, name: str) -> None:
    if name == "verify.toml":
        assert "verify.toml cannot be read: No such file" in synthesize(name)[2]
    assert (
        synthesize(write('model = "wide"\n[samples]\nseeds = "0-3"\n', name), "--out", "out")[0]
        == 0
    )


def test_status_sees_a_shard_that_is_gone(synthesize: Synthesize, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'model = "wide"\n[samples]\nseeds = "0-9"\n[output]\nshard_size = 5\n'
    )
    assert synthesize("job.toml", "--out", "out")[0] == 0
    assert synthesize("status", "out")[0] == 0
    (tmp_path / "out" / "shard-000001.tar").unlink()
    code, output, _ = synthesize("status", "out")
    assert (code, "not whole" in output) == (1, True)
