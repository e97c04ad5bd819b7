"""The two embedded servers."""

from batchline.local.postgres import PostgresServer
from batchline.local.server import PortInUseError, Server, free_port, is_free
from batchline.local.valkey import ValkeyServer

__all__ = ["PortInUseError", "PostgresServer", "Server", "ValkeyServer", "free_port", "is_free"]
