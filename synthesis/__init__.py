"""Offline jobs: data sets of exactly the samples that were asked for."""

if __name__ != "latentry.synthesis":
    raise ImportError(f"import this package as latentry.synthesis, not as {__name__}")
