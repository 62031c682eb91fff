"""What a load is put on; :class:`TritonTarget` asks one served model for images."""

from collections.abc import Callable, Sequence
from typing import Protocol

from latentry.contract.errors import BadRequest, ServerFault
from latentry.contract.transport import ModelInfo

_PAYLOADS = 64
_EXPECTED_BYTES = 64 * 2**20


class Target(Protocol):
    """What a load is put on."""

    def send(self, done: Callable[[Exception | None], None]) -> None:
        """Start one request and return; call ``done`` once, from any thread, with its error."""
        ...


class TritonTarget:
    """One request of ``batch`` images to a served model; every answer is compared.

    Requests are serialized beforehand and go through several seeds, and all classes in turn. Each
    is asked once at the start and checked by the rules of the client; from then on the same bytes
    must come back, because a seed fixes its image.
    """

    def __init__(
        self,
        url: str | None,
        model: str,
        *,
        batch: int = 1,
        image_format: str = "raw",
        payloads: int = _PAYLOADS,
    ) -> None:
        """Connect, and ask for every payload once.

        Args:
            url: ``HOST:PORT``; None takes the environment's ``LATENTRY_URL`` or 127.0.0.1:8001.
            model: Name of the model.
            batch: Images of one request.
            image_format: As for :meth:`latentry.clients.Client.generate`.
            payloads: Different requests to go through, at most.

        Raises:
            LatentryError: The server does not answer, or not as it should.
        """
        # Here, because they import gRPC.
        from latentry.clients.client import Client
        from latentry.clients.transports.channel import address_from_arguments
        from latentry.profiling.load.unary_calls import UnaryCalls

        with Client(url) as client:
            self.info = client.info(model)
        if not 1 <= batch <= self.info.max_batch_size:
            raise BadRequest(
                f"batches of {batch}; {model} takes 1 to {self.info.max_batch_size} images"
            )
        self._calls = UnaryCalls(address_from_arguments(url).url)
        self._next = 0
        answer_bytes = batch * self.info.spec.image.row_bytes
        count = max(1, min(payloads, _EXPECTED_BYTES // answer_bytes))
        try:
            self._pairs = [self._pair(turn, batch, image_format) for turn in range(count)]
        except BaseException:
            self.close()
            raise

    def send(self, done: Callable[[Exception | None], None]) -> None:
        """Start one request; see :class:`Target`."""
        message, expected = self._pairs[self._next % len(self._pairs)]
        self._next += 1

        def finish(error: Exception | None, answer: bytes) -> None:
            if error is None and answer != expected:
                error = ServerFault("the answer differs from the first one to the same seeds")
            done(error)

        self._calls.start(message, finish)

    def ask(self) -> None:
        """Send the next request and wait for its answer; raises LatentryError."""
        message, _ = self._pairs[self._next % len(self._pairs)]
        self._next += 1
        self._calls.ask(message)

    @property
    def answer_bytes(self) -> float:
        """Mean size of an answer."""
        return sum(len(answer) for _, answer in self._pairs) / len(self._pairs)

    def close(self) -> None:
        """Give up the connection."""
        self._calls.close()

    def __enter__(self) -> "TritonTarget":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pair(self, turn: int, batch: int, image_format: str) -> tuple[bytes, bytes]:
        """Return a serialized request and the answer that it must get."""
        message = _serialized_request(
            self.info, range(turn * batch, (turn + 1) * batch), image_format
        )
        answer = self._calls.ask(message)
        _check_answer(self.info, answer, batch, image_format)
        return message, answer


def _serialized_request(info: ModelInfo, seeds: Sequence[int], image_format: str) -> bytes:
    from latentry.clients.samples import CallerArguments, samples_from_arguments, unary_requests
    from latentry.clients.transports.codec import infer_request

    classes = len(info.spec.classes)
    labels = [seed % classes for seed in seeds] if classes else None
    samples = samples_from_arguments(
        info, CallerArguments(seeds=seeds, class_label=labels, format=image_format)
    )
    (inputs,) = unary_requests(samples)
    serialized: bytes = infer_request(info.name, inputs).SerializeToString()
    return serialized


def _check_answer(info: ModelInfo, answer: bytes, batch: int, image_format: str) -> None:
    from tritonclient.grpc import service_pb2

    from latentry.clients.transports.codec import reply_from_response

    outputs = reply_from_response(service_pb2.ModelInferResponse.FromString(answer)).outputs
    raw = image_format in ("raw", "float")
    name, shape = ("image", info.spec.image.row_shape) if raw else ("encoded", (1,))
    found = outputs[name].shape if name in outputs else None
    if found != (batch, *shape):
        raise ServerFault(f"{info.name} answered {name} of shape {found}, not {(batch, *shape)}")
