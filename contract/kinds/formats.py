"""Formats: how pictures travel."""

from enum import StrEnum

from latentry.contract.errors import BadRequest


class Format(StrEnum):
    """What a request gets back; ``raw`` and ``float`` are tensors, the others encoded files."""

    RAW = "raw"
    FLOAT = "float"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def encoded(self) -> bool:
        """Whether pictures of this format travel as files."""
        return self not in (Format.RAW, Format.FLOAT)


FILE_FORMATS = tuple(item for item in Format if item.encoded)


def format_from_text(text: str) -> Format:
    """Return the format called ``text``.

    Raises:
        BadRequest: There is no such format; the message lists those that exist.
    """
    try:
        return Format(text)
    except ValueError:
        raise BadRequest(f"format {text!r} is unknown; use one of {', '.join(Format)}") from None
