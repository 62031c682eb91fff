"""PyTorch: generator architectures, training, metrics. Ends in a checkpoint folder."""

if __name__ != "latentry.training":
    raise ImportError(f"import this package as latentry.training, not as {__name__}")
