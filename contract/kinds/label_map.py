"""Label maps: which class each pixel is of, uint8 [H, W] at the edge."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.picture import PixelsInput, PixelsOutput

Labels = Annotated[int, Field(ge=2, le=256)]


class LabelMapInput(PixelsInput):
    """A label map that goes in; the network gets int64 [N, H, W].

    Attributes:
        labels: How many labels there are; pixels are 0 .. labels - 1.
    """

    holds_labels: ClassVar[bool] = True

    kind: Literal["label_map"] = "label_map"
    labels: Labels

    @property
    def allowed(self) -> str:
        """One line for people."""
        top = self.labels - 1
        return f"label maps of {self.height} x {self.width}, uint8, labels 0 to {top}"

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are no labels."""
        bad: NDArray[np.bool_] = values >= self.labels
        return bad

    def examples(self, count: int) -> NDArray[np.uint8]:
        """Return smooth regions of all labels."""
        levels = super().examples(count)
        return (levels.astype(np.uint16) * self.labels // 256).astype(np.uint8)

    def to_network(self, rows: Any) -> Any:
        """Return int64 [N, H, W]."""
        return rows.long()


class LabelMapOutput(PixelsOutput):
    """A label map that comes out: uint8 [H, W] at the edge; as a file always a PNG.

    The network gives scores, float32 [N, labels, H, W], of which the largest wins.

    Attributes:
        labels: How many labels there are.
    """

    kind: Literal["label_map"] = "label_map"
    labels: Labels

    @property
    def planes(self) -> int:
        """The scores, one plane for each label."""
        return self.labels

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return the labels, and the scores."""
        return {self.name: output.argmax(1).byte(), f"{self.name}.sample": output}

    def encode(self, row: NDArray[Any], image_format: Format) -> bytes:
        """Return a grey PNG file, whose levels are labels."""
        from latentry.contract.images import encode_image

        return encode_image(row[:, :, None], Format.PNG)

    def file_format(self, image_format: Format) -> Format:
        """Return PNG: the levels of others are not kept, or have no grey."""
        return Format.PNG

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether at most one label in a thousand, or one, differs."""
        return int(np.count_nonzero(found != expected)) <= max(1, found.size // 1000)

    def psnr(self, found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
        """Return the share of pixels with another label in decibels: labels are no levels."""
        wrong = np.where(found != expected, 255, 0).astype(np.uint8)
        return super().psnr(wrong, np.zeros_like(wrong))
