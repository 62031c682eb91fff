"""What stands at the other end, where it is no Latentry server that can be talked to."""

import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import grpc
import pytest
from arithmetic_server import ArithmeticServer
from certificates import Authority, tls_server

from latentry.clients import BadRequest, Client, LatentryError, ServerFault, ServerGone
from latentry.clients.transports.connection_errors import error_from_connection, proxy_note


@contextmanager
def talker(words: bytes) -> Iterator[str]:
    """Listen, send ``words`` to whoever comes, and hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(words)
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(5)
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def failure(url: str, **arguments: Any) -> LatentryError:
    with Client(url, **arguments) as client, pytest.raises(LatentryError) as error:
        client.models()
    return error.value


def test_tls_with_the_authority_that_signed(
    authority: Authority, arithmetic_server: ArithmeticServer
) -> None:
    double = arithmetic_server.double
    with tls_server(authority.certificate(), double) as url, Client(url, tls=authority.roots) as c:
        assert c.models() == ["digits", "mapped", "plain"]


@pytest.mark.parametrize(
    ("certificate", "trusted", "words"),
    [
        ({}, False, "certificate of an authority that is not trusted here; .*--ca ca.pem"),
        ({"names": "DNS:elsewhere.example"}, True, "certificate for another host name"),
        ({"days": -1}, True, "certificate that has expired"),
    ],
)
def test_certificates_that_are_refused(
    authority: Authority, certificate: dict[str, Any], trusted: bool, words: str
) -> None:
    with tls_server(authority.certificate(**certificate)) as url:
        error = failure(url, tls=authority.roots if trusted else True, retry_for_s=30)
    assert type(error) is ServerFault  # another attempt would not help
    with pytest.raises(ServerFault, match=f"^{url} shows a {words}"):
        raise error


def test_tls_and_no_tls(authority: Authority, arithmetic_server: ArithmeticServer) -> None:
    assert "speaks no TLS; leave out tls (--tls, --ca)" in str(
        failure(arithmetic_server.url, tls=True)
    )
    with tls_server(authority.certificate()) as url:
        assert "if it speaks TLS say tls=True (--tls)" in str(failure(url))


def test_roots_that_are_no_certificates(authority: Authority, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text("nonsense")
    with tls_server(authority.certificate()) as url:
        error = failure(url, tls=roots)
    assert type(error) is BadRequest
    assert "hold no usable PEM certificates" in str(error)


@pytest.mark.parametrize(
    "words", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK ready\r\n"]
)
def test_other_protocols(words: bytes) -> None:
    with talker(words) as url:
        error = failure(url, retry_for_s=30)
    assert type(error) is ServerFault
    assert f"{url} is no gRPC server: it speaks another protocol" in str(error)


def test_a_listener_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = failure(f"127.0.0.1:{listener.getsockname()[1]}", retry_for_s=0)
    assert type(error) is ServerGone
    assert "takes the connection and says nothing: it hangs, or is no gRPC server" in str(error)


def test_an_http_server() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        error = failure(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert "is no gRPC server" in str(error)


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ServerFault, "is no gRPC server: it speaks another"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", ServerFault, "is no gRPC server: it speaks another"),
        # As of those that want TLS.
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", ServerGone, "if it speaks TLS say tls=True"),
        (b"", ServerGone, "if it is starting wait for it"),
    ],
)
def test_an_http_server_that_closes_without_a_word(
    answer: bytes, expected: type[LatentryError], words: str
) -> None:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            if not self.rfile.readline().startswith(b"PRI"):
                self.wfile.write(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        error = failure(f"127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    assert type(error) is expected
    assert words in str(error)


def test_a_grpc_server_that_is_no_triton() -> None:
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        assert f"{url} is a gRPC server, but no Triton" in str(failure(url))
        server.stop(None).wait()


def test_a_refused_connection_and_an_unknown_host() -> None:
    refused = failure("127.0.0.1:1")
    assert type(refused) is ServerGone
    assert "Connection refused" in str(refused)
    unknown = failure("no-such-host.invalid:8001")
    assert "no-such-host.invalid:8001 is not known: its host name has no address" in str(unknown)


def test_a_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:1")
    text = str(failure("render-3.invalid:8001"))
    assert "through the proxy of the environment variable https_proxy; no_proxy=render-3." in text
    assert "secret" not in text
    assert "https_proxy" not in str(failure("127.0.0.1:1"))
    monkeypatch.setenv("no_proxy", "elsewhere, .invalid")
    assert proxy_note("render-3.invalid:8001") == ""


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED]
)
def test_a_refused_token_says_how_to_give_one(
    arithmetic_server: ArithmeticServer, code: grpc.StatusCode
) -> None:
    arithmetic_server.double.abort = (code, "who are you?")
    text = str(failure(arithmetic_server.url, headers={"authorization": "Bearer secret"}))
    assert "refuses the token, or wants one (who are you?)" in text
    assert "--token-file" in text
    assert "Bearer secret" not in text


@pytest.mark.parametrize("url", ["127.0.0.1:1", "10.0.0.1:8001"])
def test_a_connection_that_was_closed_and_about_which_nothing_more_is_known(url: str) -> None:
    text = "failed to connect to all addresses; last error: UNAVAILABLE: Socket closed"
    error = error_from_connection("UNAVAILABLE", text, url)
    assert type(error) is ServerGone
    assert "closed the connection before a word of gRPC" in str(error)
