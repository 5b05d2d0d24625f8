"""The Redis of a measurement: a fresh process for each one, on a TCP port that every peer can use."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import redis


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """``with Server(binary) as server``: a running server, which is removed with its data afterwards. It has no
    persistence."""

    def __init__(self, binary: str = "redis-server") -> None:
        self.binary = binary
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="jobq-bench-")
        self._process = subprocess.Popen(
            [
                self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", self._folder, "--loglevel", "warning", "--slowlog-log-slower-than", "2000",
                "--slowlog-max-len", "1000",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # An installed server has its own session. In the harness's session, Linux's autogroups would let it compete
            # with each worker process, and all of them would wait for it.
            start_new_session=True,
        )  # fmt: skip
        self.client: Any = redis.Redis(port=self.port)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(Path(self._folder), ignore_errors=True)

    def cpu_seconds(self) -> float:
        """User and system time of all threads."""
        info = self.client.info("cpu")
        return info["used_cpu_user"] + info["used_cpu_sys"]

    def memory(self) -> int:
        """Bytes in use without clients' buffers and the slow log, which is emptied."""
        self.client.slowlog_reset()
        info = self.client.info("memory")
        return info["used_memory"] - info["mem_clients_normal"]

    def slowest_ms(self) -> float:
        """The slowest command or script since the slow log was reset, in ms. 0 means that none took 2 ms."""
        return max((entry["duration"] for entry in self.client.slowlog_get(1000)), default=0) / 1000

    def version(self) -> str:
        """The version of the server."""
        facts = self.client.info("server")
        # Valkey also reports the Redis version that it is compatible with.
        if "valkey_version" in facts:
            return f"Valkey {facts['valkey_version']}"
        return f"Redis {facts['redis_version']}"
