"""Verbs that let one client harm others are shut, for everybody, by a header nobody can send."""

from pathlib import Path

import psutil
import pytest
from running_server import RunningServer
from tritonclient.grpc import service_pb2

from latentry.clients import Client, LatentryError
from latentry.profiling.load.unary_calls import UnaryCalls

pytestmark = pytest.mark.server

SERVICE = "/inference.GRPCInferenceService/"
PREFIX = "triton-grpc-protocol-"
SHUT = {
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(
        name="r", key="/x", byte_size=8
    ),
    "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(name="r"),
    "CudaSharedMemoryUnregister": service_pb2.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="wide"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="wide"),
}


def header_from_arguments(server: RunningServer) -> tuple[str, str]:
    """Return the very header that opens the verbs, as any user of the machine can read it."""
    arguments = psutil.Process(server.triton_pid()).cmdline()
    flag = next(text for text in arguments if text.startswith("--grpc-restricted-protocol="))
    name, _, value = flag.rpartition(":")[2].partition("=")
    return PREFIX + name, value


def ask(server: RunningServer, verb: str, *headers: tuple[str, str]) -> bytes:
    """Send a raw HTTP/2 request, whose headers no library looks at."""
    calls = UnaryCalls(server.url, SERVICE + verb)
    for name, value in headers:
        for text in (
            b"\0" + bytes([len(name)]),
            name.encode(),
            bytes([len(value)]),
            value.encode(),
        ):
            calls._headers += text
    try:
        return calls.ask(SHUT[verb].SerializeToString())
    finally:
        calls.close()


@pytest.mark.parametrize("verb", SHUT)
def test_the_very_header_opens_nothing(triton: RunningServer, verb: str) -> None:
    name, value = header_from_arguments(triton)
    assert name != name.lower()
    for headers in (
        [],
        [(name, value)],
        [(name.lower(), value)],
        [(name.upper(), value)],
        [(name.lower(), value), (name, value)],
    ):
        with pytest.raises(LatentryError, match="restricted|reset the request|not allowed"):
            ask(triton, verb, *headers)
    with Client(triton.url) as client:
        assert len(client.generate("wide", seeds=range(3))) == 3


def test_shared_memory_is_closed_to_other_users(triton: RunningServer) -> None:
    regions = [Path("/dev/shm") / name for name in triton.shared_memory()]
    assert regions
    assert not [region for region in regions if region.stat().st_mode & 0o077]
