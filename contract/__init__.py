"""The ground floor: what everybody agrees on. Specs, seeds, requests, errors, formats, files."""

if __name__ != "latentry.contract":
    raise ImportError(f"import this package as latentry.contract, not as {__name__}")
