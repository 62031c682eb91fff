"""The command ``latentry``: one file a command; nobody imports this room."""

if __name__ != "latentry.cli":
    raise ImportError(f"import this package as latentry.cli, not as {__name__}")
