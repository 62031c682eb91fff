"""The generator made of arithmetic stands in for a server here."""

from doubles import arithmetic_server, authority, info, start_server, transport
from drivers import driver

__all__ = ["arithmetic_server", "authority", "driver", "info", "start_server", "transport"]
