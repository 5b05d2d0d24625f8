"""A real cluster of local processes: three primaries, each with a replica."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import hiredis
from redis.crc import key_slot

from tests import conftest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

SLOTS = 16384
NODE_TIMEOUT_MS = 1000
"""A node that is silent for so long has failed, in the eyes of the others."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def slot_of(queue: str) -> int:
    """The slot of a queue."""
    return key_slot(f"jobq:{{{queue}}}:waiting".encode())


class Refused(Exception):
    """The node answered with an error."""


class Node:
    """One process of the cluster."""

    def __init__(self, *options: str) -> None:
        port, bus = free_ports(2)
        self.server: Server = conftest.Server(
            "--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
            "--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes", *options, port=port,
        )  # fmt: skip
        self.bus = bus
        self.id = ""

    @property
    def port(self) -> int:
        """Its port."""
        return self.server.port

    def start(self) -> Node:
        """Start, or start again with the same identity."""
        self.server.start()
        self.id = self.ask("CLUSTER", "MYID").decode()
        return self

    def ask(self, *words: str | int | bytes, timeout: float = 30.0) -> Any:
        """Send a command, and return the answer.

        :raises Refused: the node answered with an error.
        """
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(hiredis.pack_command(words))  # pyright: ignore
            while (answer := reader.gets()) is False:
                data = sock.recv(1 << 16)
                if not data:
                    raise ConnectionError(f"node {self.port} closed the connection")
                reader.feed(data)
        if isinstance(answer, hiredis.ReplyError):
            raise Refused(str(answer))
        return answer

    def owner_of(self, slot: int) -> list[int]:
        """The port of the node that has the slot, as this one knows it. Empty if it does not answer."""
        try:
            rows = self.ask("CLUSTER", "SLOTS", timeout=0.5)
        except (OSError, Refused):
            return []
        return [primary[1] for first, last, primary, *_ in rows if first <= slot <= last]

    def epoch_of(self, other: Node) -> int:
        """The configuration epoch of a node, as this one knows it."""
        rows = [line.split() for line in self.ask("CLUSTER", "NODES").decode().splitlines()]
        return next(int(row[6]) for row in rows if row[0] == other.id)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.server.process is not None and self.server.process.poll() is None


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
    """Wait until the condition holds. A node that does not answer does not fulfil it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except (OSError, Refused):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for: {what}")
        time.sleep(0.02)


class LocalCluster:
    """Three primaries and three replicas on ports of 127.0.0.1."""

    def __init__(self, *options: str, primaries: int = 3, replicas: int = 1) -> None:
        self.options = options
        self.nodes = [Node(*options) for _ in range(primaries * (1 + replicas))]
        self._primaries = primaries

    def start(self) -> LocalCluster:
        """Start the nodes, make a cluster of them, and wait until all of them know it."""
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for i, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for i, node in enumerate(primaries):
            node.ask("CLUSTER", "ADDSLOTSRANGE", SLOTS * i // self._primaries, SLOTS * (i + 1) // self._primaries - 1)
        for node in others:
            self.meet(first, node)
        wait_for(lambda: all(self.knows_all(node) for node in self.nodes), "the nodes to know one another")
        for i, node in enumerate(replicas):
            node.ask("CLUSTER", "REPLICATE", primaries[i % self._primaries].id)
        self.wait_until_ready()
        return self

    @staticmethod
    def meet(one: Node, other: Node) -> None:
        """Introduce two nodes to each other."""
        one.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus)

    def knows_all(self, node: Node) -> bool:
        """Whether the node knows all nodes that run."""
        return node.ask("CLUSTER", "NODES").count(b"connected") == len([one for one in self.nodes if one.alive])

    def wait_until_ready(self) -> None:
        """Wait until every running node takes commands, and every replica has its primary's data."""

        def ready() -> bool:
            for node in self.nodes:
                if not node.alive:
                    continue
                if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                    return False
                role = node.ask("INFO", "replication")
                if b"role:slave" in role and b"master_link_status:up" not in role:
                    return False
            return all(node.ask("CLUSTER", "SLOTS") == self.slots() for node in self.nodes if node.alive)

        wait_for(ready, "the cluster")

    def slots(self) -> Any:
        """The slots as the first running node knows them."""
        return next(node for node in self.nodes if node.alive).ask("CLUSTER", "SLOTS")

    def stop(self) -> None:
        """Stop the nodes."""
        for node in self.nodes:
            if node.alive:
                node.server.kill()
            node.server.stop()

    @property
    def url(self) -> str:
        """The URL for jobq. It names two of the nodes."""
        return self._url(conftest.USER)

    @property
    def admin_url(self) -> str:
        """The URL for the tests themselves."""
        return self._url("")

    def _url(self, user: str) -> str:
        return f"redis+cluster://{user}" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    # -- what tests do to it ---------------------------------------------------------------------------------------

    def owner(self, slot: int) -> Node:
        """The primary that has the slot, as all nodes say that answer. They may need a moment to agree."""
        said: set[int] = set()

        def agreed() -> bool:
            said.clear()
            for node in self.nodes:
                if node.alive:
                    said.update(node.owner_of(slot))
            return len(said) == 1

        wait_for(agreed, f"the nodes to agree who has slot {slot}")
        return next(node for node in self.nodes if node.port in said)

    def primaries(self) -> list[Node]:
        """The primaries that run."""
        return [node for node in self.nodes if node.alive and b"role:master" in node.ask("INFO", "replication")]

    def replica_of(self, primary: Node) -> Node:
        """A replica of the primary."""
        for node in self.nodes:
            if node.alive and f"master_port:{primary.port}\r\n".encode() in node.ask("INFO", "replication"):
                return node
        raise AssertionError(f"node {primary.port} has no replica")

    def move(self, slot: int, source: Node, target: Node, *, between: Callable[[], None] = lambda: None) -> None:
        """Move a slot key by key, as `redis-cli --cluster reshard` does. ``between`` runs before each key."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 5):
            for key in keys:
                between()
                source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 10_000)
        between()
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        for node in self.primaries():
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        wait_for(lambda: self.owner(slot) is target, "the slot to move")
        wait_for(lambda: self._epochs(target) == {target.epoch_of(target)}, "the nodes to know the target's epoch")

    def _epochs(self, primary: Node) -> set[int]:
        """The epochs that the primary has, in the eyes of the nodes.

        A primary is told directly that a slot has moved, and may know it before it hears of the new epoch. If it took
        the slot back at that moment, its own new epoch would not be greater. Then the replicas, which only believe
        the greater one, would tell it that the slot is still the other's, and undo the move.
        """
        return {node.epoch_of(primary) for node in self.nodes if node.alive}

    def move_at_once(self, slot: int, source: Node, target: Node) -> None:
        """Move a slot as Valkey 9 can. The source serves it until the target has all of its keys."""
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        wait_for(lambda: self.owner(slot) is target, "the slot to move")


def start_cluster(*options: str) -> LocalCluster:
    """A running cluster. Other programs may take one of the ports first, so it is tried twice."""
    for attempt in range(3):
        cluster = LocalCluster(*options)
        try:
            return cluster.start()
        except RuntimeError:
            cluster.stop()
            if attempt == 2:
                raise
    raise AssertionError
