import json

from arithmetic_server import ArithmeticServer
from doubles import Run


def test_health(run: Run, server: ArithmeticServer) -> None:
    code, out, _ = run("health", "--url", server.url)
    assert code == 0
    assert "ready: serving digits, mapped, plain" in out
    code, out, _ = run("health", "--url", server.url, "--json")
    assert json.loads(out)["models"][0]["engine_class"] == "numpy-1"


def test_health_of_nobody(run: Run) -> None:
    code, out, _ = run("health", "--url", "127.0.0.1:1")
    assert code == 75
    assert "not ready: no answer from 127.0.0.1:1" in out
