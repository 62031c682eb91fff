"""What a load is put on; :class:`TritonTarget` asks one served model for images."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from latentry.contract.errors import BadRequest, ServerFault
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.formats import format_from_text
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo

_PAYLOADS = 64
_EXAMPLES = 8
_KEPT_BYTES = 64 * 2**20


class ExampleInputs:
    """What a generator's samples are asked with: sample k has seed k where there are seeds.

    Classes and other required inputs go round; whatever has a default is left out.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        route = spec.route(frozenset())
        self._has_seeds = bool(route.drawn)
        self._rows = {
            item.name: item.examples(
                len(item.classes) if isinstance(item, ClassInput) else _EXAMPLES
            )
            for item in route.inputs
            if item not in route.drawn and item.default_row() is None
        }

    @property
    def row_bytes(self) -> int:
        """Size of one sample's inputs, without its seed."""
        return sum(rows[0].nbytes for rows in self._rows.values())

    def arguments(self, turns: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of ``Client.generate`` for the samples ``turns``."""
        places = np.array(turns)
        if self._has_seeds:
            inputs = {name: rows[places % len(rows)] for name, rows in self._rows.items()}
            return {**inputs, "seeds": turns}
        # Each round begins one later, or batches of as many as there are would all be the same.
        return {
            name: rows[(places + places // len(rows)) % len(rows)]
            for name, rows in self._rows.items()
        }


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
        self._examples = ExampleInputs(self.info.spec)
        answer_bytes = self.info.spec.row_bytes(format_from_text(image_format))
        largest = batch * max(answer_bytes, self._examples.row_bytes)
        count = max(1, min(payloads, _KEPT_BYTES // largest))
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
        arguments = self._examples.arguments(range(turn * batch, (turn + 1) * batch))
        message = _serialized_request(self.info, arguments, image_format)
        answer = self._calls.ask(message)
        _check_answer(self.info, answer, batch, image_format)
        return message, answer


def _serialized_request(info: ModelInfo, arguments: dict[str, Any], image_format: str) -> bytes:
    from latentry.clients.samples import CallerArguments, samples_from_arguments, unary_requests
    from latentry.clients.transports.codec import infer_request

    seeds = arguments.pop("seeds", None)
    given = CallerArguments(seeds=seeds, inputs=arguments, format=image_format)
    samples = samples_from_arguments(info, given)
    (inputs,) = unary_requests(samples)
    serialized: bytes = infer_request(info.name, inputs).SerializeToString()
    return serialized


def _check_answer(info: ModelInfo, answer: bytes, batch: int, image_format: str) -> None:
    from tritonclient.grpc import service_pb2

    from latentry.clients.transports.codec import reply_from_response

    outputs = reply_from_response(service_pb2.ModelInferResponse.FromString(answer)).outputs
    for item in info.spec.outputs:
        for name, kind in item.tensors(format_from_text(image_format)).items():
            found, wanted = (
                outputs[name].shape if name in outputs else None,
                (batch, *kind.row_shape),
            )
            if not (found and found[0] == batch and kind.fits(found[1:])):
                raise ServerFault(f"{info.name} answered {name} of shape {found}, not {wanted}")
