import inspect
import subprocess
import sys

import latentry.clients
from latentry.clients import AsyncTransport, Transport
from latentry.clients.transports.grpc_transport import AsyncGrpcTransport, GrpcTransport


def test_the_public_door_is_sorted_and_complete() -> None:
    names = {
        name
        for name, value in vars(latentry.clients).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert sorted(names) == latentry.clients.__all__


def test_importing_the_clients_loads_neither_grpc_nor_engines() -> None:
    code = (
        "import sys, latentry.clients, latentry.cli.main; "
        "heavy = {'grpc', 'tritonclient', 'torch', 'onnxruntime', 'onnx', 'rich.progress'}; "
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_client_needs_neither_torch_nor_an_engine() -> None:
    hidden = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime'])); "
        "from latentry.clients import Client; Client('127.0.0.1:1').close()"
    )
    subprocess.run([sys.executable, "-c", hidden], check=True)


def test_the_transports_have_what_the_protocol_asks() -> None:
    for kind, protocol in ((GrpcTransport, Transport), (AsyncGrpcTransport, AsyncTransport)):
        for name in ("ready", "model_names", "model_info", "infer", "stream", "close"):
            wanted = inspect.signature(getattr(protocol, name)).parameters
            assert list(inspect.signature(getattr(kind, name)).parameters) == list(wanted)
