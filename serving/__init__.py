"""What a served generator is, and the life of the Triton server that serves it."""

if __name__ != "latentry.serving":
    raise ImportError(f"import this package as latentry.serving, not as {__name__}")
