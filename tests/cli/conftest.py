"""The generator made of arithmetic stands in for a server here."""

from doubles import arithmetic_server, authority, info, run_command, start_server, transport

__all__ = ["arithmetic_server", "authority", "info", "run_command", "start_server", "transport"]
