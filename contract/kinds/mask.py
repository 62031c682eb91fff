"""Masks: how much of each pixel, uint8 [H, W] at the edge."""

from typing import Any, Literal

from numpy.typing import NDArray

from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.picture import (
    PixelsInput,
    PixelsOutput,
    Range,
    are_levels_near,
    levels_from_sample,
    sample_from_levels,
)


class MaskInput(PixelsInput):
    """A mask that goes in: 0 is nothing, 255 all; the network gets float32 [N, 1, H, W].

    Attributes:
        range: What the network's input has for 0 and for 255.
    """

    kind: Literal["mask"] = "mask"
    range: Range = (0.0, 1.0)

    @property
    def allowed(self) -> str:
        """One line for people."""
        return f"masks of {self.height} x {self.width}, uint8, 0 to 255"

    def to_network(self, rows: Any) -> Any:
        """Return float32 [N, 1, H, W] in ``range``."""
        return sample_from_levels(rows[:, None], self.range)


class MaskOutput(PixelsOutput):
    """A mask that comes out: float32 [N, 1, H, W] of the network, uint8 [H, W] at the edge.

    Attributes:
        range: What the network gives for 0 and for 255.
    """

    kind: Literal["mask"] = "mask"
    range: Range = (0.0, 1.0)

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return the levels, and the sample itself."""
        levels = levels_from_sample(output, self.range)
        return {self.name: levels[:, 0].byte(), f"{self.name}.sample": output}

    def encode(self, row: NDArray[Any], image_format: Format) -> bytes:
        """Return a grey PNG, JPEG or WebP file."""
        from latentry.contract.images import encode_image

        return encode_image(row[:, :, None], image_format)

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """As for pictures."""
        return are_levels_near(found, expected)
