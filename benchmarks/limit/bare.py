"""The bare limit: what this layout and asyncio can reach without everything that makes a queue reliable.

It has no fences, retries, timeouts, events, metrics, retention, wake-ups, renewals or error handling. It has the
same columns, the same batches, two lanes, a task per job, and redis-py's pipelines. The difference to jobq is the
price of jobq's promises. It can only drain a backlog.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import kit
import msgspec
import redis.asyncio

BATCH = 100
ENQUEUE_BATCH = 250
LANES = 2
AHEAD = 2
"""Jobs held per slot, so that a trip overlaps with running."""


class Payload(msgspec.Struct):
    n: int
    x: str


class Spec(msgspec.Struct):
    type: str
    payload: msgspec.Raw


decode = msgspec.json.Decoder(Spec).decode
decode_payload = msgspec.json.Decoder(Payload).decode
encode = msgspec.json.Encoder().encode


async def noop(n: int, x: str) -> None:
    kit.ran(n)


HANDLERS = {"noop": noop}


def keys(*columns: str) -> list[str]:
    return [f"limit:{{bench}}:{column}" for column in columns]


class Bare(kit.Peer):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.client = redis.asyncio.Redis.from_url(self.url)

    async def _load(self, name: str) -> str:
        return await self.client.script_load((Path(__file__).parent / f"{name}.lua").read_text())

    async def open(self) -> None:
        self.sha = await self._load("enqueue")

    async def close(self) -> None:
        await self.client.aclose()

    async def enqueue_many(self, numbers: range) -> None:
        async def send(batch: range) -> None:
            flat: list[Any] = []
            for n in batch:
                flat += (f"{n:017x}", encode({"type": "noop", "payload": {"n": n, "x": kit.PAD}}))
            await self.client.evalsha(self.sha, 3, *keys("waiting", "jobs", "meta"), *flat)  # type: ignore[misc]

        batches = [numbers[at : at + ENQUEUE_BATCH] for at in range(0, len(numbers), ENQUEUE_BATCH)]
        await asyncio.gather(*map(send, batches))

    async def work(self, stop: asyncio.Event) -> None:
        claim, settle = await self._load("claim"), await self._load("settle")
        claim_keys = keys("waiting", "active", "jobs", "leases")
        settle_keys = keys("active", "leases", "completed", "results")
        done: list[Any] = []
        held = 0
        finished = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def run(job_id: bytes, raw: bytes) -> None:
            nonlocal held
            spec = decode(raw)
            payload = decode_payload(spec.payload)
            result = await HANDLERS[spec.type](payload.n, payload.x)
            done.append(job_id)
            done.append(encode(result))
            held -= 1
            finished.set()

        async def lane() -> None:
            nonlocal held, done
            while not stop.is_set():
                want = min(self.concurrency * AHEAD - held, BATCH)
                if want <= 0 and not done:
                    finished.clear()
                    await finished.wait()
                    continue
                settled, done = done, []
                held += want
                pipeline = self.client.pipeline(transaction=False)
                if settled:
                    pipeline.execute_command("EVALSHA", settle, 4, *settle_keys, "holder", *settled)
                pipeline.execute_command("EVALSHA", claim, 4, *claim_keys, want, "holder")
                claimed = (await pipeline.execute())[-1]
                got = len(claimed[0]) if claimed else 0
                held -= want - got
                for job_id, raw in zip(*claimed, strict=True) if claimed else ():
                    task = asyncio.create_task(run(job_id, raw))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                # Empty: nothing wakes the bare limit, so it polls.
                await asyncio.sleep(0 if got else 0.01)

        await asyncio.gather(*(lane() for _ in range(LANES)))


if __name__ == "__main__":
    kit.main(Bare)
