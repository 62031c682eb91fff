"""How a served model behaves under load, and which configuration holds a target."""

if __name__ != "latentry.profiling":
    raise ImportError(f"import this package as latentry.profiling, not as {__name__}")
