"""The only room that knows Redis: connections (link), calls, and the verbs (store)."""

from jobq.engine.store.calls import Call, Claimed, Settled
from jobq.engine.store.link import Connection
from jobq.engine.store.store import Store, give_wake_back

__all__ = ["Call", "Claimed", "Connection", "Settled", "Store", "give_wake_back"]
