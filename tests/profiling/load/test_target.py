import pytest
from running_server import RunningServer

from latentry.contract.errors import BadRequest, NotFound, ServerGone
from latentry.profiling.load.schedules import run_closed, run_open
from latentry.profiling.load.target import TritonTarget

pytestmark = pytest.mark.server


@pytest.mark.parametrize("image_format", ["raw", "png", "float"])
@pytest.mark.parametrize("model", ["digits", "mapped"])
def test_a_served_model_is_asked_and_every_answer_is_right(
    triton: RunningServer, model: str, image_format: str
) -> None:
    with TritonTarget(triton.url, model, batch=3, image_format=image_format, payloads=5) as target:
        opened = run_open(target, rate=100, duration_s=0.3, warm_up_s=0)
        closed = run_closed(target, outstanding=4, duration_s=0.2, warm_up_s=0)
    assert not opened.errors
    assert not closed.errors
    assert opened.completed == opened.sent > 10
    assert target.answer_bytes > 100


def test_a_wrong_answer_is_an_error(triton: RunningServer) -> None:
    with TritonTarget(triton.url, "digits", payloads=2) as target:
        message, answer = target._pairs[1]
        target._pairs[1] = (message, answer[:-1] + bytes([answer[-1] ^ 1]))
        result = run_open(target, rate=50, duration_s=0.4, warm_up_s=0, arrivals="constant")
    assert result.errors == {"the answer differs from the first one to the same seeds": 10}


def test_what_is_not_served_is_refused(triton: RunningServer) -> None:
    with pytest.raises(NotFound, match="'nope' is not being served"):
        TritonTarget(triton.url, "nope")
    with pytest.raises(BadRequest, match="batches of 33; digits takes 1 to 32 images"):
        TritonTarget(triton.url, "digits", batch=33)
    with pytest.raises(ServerGone):
        TritonTarget("127.0.0.1:1", "digits")
