"""Streams chunks of any generator in this repository."""

from latentry.serving.triton.stream_model import StreamModel as TritonPythonModel  # noqa: F401
