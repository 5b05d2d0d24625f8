"""A local cluster without replicas, for measurements: 1, 2 or 3 nodes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from typing import Any, Self

import redis
from redis.crc import key_slot

from benchmarks.server import free_port
from jobq.engine.server.embedded import find_binary

SLOTS = 16_384


class Nodes:
    """``with Nodes(3) as nodes``: running nodes, each with the same number of slots."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ports = [free_port() for _ in range(count)]
        self.url = f"redis+cluster://127.0.0.1:{self.ports[0]}"

    def __enter__(self) -> Self:
        self._folders = [tempfile.mkdtemp(prefix="jobq-bench-") for _ in self.ports]
        self._processes = [
            subprocess.Popen(
                [
                    str(find_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                    "--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--dir", folder,
                    "--loglevel", "warning",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            for port, folder in zip(self.ports, self._folders, strict=True)
        ]  # fmt: skip
        self.clients: list[Any] = [redis.Redis(port=port) for port in self.ports]
        for client in self.clients:
            self._until(client.ping)
        edges = [SLOTS * n // self.count for n in range(self.count + 1)]
        for client, first, end in zip(self.clients, edges, edges[1:], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for port, bus in [(port, self._bus(client)) for port, client in zip(self.ports, self.clients, strict=True)][1:]:
            self.clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        for client in self.clients:
            self._until(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
            self._until(lambda client=client: client.execute_command("CLUSTER", "COUNTKEYSINSLOT", 0) == 0)
        self._edges = edges
        return self

    @staticmethod
    def _bus(client: Any) -> int:
        return int(client.config_get("cluster-port")["cluster-port"])

    @staticmethod
    def _until(works: Any) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                if works():
                    return
            except redis.RedisError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError("the nodes did not become a cluster")
            time.sleep(0.05)

    def queues(self, count: int) -> list[str]:
        """Names of queues that are spread evenly over the nodes."""
        names: list[str] = []
        wanted = [count // self.count] * self.count
        number = 0
        while any(wanted):
            name = f"q{number}"
            slot = key_slot(f"{{{name}}}".encode())
            node = next(n for n in range(self.count) if slot < self._edges[n + 1])
            if wanted[node]:
                wanted[node] -= 1
                names.append(name)
            number += 1
        return names

    @property
    def pids(self) -> list[int]:
        """The processes of the nodes."""
        return [process.pid for process in self._processes]

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        for process, folder in zip(self._processes, self._folders, strict=True):
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
