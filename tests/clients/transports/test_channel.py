import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import arithmetic_server
import grpc
import pytest
from arithmetic_server import ArithmeticServer
from doubles import InfoOf

from latentry.clients import AsyncClient, BadRequest, Client, ServerGone
from latentry.clients.transports.channel import (
    Tls,
    address_from_arguments,
    is_connected,
    open_channel,
)


def test_the_address_comes_from_the_argument_the_environment_or_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LATENTRY_URL", raising=False)
    assert address_from_arguments(None).url == "127.0.0.1:8001"
    monkeypatch.setenv("LATENTRY_URL", "render-3:9000")
    assert address_from_arguments(None).url == "render-3:9000"
    assert address_from_arguments("[::1]:8001").url == "[::1]:8001"


@pytest.mark.parametrize(
    "url", ["", "host", "host:", ":8001", "http://host:1", "host:0", "host:65536", "a b:1", "h:1/x"]
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="is not allowed; give HOST:PORT"):
        address_from_arguments(url)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("::1:8001", r"into brackets: \[::1\]:8001"),
        ("::1", r"into brackets: \[::1\]:8001"),
        ("2001:db8::1:9", r"into brackets: \[2001:db8::1:9\]:8001"),
        ("http://render-3:8001", "without http://, a path, or anything else around it$"),
        ("grpcs://render-3:8001/", r"without grpcs://, .* with tls=True \(--tls\)"),
        (8001, "address 8001 is not allowed"),
    ],
)
def test_addresses_that_are_refused_with_advice(url: str, hint: str) -> None:
    with pytest.raises(BadRequest, match=hint):
        address_from_arguments(url)


def test_a_wrong_variable_is_named_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENTRY_URL", "render-3")
    with pytest.raises(BadRequest, match="in the environment's LATENTRY_URL 'render-3' is not"):
        address_from_arguments(None)
    monkeypatch.setenv("LATENTRY_URL", "")
    assert address_from_arguments(None).url == "127.0.0.1:8001"


def test_headers_become_metadata() -> None:
    address = address_from_arguments("h:1", tls=True, headers={"Authorization": "Bearer x"})
    assert address.metadata == (("authorization", "Bearer x"),)


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_headers_go_to_another_machine_through_tls_only(
    make: type[Client] | type[AsyncClient],
) -> None:
    headers = {"authorization": "Bearer secret"}
    for url in ("render-3:8001", "10.0.0.1:8001", "[::2]:8001", "localhost.example:8001"):
        with pytest.raises(BadRequest, match=r"is not sent to .* without TLS.* tls=True") as error:
            make(url, headers=headers)
        assert "secret" not in str(error.value)
        make(url, headers=headers, tls=True)
    for url in ("127.0.0.1:8001", "localhost:8001", "[::1]:8001"):
        make(url, headers=headers)


@pytest.mark.parametrize("name", ["", "a b", "grpc-timeout", "key-bin", "ü"])
def test_header_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="use a-z, 0-9"):
        address_from_arguments("h:1", headers={name: "x"})


@pytest.mark.parametrize("value", [7, None, b"secret"])
def test_header_values_are_texts(value: Any) -> None:
    with pytest.raises(BadRequest, match="'token' holds something other") as error:
        address_from_arguments("h:1", headers={"token": value})
    assert "secret" not in str(error.value)


def test_a_bad_header_value_is_not_shown() -> None:
    with pytest.raises(BadRequest, match="'token' holds something other") as error:
        address_from_arguments("h:1", headers={"token": "secret\n"})
    assert "secret" not in str(error.value)


def test_tls_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="roots.pem cannot be read: No such file"):
        address_from_arguments("h:1", tls=tmp_path / "roots.pem")
    with pytest.raises(BadRequest, match="private key, certificate chain"):
        address_from_arguments("h:1", tls=("a", "b"))  # type: ignore[arg-type]


def test_tls_makes_credentials(tmp_path: Path) -> None:
    for name in ("roots", "key", "chain"):
        (tmp_path / name).write_bytes(b"pem")
    roots, key, chain = (str(tmp_path / name) for name in ("roots", "key", "chain"))
    choices: tuple[Tls, ...] = (True, roots, (roots, key, chain), (None, key, chain))
    assert address_from_arguments("h:1").credentials is None
    for tls in choices:
        assert address_from_arguments("h:1", tls=tls).credentials is not None
    open_channel(grpc, address_from_arguments("h:1", tls=True)).close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Have the environment name a proxy; give what it is told."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        heard.append(connection.recv(4096))

        listening = threading.Thread(target=listen)
        listening.start()
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield heard
        listener.shutdown(socket.SHUT_RDWR)
        listening.join()


def test_a_proxy_of_the_environment_is_asked_for_other_machines_only(
    arithmetic_server: ArithmeticServer, proxy: list[bytes]
) -> None:
    with Client(arithmetic_server.url, retry_for_s=0) as client:
        assert client.models() == ["digits", "mapped", "plain"]
    assert not proxy
    with Client("render-3.invalid:8001", retry_for_s=0) as client, pytest.raises(ServerGone):
        client.models()
    assert proxy[0].startswith(b"CONNECT render-3.invalid:8001 ")


def test_a_new_channel_is_not_connected() -> None:
    with open_channel(grpc, address_from_arguments("127.0.0.1:1")) as channel:
        assert not is_connected(channel)


FROZEN = """
import sys, time
from arithmetic_server import ArithmeticServer
from running_server import wait_until
server = ArithmeticServer()
server.double.hold.clear()
print(server.url, flush=True)
wait_until(lambda: "infer" in server.double.calls)
time.sleep(float(sys.argv[1]))
print("asked", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("quiet_s", ["0", "3"])
def test_a_server_that_is_frozen_is_noticed_without_any_deadline(quiet_s: str) -> None:
    """Its connection stands; only that it answers no ping tells of it.

    Soon after something was said gRPC sends some of its own; later the client's do, after 12 s.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(arithmetic_server.__file__).parent)}
    with (
        subprocess.Popen(
            [sys.executable, "-c", FROZEN, quiet_s],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            assert process.stdout is not None
            with Client(process.stdout.readline().strip(), timeout_s=None, retry_for_s=0) as client:
                answer = pool.submit(client.generate, "plain", seeds=1)
                assert process.stdout.readline() == "asked\n"
                process.send_signal(signal.SIGSTOP)
                assert isinstance(answer.exception(120), ServerGone)
        finally:
            process.kill()


def test_an_answer_may_be_larger_than_grpcs_own_limit(
    arithmetic_server: ArithmeticServer, info: InfoOf
) -> None:
    arithmetic_server.double.transport.infos["plain"] = info("plain", max_batch_size=60_000)
    with Client(arithmetic_server.url) as client:
        assert client.generate("plain", seeds=range(60_000)).images.nbytes > 4 * 2**20
    assert arithmetic_server.double.calls.count("infer") == 1
