"""The only package that imports redis: connections (link), calls, and one method per script (store)."""

from jobq.engine.store.calls import Call, Claimed, Settled
from jobq.engine.store.counting import FOLD_PAGE
from jobq.engine.store.keys import LAYOUT
from jobq.engine.store.link import Connection
from jobq.engine.store.listening import listen_together
from jobq.engine.store.opening import unregistered
from jobq.engine.store.partitions import Partitions
from jobq.engine.store.reading import ALIVE_MS
from jobq.engine.store.store import CLAIM_BYTES, CLAIM_MAX, OVERFLOW_PAGE, Store, give_wake_back
from jobq.engine.store.together import give_wakes_back, having, send_each, send_together
from jobq.engine.store.tracking import stop_tracking

__all__ = [
    "ALIVE_MS",
    "CLAIM_BYTES",
    "CLAIM_MAX",
    "FOLD_PAGE",
    "LAYOUT",
    "OVERFLOW_PAGE",
    "Call",
    "Claimed",
    "Connection",
    "Partitions",
    "Settled",
    "Store",
    "give_wake_back",
    "give_wakes_back",
    "having",
    "listen_together",
    "send_each",
    "send_together",
    "stop_tracking",
    "unregistered",
]
