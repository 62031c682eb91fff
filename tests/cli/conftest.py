"""The generator made of arithmetic stands in for a server here."""

from doubles import authority, info, run, server, start_server, transport

__all__ = ["authority", "info", "run", "server", "start_server", "transport"]
