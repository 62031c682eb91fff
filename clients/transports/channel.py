"""The gRPC channel: address, TLS, headers, and the options that make a lost server noticed soon."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from latentry.contract.errors import BadRequest
from latentry.contract.files import read_regular
from latentry.contract.system import is_loopback

DEFAULT_URL = "127.0.0.1:8001"
URL_VARIABLE = "LATENTRY_URL"

Tls = bool | str | os.PathLike[str] | tuple[str | None, str, str]

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")

_MOST_PEM_BYTES = 2**24
_READY = 2  # of gRPC's connectivity states

_OPTIONS = {
    # Tritonclient's own default; gRPC's of 4 MiB is less than one batch of pictures.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # A server that hangs is noticed after one silent interval and one unanswered ping.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 2_000,
    "grpc.http2.ping_timeout_ms": 2_000,
    "grpc.http2.max_pings_without_data": 0,
    # A server that came back is found soon.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 200,
    # In spite of its name the time that one attempt to connect may take: TLS needs round trips.
    "grpc.min_reconnect_backoff_ms": 1_000,
    # Its own connection: another client's back-off is not inherited.
    "grpc.use_local_subchannel_pool": 1,
}


@dataclass(frozen=True)
class Address:
    """Where a server is and how to talk to it.

    Attributes:
        url: ``HOST:PORT``.
        credentials: PEM of root certificates, private key and certificate chain, each where given;
            None without TLS.
        metadata: Sent with every call.
    """

    url: str
    credentials: tuple[bytes | None, bytes | None, bytes | None] | None = field(repr=False)
    metadata: tuple[tuple[str, str], ...] = field(repr=False)  # it may hold a token


def address_from_arguments(
    url: str | None, *, tls: Tls = False, headers: Mapping[str, str] | None = None
) -> Address:
    """Return the address that a client's arguments name; see :class:`latentry.clients.Client`.

    Raises:
        BadRequest: One of them is not allowed.
    """
    source = "address"
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
        source = f"address in the environment's {URL_VARIABLE}"
    address = Address(_check_url(url, source), _credentials(tls), _metadata(headers or {}))
    if address.metadata and address.credentials is None and not _is_near(address):
        raise BadRequest(
            f"a token, or any other header, is not sent to {address.url} without TLS, where others "
            "can read it; give tls=True or a file of root certificates (--tls, --ca), or go "
            "through a tunnel of this machine"
        )
    return address


def open_channel(grpc: Any, address: Address, *, asynchronous: bool = False) -> Any:
    """Return a ``grpc.Channel``, or a ``grpc.aio.Channel`` of the running event loop.

    Nothing is sent: gRPC connects with the first call.
    """
    options = dict(_OPTIONS)
    if _is_near(address):
        options["grpc.enable_http_proxy"] = 0
    module = grpc.aio if asynchronous else grpc
    if address.credentials is None:
        return module.insecure_channel(address.url, options=tuple(options.items()))
    credentials = grpc.ssl_channel_credentials(*address.credentials)
    return module.secure_channel(address.url, credentials, options=tuple(options.items()))


def is_connected(channel: Any) -> bool:
    """Whether the connection of ``channel`` stands; once lost it reads so until the next call."""
    if hasattr(channel, "get_state"):
        return bool(channel.get_state().name == "READY")
    # A synchronous channel tells its state only to subscribers, by a thread that now and then keeps
    # the interpreter from ending; so this looks inside. Should that fail, "no" costs a question.
    check = getattr(getattr(channel, "_channel", None), "check_connectivity_state", None)
    return check is not None and bool(check(False) == _READY)


def host_from_url(url: str) -> str:
    """Return the host in ``HOST:PORT``, an IPv6 address without its brackets."""
    return url.rpartition(":")[0].strip("[]")


def _is_near(address: Address) -> bool:
    return is_loopback(host_from_url(address.url))


def _check_url(url: object, source: str) -> str:
    match = _HOST_AND_PORT.fullmatch(url) if isinstance(url, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        hint = _hint(url) if isinstance(url, str) else ""
        raise BadRequest(
            f"{source} {url!r} is not allowed; give HOST:PORT, such as {DEFAULT_URL}{hint}"
        )
    return match[0]


def _hint(url: str) -> str:
    """Return what to write instead, where that can be told."""
    scheme, found, rest = url.partition("://")
    if found:
        tls = ", with tls=True (--tls)" if scheme in ("https", "grpcs") else ""
        return f"; without {scheme}://, a path, or anything else around it{tls}"
    if url.count(":") > 1:
        host, _, port = url.rpartition(":")
        if len(port) < 4:  # more of the address
            host, port = url, "8001"
        with suppress(ValueError):
            return f"; an IPv6 address goes into brackets: [{ip_address(host)}]:{port}"
    return ""


def _credentials(tls: Tls) -> tuple[bytes | None, bytes | None, bytes | None] | None:
    if tls is False:
        return None
    if tls is True:
        return None, None, None
    if not isinstance(tls, tuple):
        return _read(tls), None, None
    if len(tls) != 3:
        raise BadRequest("tls takes (root certificates or None, private key, certificate chain)")
    roots, key, chain = tls
    return None if roots is None else _read(roots), _read(key), _read(chain)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return read_regular(path, most=_MOST_PEM_BYTES)
    except OSError as error:
        raise BadRequest(f"tls: {os.fspath(path)} cannot be read: {error.strerror}") from error


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    metadata = tuple((str(name).lower(), value) for name, value in headers.items())
    for name, value in metadata:
        allowed = _HEADER_NAME.fullmatch(name) and not name.startswith("grpc-")
        if not allowed or name.endswith("-bin"):
            raise BadRequest(f"header {name!r} is not allowed; use a-z, 0-9, _, - and .")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            # The value may be a secret, so it is not shown.
            raise BadRequest(f"header {name!r} holds something other than printable ASCII")
    return metadata
