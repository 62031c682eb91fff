"""Why no connection came about, out of gRPC's texts: a certificate, another protocol, a proxy."""

import os
import re
import socket

from latentry.clients.transports.channel import host_from_url
from latentry.contract.errors import BadRequest, LatentryError, ServerFault, ServerGone
from latentry.contract.system import is_loopback

# As gRPC looks them up, and only in lower case.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPT_VARIABLES = ("no_grpc_proxy", "no_proxy")

_NO_GRPC = "is no gRPC server: it speaks another protocol; is the port right?"

_CLOSED = r"failed to connect to all addresses.*(Socket closed|Connection reset)"
_ANSWER_S = 0.5

# In this order; what stays the same with every attempt is no ServerGone, which is tried again.
_CAUSES: tuple[tuple[str, type[LatentryError], str], ...] = (
    (
        r"WRONG_VERSION_NUMBER|HTTP_REQUEST",
        ServerFault,
        "speaks no TLS; leave out tls (--tls, --ca), or give the address of its TLS proxy",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED: certificate (has expired|is not yet valid)",
        ServerFault,
        "shows a certificate that {match}; renew it, or set this machine's clock",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        ServerFault,
        "shows a certificate of an authority that is not trusted here; name a file of root "
        "certificates (tls='ca.pem', --ca ca.pem)",
    ),
    (
        r"Hostname Verification Check failed|is not in peer certificate",
        ServerFault,
        "shows a certificate for another host name; use the name that is in the certificate",
    ),
    (
        r"ALERT|CERTIFICATE_REQUIRED",
        ServerFault,
        "ended the TLS handshake; does it ask for a certificate of ours? "
        "tls=(roots, private key, certificate chain)",
    ),
    (
        r"Failed to create security handshaker",
        BadRequest,
        "was not asked: the files given with tls (--ca) hold no usable PEM certificates or key",
    ),
    (r"http1\.x server|Expected SETTINGS frame|Failed parsing HTTP/2", ServerFault, _NO_GRPC),
    (
        _CLOSED,
        ServerGone,
        "closed the connection before a word of gRPC; if it speaks TLS say tls=True (--tls), if it "
        "is no gRPC server give another address, if it is starting wait for it (retry_for_s=30, "
        "--retry-for-s 30)",
    ),
    (
        r"timed out before receiving SETTINGS",
        ServerGone,
        "takes the connection and says nothing: it hangs, or is no gRPC server",
    ),
    (
        r"errors resolving|DNS resolution failed|Domain name not found",
        ServerGone,
        "is not known: its host name has no address (DNS); is it spelled right?",
    ),
)


def error_from_connection(code: str, text: str, url: str) -> LatentryError | None:
    """Return the error for a connection that did not come about; None for anything else.

    Args:
        code: Name of gRPC's status code.
        text: gRPC's text.
        url: What was to be connected to.
    """
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerFault(
            f"{url} refuses the token, or wants one ({text}); give it in LATENTRY_TOKEN or with "
            "--token-file, in Python as headers={'authorization': 'Bearer ...'}"
        )
    if code == "UNIMPLEMENTED" and "decoupled" not in text:
        return ServerFault(f"{url} is a gRPC server, but no Triton ({text}); is the port right?")
    if code != "UNAVAILABLE" or "connect" not in text and "resol" not in text:
        return None
    for pattern, error_type, what in _CAUSES:
        if match := re.search(pattern, text, re.S):
            if pattern is _CLOSED and _speaks_http_1(url):
                error_type, what = ServerFault, _NO_GRPC
            reason = what.format(match=match[0].rpartition("certificate ")[2])
            return error_type(f"{url} {reason} ({_detail(text)}){proxy_note(url)}")
    return None


def _speaks_http_1(url: str) -> bool:
    """Whether a port of this machine, where an answer comes at once, is one of HTTP/1.

    Triton's own for metrics takes a connection of gRPC's and closes it without a word.
    """
    host, port = host_from_url(url), int(url.rpartition(":")[2])
    if not is_loopback(host):
        return False
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = connection.recv(16)
    except OSError:
        return False
    # Some that want TLS say so in HTTP/1, with 400.
    return re.match(rb"HTTP/1\.[01] (?!400)[0-9]{3}", answer) is not None


def proxy_note(url: str) -> str:
    """Return what to add where ``url`` is reached through a proxy of the environment."""
    host = host_from_url(url)
    if is_loopback(host):
        return ""
    variable = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    exempt = next((os.environ[name] for name in _EXEMPT_VARIABLES if os.environ.get(name)), "")
    if variable is None or any(_covers(entry.strip(), host) for entry in exempt.split(",")):
        return ""
    return (
        f". The connection goes through the proxy of the environment variable {variable}; "
        f"no_proxy={host} goes around it"
    )


def _covers(entry: str, host: str) -> bool:
    return bool(entry) and host.endswith(entry)


def _detail(text: str) -> str:
    """Return the part of gRPC's text that says something."""
    return text.rpartition("last error: ")[2]
