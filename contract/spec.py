"""GeneratorSpec: what a generator takes and gives, as named tensors with a kind, and its stages.

Any generator is served by declaring them; the families that ship with Latentry have no privilege
over a user's own module. What a kind knows stands in ``contract/kinds/``, one file each.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from latentry.contract.errors import BadRequest, SpecError
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import FREE, InputKind, OutputKind, Size, TensorType
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import PictureOutput, PixelsInput
from latentry.contract.kinds.registry import input_from_any, output_from_any
from latentry.contract.stages.registry import stage_from_any
from latentry.contract.stages.stage import NetworkStage, OperationStage, Stage
from latentry.contract.strict import Strict, explain

T = TypeVar("T")

_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")
_MOST_TENSORS = 64
_MOST_ROUTES = 1024

WATCH = "watch"
"""The output of a network's graph that tells whether its samples are finite."""


def _checked_count(items: tuple[T, ...]) -> tuple[T, ...]:
    # Here and not by pydantic, which counts what is left of it where an item is wrong.
    if not 1 <= len(items) <= _MOST_TENSORS:
        raise ValueError(f"there are {len(items)}; 1 to {_MOST_TENSORS} are taken")
    return items


Inputs = Annotated[
    tuple[Annotated[SerializeAsAny[InputKind], BeforeValidator(input_from_any)], ...],
    AfterValidator(_checked_count),
]
Outputs = Annotated[
    tuple[Annotated[SerializeAsAny[OutputKind], BeforeValidator(output_from_any)], ...],
    AfterValidator(_checked_count),
]
Stages = Annotated[
    tuple[Annotated[SerializeAsAny[Any], BeforeValidator(stage_from_any)], ...],
    Field(max_length=_MOST_TENSORS),
]


@dataclass(frozen=True)
class Route:
    """What runs for a request that carries certain inputs.

    Attributes:
        stages: The stages, in order; those whose results are given are not among them.
        inputs: The inputs that reach them, in the spec's order.
        drawn: Those of them that are drawn from the seed, being latents and not given.
    """

    stages: tuple[Stage, ...]
    inputs: tuple[InputKind, ...]
    drawn: tuple[LatentInput, ...]

    @cached_property
    def reached(self) -> frozenset[str]:
        """Names of ``inputs``."""
        return frozenset(item.name for item in self.inputs)


class GeneratorSpec(Strict):
    """What a generator takes and gives.

    Attributes:
        inputs: Named tensors that go in.
        outputs: Named tensors that come out; the first picture is the main one.
        stages: What runs, in order, over a board of named tensors; left out, it is one network
            ``generator``, the module's forward, from all inputs to all outputs.
    """

    inputs: Inputs
    outputs: Outputs
    stages: Stages = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_different("inputs", (item.name for item in self.inputs))
        _check_different("outputs", (item.name for item in self.outputs))
        _check_different("networks", self.networks)
        made: list[str] = []
        for stage in self.pipeline:
            self._check_stage(stage, made)
            made += stage.gives
        taken = {name for stage in self.pipeline for name in stage.takes}
        if idle := [item.name for item in self.inputs if item.name not in taken]:
            raise ValueError(f"no stage takes {', '.join(idle)}")
        if lost := [item.name for item in self.outputs if item.name not in made]:
            raise ValueError(f"no stage gives {', '.join(lost)}")
        for stage in self.pipeline:
            if taken.isdisjoint(stage.gives) and not any(map(self.find_output, stage.gives)):
                raise ValueError(
                    f"nobody takes {', '.join(stage.gives)}, which a stage gives; take the stage "
                    "out, or declare an output of that name"
                )
        return self

    def _check_stage(self, stage: Stage, made: list[str]) -> None:
        names = {item.name for item in self.inputs}
        if missing := [name for name in stage.takes if name not in {*names, *made}]:
            raise ValueError(
                f"a stage takes {', '.join(missing)}, which is no input and of no stage before it"
            )
        if isinstance(stage, OperationStage):
            items = map(self.find, stage.takes)
            stage.check_taken([None if item is None else item.row_shape for item in items])
        if doubled := [name for name in stage.gives if name in made]:
            raise ValueError(f"two stages give {', '.join(doubled)}")
        _check_different("what a stage gives is", stage.gives)
        self._check_outputs(stage, made)
        for name in stage.gives:
            item = self.find(name)
            never_drawn = isinstance(item, LatentInput) and not item.distribution_to_draw
            if item and not never_drawn and not self.find_output(name):
                raise ValueError(
                    f"{name} is an input and made by a stage: it must be a latent with "
                    'distribution "none"'
                )

    def _check_outputs(self, stage: Stage, made: list[str]) -> None:
        outputs = {item.name for item in self.outputs}
        bare = sorted(outputs.intersection(stage.gives))
        if bare and not isinstance(stage, NetworkStage):
            raise ValueError(
                f"the operation {stage.operation} gives {', '.join(bare)}; outputs must come from "
                "networks"
            )
        for name in outputs.intersection(stage.takes, made):
            if name in self._by_name:
                raise ValueError(
                    f"a stage takes {name}, which is an input, an output and made by a stage "
                    "before it; call the output otherwise"
                )

    @cached_property
    def pipeline(self) -> tuple[Stage, ...]:
        """``stages``, or the one network that stands for none."""
        if self.stages:
            return self.stages
        return (
            NetworkStage(
                network="generator",
                takes=tuple(item.name for item in self.inputs),
                gives=tuple(item.name for item in self.outputs),
            ),
        )

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in the order they run."""
        return tuple(s.network for s in self.pipeline if isinstance(s, NetworkStage))

    def find(self, name: str) -> InputKind | None:
        """Return the input of this name, or None where the generator has none."""
        return self._by_name.get(name)

    def find_output(self, name: str) -> OutputKind | None:
        """Return the output of this name, or None where the generator has none."""
        return next((item for item in self.outputs if item.name == name), None)

    def input_of(self, name: str, kind: type[T]) -> T | None:
        """Return the input of this name where it is of this kind, or None."""
        item = self.find(name)
        return item if isinstance(item, kind) else None

    def check_known(self, names: Iterable[str]) -> None:
        """Check that every one of ``names`` is an input; raises BadRequest with the list."""
        for name in names:
            if name not in self._by_name:
                raise BadRequest(f"this model takes no {name}; it takes {self.takes}")

    @cached_property
    def free_inputs(self) -> tuple[PixelsInput, ...]:
        """The inputs whose size each request chooses."""
        return tuple(
            item for item in self.inputs if isinstance(item, PixelsInput) and FREE in item.row_shape
        )

    def at(self, size: Size) -> Self:
        """Return the spec with every input of free size fixed at one end of its range."""
        # No model_copy, which would copy the routes and names that were looked up before, too.
        inputs = tuple(item.at(size) for item in self.inputs)
        return type(self)(inputs=inputs, outputs=self.outputs, stages=self.stages)

    @cached_property
    def takes_seed(self) -> bool:
        """Whether there is a latent that a seed draws."""
        return any(item.distribution_to_draw for item in self.inputs)

    @property
    def takes(self) -> str:
        """The names of what a request may carry, for error messages."""
        seed = ["seed"] if self.takes_seed else []
        return ", ".join([*seed, *(item.name for item in self.inputs), "format"])

    @property
    def controls(self) -> tuple[InputKind, ...]:
        """The inputs that are no latents."""
        return tuple(item for item in self.inputs if not isinstance(item, LatentInput))

    @property
    def class_input(self) -> ClassInput | None:
        """The input that is called after classes everywhere: the first of kind ``class``."""
        return next((item for item in self.inputs if isinstance(item, ClassInput)), None)

    @property
    def picture(self) -> PictureOutput | None:
        """The main picture, or None where the generator gives none."""
        return next((item for item in self.outputs if isinstance(item, PictureOutput)), None)

    @property
    def image(self) -> PictureOutput:
        """The main picture.

        Raises:
            BadRequest: The generator gives none.
        """
        if self.picture is None:
            given = ", ".join(f"{item.name} ({item.kind})" for item in self.outputs)
            raise BadRequest(f"this model gives no picture; it gives {given}")
        return self.picture

    def row_bytes(self, image_format: Format) -> int:
        """Return how much one sample's answer takes, at most; encoded files count as raw."""
        return sum(item.row_bytes(image_format) for item in self.outputs)

    def graph_inputs(self, stage: NetworkStage) -> dict[str, str]:
        """Return what the inputs of a network's graph are called, by the tensors that they take.

        No graph may have an input and an output of one name.
        """
        return {name: f"{name}.in" if name in stage.gives else name for name in stage.takes}

    def graph_outputs(self, stage: NetworkStage) -> dict[str, TensorType | None]:
        """Return what a network's graph gives, by name; None where only the module knows.

        Outputs come as they are answered, raw and, where there is one, as ``X.sample``; with
        ``watch``, float32 of no further axis: the sum of all floats that the network gives for a
        sample, which is not finite as soon as one of them is not.
        """
        found: dict[str, TensorType | None] = {}
        for name in stage.gives:
            if output := self.find_output(name):
                found |= output.tensors(Format.FLOAT)
            else:
                item = self.find(name)
                found[name] = TensorType(np.float32, item.row_shape) if item else None
        if any(map(self.find_output, stage.gives)):
            found[WATCH] = TensorType(np.float32, ())
        return found

    def route(self, given: frozenset[str]) -> Route:
        """Return what runs for a request that carries the inputs ``given``."""
        route = self._routes.get(given)
        if route is None:
            if len(self._routes) >= _MOST_ROUTES:  # whoever asks chooses which inputs to give
                self._routes.clear()
            route = self._routes[given] = self._find_route(given)
        return route

    def _find_route(self, given: frozenset[str]) -> Route:
        outputs = {item.name for item in self.outputs}
        needed = set(outputs)
        stages: list[Stage] = []
        for stage in reversed(self.pipeline):
            # An output may be called as an input that is given; it is made all the same.
            if needed & set(stage.gives) & (outputs | (needed - given)):
                stages.insert(0, stage)
                needed = (needed - set(stage.gives)) | set(stage.takes)
        inputs = tuple(item for item in self.inputs if item.name in needed)
        drawn = tuple(
            item
            for item in inputs
            if isinstance(item, LatentInput)
            and item.distribution_to_draw
            and item.name not in given
        )
        return Route(tuple(stages), inputs, drawn)

    @cached_property
    def _by_name(self) -> dict[str, InputKind]:
        return {item.name: item for item in self.inputs}

    @cached_property
    def _routes(self) -> dict[frozenset[str], Route]:
        return {}


def spec_from_json(text: str | bytes, source: str) -> GeneratorSpec:
    """Return the spec in ``text``; ``source`` names it in errors.

    Raises:
        SpecError: It is no JSON, has an unknown key, or contradicts itself.
    """
    try:
        return GeneratorSpec.model_validate_json(text)
    except ValidationError as error:
        raise SpecError(f"{source} is no generator spec: {explain(error)}") from error


def _check_different(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if doubled := sorted({name for name in listed if listed.count(name) > 1}):
        raise ValueError(f"{what} declared more than once: {', '.join(doubled)}")


def check_name(name: str) -> str:
    """Return ``name`` if it may name a model.

    Raises:
        BadRequest: It may not.
    """
    if not isinstance(name, str) or not _NAME.match(name) or name.endswith("\n"):
        raise BadRequest(
            f"model name {name!r} is not allowed; use 1 to 64 of a-z, 0-9, _ and -, "
            "the first a letter or digit"
        )
    return name


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except BadRequest as error:  # pydantic tells ValueErrors only
        raise ValueError(str(error)) from error


ModelName = Annotated[str, AfterValidator(_checked_name)]
"""The name of a model in a file that pydantic checks."""
