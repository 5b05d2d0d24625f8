"""REST enqueue under wrk: jobq's server beside an Express 5 + BullMQ server that does the same, one process each."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks import drive, machine
from benchmarks.server import Server, free_port
from benchmarks.subjects import MissingPeer, Subject
from benchmarks.workloads.base import Bench, Figures, Workload

HERE = Path(__file__).parent.parent / "rest"
CONNECTIONS = 64
WARM_SECONDS, SECONDS = 2, 6
STORED = {"jobq": ("zcard", "jobq:{email}:waiting"), "bullmq": ("llen", "bull:email:wait")}


def _command(bench: Bench, subject: Subject, url: str, port: int) -> list[str]:
    if subject.own:
        return [sys.executable, "-m", "jobq", "serve", "--redis", url, "--port", str(port), "--queue", "email"]
    home = subject.home(bench.peers)
    if not (home / "node_modules").is_dir():
        raise MissingPeer(f"{subject.name} is not installed: python -m benchmarks install {subject.name}")
    shutil.copy(HERE / "express.mjs", home)
    return ["node", str(home / "express.mjs"), url, str(port)]


async def _wrk(port: int, seconds: int) -> Figures:
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(HERE / "enqueue.lua"),
        f"http://127.0.0.1:{port}", stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    figures: Figures = json.loads(said.decode().strip().splitlines()[-1])
    return figures


async def _listening(port: int) -> None:
    for _ in range(400):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.05)
    raise drive.DriverFailed("the HTTP server did not start")


async def rest(bench: Bench, subject: Subject) -> Figures:
    """64 keep-alive connections. ``stored``: jobs in Redis over answers with 201 (a few are under way at the end)."""
    if shutil.which("wrk") is None:
        raise MissingPeer("wrk is not installed")
    port = free_port()
    with Server(bench.server) as server:
        process = await asyncio.create_subprocess_exec(
            *_command(bench, subject, server.url, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await _listening(port)
            warm = await _wrk(port, WARM_SECONDS)
            server_cpu, redis = -machine.cpu_seconds(process.pid), -server.cpu_seconds()
            said = await _wrk(port, SECONDS)
            server_cpu += machine.cpu_seconds(process.pid)
            redis += server.cpu_seconds()
            count, key = STORED[subject.name]
            stored = getattr(server.client, count)(key)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    jobs = said["requests"]
    return {
        "rate": jobs / said["seconds"],
        "p50_ms": said["p50_ms"],
        "p99_ms": said["p99_ms"],
        "failed": said["failed"],
        "stored": stored / (jobs + warm["requests"]),
        "server_us": server_cpu * 1e6 / jobs,
        "redis_us": redis * 1e6 / jobs,
    }


WORKLOADS = [Workload("rest", "REST enqueue, 64 connections", rest, only=frozenset(STORED))]
