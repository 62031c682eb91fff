"""Certificates for tests, made by openssl, and a gRPC server that shows one."""

import subprocess
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

_LOOPBACK = "DNS:localhost,IP:127.0.0.1,IP:::1"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Signs certificates; ``roots`` is the file to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self.roots = folder / "roots.pem"
        self._key = folder / "roots.key"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.roots,
                 "-days", "3", "-subj", "/CN=tests")  # fmt: skip

    def certificate(self, *, names: str = _LOOPBACK, days: int = 3) -> tuple[Path, Path]:
        """Return the files of a private key and its certificate, for a host of these names."""
        self._made += 1
        stem = self._folder / f"host{self._made}"
        key, request, chain, extensions = (
            stem.with_suffix(suffix) for suffix in (".key", ".csr", ".pem", ".ext")
        )
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", "/CN=host")
        _openssl("x509", "-req", "-in", request, "-CA", self.roots, "-CAkey", self._key,
                 "-CAcreateserial", "-days", str(days), "-extfile", extensions,
                 "-out", chain)  # fmt: skip
        return key, chain


@contextmanager
def tls_server(certificate: tuple[Path, Path], servicer: Any = None) -> Iterator[str]:
    """Serve with TLS on loopback; give HOST:PORT."""
    key, chain = (path.read_bytes() for path in certificate)
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        if servicer is not None:
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        credentials = grpc.ssl_server_credentials([(key, chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def _openssl(*arguments: str | Path) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
