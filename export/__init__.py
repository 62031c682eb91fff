"""From a checkpoint to a proved repository entry: ONNX export, parity, goldens, publishing."""

if __name__ != "latentry.export":
    raise ImportError(f"import this package as latentry.export, not as {__name__}")
