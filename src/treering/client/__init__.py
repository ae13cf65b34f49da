"""The client of `treering serve`: captures from an agent's process and never holds it up.

Needs httpx (the extra `client`), and of treering itself nothing but the errors: neither torch nor Lance nor Arrow is
imported in the process of the agent.
"""

from treering.client.client import Client
from treering.client.recorder import CaptureWarning, Counts, Receipt, Receipts, RemoteRecorder

__all__ = ["CaptureWarning", "Client", "Counts", "Receipt", "Receipts", "RemoteRecorder"]
