import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from doubles import RunCommand
from running_server import RunningServer, run_server, wait_until

from latentry.clients import Client


def test_health(run_command: RunCommand, arithmetic_server: ArithmeticServer) -> None:
    code, out, _ = run_command("health", "--url", arithmetic_server.url)
    assert code == 0
    assert "ready: serving digits, mapped, plain" in out
    code, out, _ = run_command("health", "--url", arithmetic_server.url, "--json")
    assert json.loads(out)["models"][0]["engine_class"] == "numpy-1"


def test_a_model_that_goes_while_it_is_asked_about_hides_no_other(
    run_command: RunCommand, arithmetic_server: ArithmeticServer
) -> None:
    infos = arithmetic_server.double.transport.infos
    infos["resnet"] = infos["plain"]  # the server lists it and does not describe it
    code, out, _ = run_command("health", "--url", arithmetic_server.url, "--json")
    assert code == 0
    models = {model["model"]: model for model in json.loads(out)["models"]}
    assert "resnet is not a Latentry generator" in models["resnet"]["error"]
    assert models["digits"]["engine_class"] == "numpy-1"


def test_health_of_nobody(run_command: RunCommand) -> None:
    code, out, _ = run_command("health", "--url", "127.0.0.1:1")
    assert code == 75
    assert "not ready: no answer from 127.0.0.1:1" in out


def test_what_waiting_does_not_mend_ends_as_generate_does(
    run_command: RunCommand, arithmetic_server: ArithmeticServer
) -> None:
    for command in (["health"], ["generate", "plain"]):
        assert run_command(*command, "--url", arithmetic_server.url, "--tls").code == 1
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        code, out, _ = run_command("health", "--url", f"127.0.0.1:{http.server_port}")
        http.shutdown()
        thread.join()
    assert (code, "is no gRPC server" in out) == (1, True)


@pytest.mark.server
def test_the_port_for_metrics_is_no_grpc_server(
    run_command: RunCommand, triton: RunningServer
) -> None:
    url = triton.metrics_url.removeprefix("http://").partition("/")[0]
    code, out, _ = run_command("health", "--url", url)
    assert (code, f"not ready: {url} is no gRPC server" in out) == (1, True)
    code, _, err = run_command("generate", "digits", "--url", url)
    assert (code, f"error: {url} is no gRPC server" in err) == (1, True)


def test_a_server_that_starts_is_not_ready(
    run_command: RunCommand, arithmetic_server: ArithmeticServer
) -> None:
    arithmetic_server.double.transport.is_ready = False
    code, out, _ = run_command("health", "--url", arithmetic_server.url)
    assert (code, "not every model is ready" in out) == (75, True)


@pytest.mark.server
def test_a_server_that_drains_is_not_ready(run_command: RunCommand, repository: Path) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(
            run_server(repository, "--models", "large", "--drain-s", "60")
        )
        client = stack.enter_context(Client(running.url))
        assert run_command("health", "--url", running.url).code == 0
        chunks = client.stream("large", seeds=range(200), chunk_size=4)
        next(chunks)
        running.process.terminate()
        wait_until(lambda: run_command("health", "--url", running.url).code == 75)
        code, out, _ = run_command("health", "--url", running.url)
        assert "not ready:" in out
        assert "is shutting down" in out
        assert sum(map(len, chunks)) == 196
