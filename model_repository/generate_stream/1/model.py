"""Streams chunks of any generator in this repository."""

from latentry.serving.stream_model import StreamModel as TritonPythonModel  # noqa: F401
