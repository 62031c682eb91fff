"""GeneratorSpec: what a generator takes and gives, said by role.

Any generator is served by declaring roles; the families that ship with Latentry have no privilege
over a user's own module. A role is one member of :class:`Role` and one class with one ``check``.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, model_validator

from latentry.contract.errors import BadRequest, SpecError
from latentry.contract.strict import Strict, explain

_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")
_MAX_PIXELS = 4096 * 4096
_CLASSES_SHOWN = 20

Dimension = Annotated[int, Field(ge=1, le=65536)]


class Role(StrEnum):
    """What a tensor means to the generator."""

    Z = "z"
    W = "w"
    CLASS_LABEL = "class_label"
    TRUNCATION_PSI = "truncation_psi"
    IMAGE = "image"


LATENT_ROLES = (Role.Z, Role.W)


class _Input(Strict):
    dtype: ClassVar[type[np.generic]] = np.float32
    role: Role

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample's row of this tensor."""
        return (1,)

    @property
    def allowed(self) -> str:
        """One line for people: what values this input takes."""
        raise NotImplementedError

    def check(self, values: NDArray[Any]) -> None:
        """Check ``values`` [N, *row_shape].

        Raises:
            BadRequest: Naming the first bad row, what it holds and what is allowed.
        """
        if values.dtype != self.dtype:
            raise BadRequest(f"{self.role} has dtype {values.dtype}; it takes {self.allowed}")
        if values.shape[1:] != self.row_shape:
            raise BadRequest(
                f"{self.role} has rows of shape {list(values.shape[1:])}; "
                f"it takes rows of shape {list(self.row_shape)}: {self.allowed}"
            )
        bad = self._bad(values)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise BadRequest(
                f"{self.role} in row {index[0]} is {values[index]}; it takes {self.allowed}"
            )

    def _bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are not allowed."""
        bad: NDArray[np.bool_] = ~np.isfinite(values)
        return bad


class ZInput(_Input):
    """The input latent, standard normal; drawn from the seed or given by the caller."""

    role: Literal[Role.Z] = Role.Z
    shape: tuple[Dimension]
    distribution: Literal["normal"] = "normal"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(z_dim,)."""
        return self.shape

    @property
    def allowed(self) -> str:
        """One line for people."""
        return f"{self.shape[0]} finite float32 numbers a sample (standard normal)"


class WInput(_Input):
    """The intermediate latent of a generator with a mapping network, one row per layer."""

    role: Literal[Role.W] = Role.W
    shape: tuple[Dimension, Dimension]
    w_avg: tuple[FiniteFloat, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(num_ws, w_dim)."""
        return self.shape

    @property
    def allowed(self) -> str:
        """One line for people."""
        return f"{self.shape[0]} x {self.shape[1]} finite float32 numbers a sample"

    @model_validator(mode="after")
    def _w_avg_fits(self) -> Self:
        if len(self.w_avg) != self.shape[1]:
            raise ValueError(f"w_avg has {len(self.w_avg)} numbers, w_dim is {self.shape[1]}")
        return self


class ClassLabelInput(_Input):
    """The class to draw, as an integer; required where the generator is conditional."""

    dtype: ClassVar[type[np.generic]] = np.int64
    role: Literal[Role.CLASS_LABEL] = Role.CLASS_LABEL
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]

    @property
    def allowed(self) -> str:
        """One line for people, with the classes' names where they say more than the number."""
        top = len(self.classes) - 1
        named = [f"{i}={name}" for i, name in enumerate(self.classes) if name != str(i)]
        if not named:
            return f"an integer from 0 to {top}"
        more = ", ..." if len(named) > _CLASSES_SHOWN else ""
        return f"an integer from 0 to {top}: {', '.join(named[:_CLASSES_SHOWN])}{more}"

    def _bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        return np.logical_or(values < 0, values >= len(self.classes))


class TruncationPsiInput(_Input):
    """StyleGAN's truncation: w is moved towards w_avg; 1 is off, 0 gives the average image."""

    role: Literal[Role.TRUNCATION_PSI] = Role.TRUNCATION_PSI
    minimum: FiniteFloat = -2.0
    maximum: FiniteFloat = 2.0
    default: FiniteFloat = 1.0

    @property
    def allowed(self) -> str:
        """One line for people."""
        return f"a number from {self.minimum:g} to {self.maximum:g}, {self.default:g} if left out"

    def _bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        # Written so that NaN is bad: every comparison with it is false.
        return ~np.logical_and(values >= self.minimum, values <= self.maximum)


Input = Annotated[
    ZInput | WInput | ClassLabelInput | TruncationPsiInput, Field(discriminator="role")
]


class ImageOutput(Strict):
    """The network's picture: float32 [N, channels, height, width] in [-1, 1]."""

    role: Literal[Role.IMAGE] = Role.IMAGE
    height: Dimension
    width: Dimension
    channels: Literal[1, 3]

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one uint8 image."""
        return self.height, self.width, self.channels

    @property
    def row_bytes(self) -> int:
        """Size of one uint8 image."""
        return self.height * self.width * self.channels

    @model_validator(mode="after")
    def _size_is_served(self) -> Self:
        if self.height * self.width > _MAX_PIXELS:
            raise ValueError(f"{self.height} x {self.width} is over {_MAX_PIXELS} pixels")
        return self


class GeneratorSpec(Strict):
    """What a generator takes and gives.

    A generator without a ``w`` input is one network, ``generator(z[, class_label]) -> image``.
    One with ``w`` is two: ``mapping(z[, class_label]) -> w`` and ``synthesis(w) -> image``.
    """

    inputs: tuple[Input, ...]
    image: ImageOutput

    @model_validator(mode="after")
    def _inputs_fit_together(self) -> Self:
        roles = [item.role for item in self.inputs]
        if doubled := sorted({role for role in roles if roles.count(role) > 1}):
            raise ValueError(f"declared more than once: {', '.join(doubled)}")
        if Role.Z not in roles:
            raise ValueError("every generator needs an input with role z")
        if (Role.W in roles) != (Role.TRUNCATION_PSI in roles):
            raise ValueError("w and truncation_psi go together: declare both or neither")
        return self

    def find(self, role: str) -> Input | None:
        """Return the input with this role, or None where the generator has none."""
        return next((item for item in self.inputs if item.role == role), None)

    @property
    def z_dim(self) -> int:
        """Length of z."""
        z = self.find(Role.Z)
        return z.row_shape[0] if z else 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where the generator is unconditional."""
        item = self.find(Role.CLASS_LABEL)
        return item.classes if isinstance(item, ClassLabelInput) else ()

    @property
    def w(self) -> WInput | None:
        """The w input, or None where the generator has no mapping network."""
        item = self.find(Role.W)
        return item if isinstance(item, WInput) else None

    @property
    def controls(self) -> tuple[Input, ...]:
        """The inputs that are no latents."""
        return tuple(item for item in self.inputs if item.role not in LATENT_ROLES)

    @property
    def stages(self) -> dict[str, tuple[Role, ...]]:
        """The networks in the order they run, each with the roles it takes."""
        first = tuple(r for r in (Role.Z, Role.CLASS_LABEL) if self.find(r))
        if self.w is None:
            return {"generator": first}
        return {"mapping": first, "synthesis": (Role.W,)}

    @property
    def takes(self) -> str:
        """The names of what a request may carry, for error messages."""
        return ", ".join(["seed", *(item.role for item in self.inputs), "format"])


def spec_from_json(text: str | bytes, source: str) -> GeneratorSpec:
    """Return the spec in ``text``; ``source`` names it in errors.

    Raises:
        SpecError: It is no JSON, has an unknown key, or contradicts itself.
    """
    try:
        return GeneratorSpec.model_validate_json(text)
    except ValidationError as error:
        raise SpecError(f"{source} is no generator spec: {explain(error)}") from error


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
