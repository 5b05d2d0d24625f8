"""Celery with Redis as broker and result backend: its own worker command with the default (prefork) pool."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import kit
from celery import Celery as App
from celery.signals import worker_process_init

URL = "BENCHMARK_REDIS"
app = App("bench", broker=os.environ.get(URL), backend=os.environ.get(URL))
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)


@worker_process_init.connect
def open_tally(**_: Any) -> None:
    kit.open_tally()


@app.task(name="noop")
def noop(n: int, x: str) -> None:
    kit.ran(n)


class Celery(kit.Peer):
    bulk = False

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        os.environ[URL] = self.url
        app.conf.update(broker_url=self.url, result_backend=self.url)

    def enqueue(self, n: int) -> Any:
        noop.delay(n, kit.PAD)

    async def work(self, stop: asyncio.Event) -> None:
        here = Path(__file__).parent
        # The program has the name of the library, and must not be imported instead of it.
        code = (
            "import importlib.util, sys\n"
            f"spec = importlib.util.spec_from_file_location('bench_celery', {str(here / 'celery.py')!r})\n"
            "module = importlib.util.module_from_spec(spec); sys.modules['bench_celery'] = module\n"
            "spec.loader.exec_module(module)\n"
            "module.app.worker_main(['worker', '--loglevel', 'ERROR', '--concurrency', '2'])\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", code, stdout=asyncio.subprocess.DEVNULL
        )
        await stop.wait()
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


if __name__ == "__main__":
    kit.main(Celery)
