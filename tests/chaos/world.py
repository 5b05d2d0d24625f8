"""The system of a chaos run: a server, a proxy in front of it, worker processes, and producers over Python and REST."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from aiohttp.test_utils import TestClient, TestServer

from jobq import Connection, JobNotFound, NewJob, Options, Queue, State, StoredBackoff
from jobq.engine.model.entry import encode_entry
from jobq.engine.model.ids import IdMaker, in_partition, new_id, partition_of
from jobq.engine.model.job import StoredUnique
from jobq.engine.model.spread import home_of
from jobq.engine.queue.limits import declare_rules
from jobq.engine.store import Store
from jobq.engine.store.packing import pack
from jobq.engine.store.refusals import translate
from jobq.errors import StoreError, StoreFull, StoreUnavailable, WrongState
from jobq.http import create_app
from tests.chaos.app import queue as app_queue
from tests.chaos.conftest import free_port
from tests.chaos.proxy import Proxy
from tests.chaos.sink import Sink
from tests.conftest import Server

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from aiohttp import web

ROOT = Path(__file__).parents[2]
LEASE = 2.0
"""Seconds. The lease is short, so that many pass during a run."""
GRACE = 1.0
WORKERS = 3
CONCURRENCY = 8
PARTITIONS_MOST = 6
ALL_AT_ONCE = 14
"""The rule of the whole queue, if it has partitions: fewer jobs than the workers have slots."""
SKEWS = (0, 3600, -3600)
"""Seconds by which the clocks of the workers are wrong."""
DONE, FAILED = (State.COMPLETED,), (State.FAILED,)
ENDS = {
    "plain": DONE, "flaky": DONE, "bounded": DONE, "threaded": DONE,
    "grouped": DONE, "breaking": DONE, "costly": DONE,
    "isolated": DONE, "blocker": DONE, "segfault": FAILED,
    "glutton": FAILED, "victim": FAILED,
    # if it started and ended in time
    "hasty": DONE + FAILED, "urgent": DONE + FAILED,
    # if it had room, and no other one took its place
    "dropping": DONE + FAILED, "replacing": DONE + FAILED, "preempting": DONE + FAILED,
    # in a loop that somebody else blocks it may end by itself before it is given up
    "stubborn": FAILED + DONE,
}  # fmt: skip
"""The end of each type of job, which no fault may change."""
LATE = {"hasty": ("Expired",), "urgent": ("Expired", "DeadlineExceeded")}
"""The errors of jobs that may end because they are late."""
OVER = {"dropping": ("Dropped",), "replacing": ("Replaced",), "preempting": ("Killed", "Replaced")}
"""The errors of jobs that may end because of a limit. If none of its jobs runs, kill_running replaces the oldest."""
ENDED_BY_LIMITS = {"Dropped": "dropped", "Replaced": "replaced_oldest", "Killed": "killed_running"}
"""Their errors, and what is counted."""
FREQUENT = {
    "plain": 50, "flaky": 15, "bounded": 10, "grouped": 10, "breaking": 5, "costly": 10, "threaded": 10, "isolated": 5,
    "blocker": 0.3, "stubborn": 0.5, "segfault": 0.5, "glutton": 0.3, "victim": 3, "hasty": 4, "urgent": 3,
    "dropping": 5, "replacing": 5, "preempting": 5,
}  # fmt: skip
"""How frequent each type is."""
LIMITS: dict[str, Callable[[dict[str, Any]], tuple[str, ...]]] = {
    "bounded": lambda payload: ("bounded", f"bounded.group:{payload['group']}"),
    **{name: lambda _, name=name: (name,) for name in ("costly", *OVER)},
}
"""The limit keys of the jobs of a type."""
UNIQUE = (
    StoredUnique(key="queued", while_="queued", on="replace", delay=300, max_wait=2000),
    StoredUnique(key="running", while_="running"),
    StoredUnique(key="latest", on="keep_last"),
    StoredUnique(key="throttled", for_=500),
    StoredUnique(key="ended", while_="unfinished", for_=200, on="replace_all"),
)
"""Uniqueness of jobs that end as others of their type, whatever becomes of the enqueues."""


class Workers:
    """Worker processes of the command line, started again when they die."""

    def __init__(self, url: str, sink: Path, log: Path) -> None:
        self._env = os.environ | {
            "JOBQ_REDIS_URL": url,
            "JOBQ_LEASE": str(LEASE),
            "JOBQ_GRACE": str(GRACE),
            "JOBQ_CONCURRENCY": str(CONCURRENCY),
            "JOBQ_LOG_FORMAT": "json",
            "CHAOS_SINK": str(sink),
            "PYTHONPATH": str(ROOT),
        }
        self._log = log
        self.processes: dict[int, asyncio.subprocess.Process] = {}
        """Place -> process."""
        self._stopping = False

    async def keep(self, place: int) -> None:
        """Keep one process running at this place."""
        while not self._stopping:
            with self._log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.chaos.skewed", str(SKEWS[place % len(SKEWS)]),
                    "work", str(ROOT / "tests/chaos/app.py") + ":queue", "--processes", "0",
                    env=self._env, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            self.processes[place] = process
            await process.wait()
            await asyncio.sleep(0.05)

    def any(self, chance: random.Random) -> asyncio.subprocess.Process:
        """A random process."""
        return chance.choice([self.processes[place] for place in sorted(self.processes)])

    @staticmethod
    def runs(pid: int) -> bool:
        """Whether the process lives and is not stopped."""
        try:
            return psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    async def stop(self, within: float) -> list[int]:
        """Send SIGTERM to all and return their exit codes. A process that has not ended ``within`` seconds is killed
        (code -9)."""
        self._stopping = True
        living = list(self.processes.values())
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        done = asyncio.gather(*(process.wait() for process in living))
        try:
            return await asyncio.wait_for(asyncio.shield(done), within)
        except TimeoutError:
            for process in living:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            return await done


class World:
    """The whole system. ``fsync``: appendfsync of the server. ``partitions``: over how many the queue is spread."""

    def __init__(self, chance: random.Random, fsync: str = "everysec", partitions: int = 1) -> None:
        self.chance = chance
        self.partitions = partitions
        self.most_active = 0
        """The most jobs that were active at once in all partitions."""
        self.folder = Path(tempfile.mkdtemp(prefix="jobq-chaos-"))
        self.server = Server(
            "--appendonly", "yes", "--appendfsync", fsync, "--enable-debug-command", "yes",
            "--busy-reply-threshold", "200", port=free_port(),
        )  # fmt: skip
        self.sink_path = self.folder / "sink.db"
        self.sink = Sink(self.sink_path)
        self.sink.create()
        self.log = self.folder / "workers.log"
        self.acknowledged: dict[str, str] = {}
        """The type of each job whose enqueue was acknowledged."""
        self.reruns: dict[str, str] = {}
        """Each job that runs another one again, and that one."""
        self.refusals: dict[str, int] = {}
        """Number of errors that producers got, by class."""
        self.producing = True
        self.kills: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._stack = stack = AsyncExitStack()
        self.server.start()
        stack.callback(self.server.stop)
        self.proxy = await stack.enter_async_context(Proxy(self.server.port))
        self.direct = Connection(self.server.admin_url, timeout=30)
        stack.push_async_callback(self.direct.aclose)
        self.queue = await stack.enter_async_context(
            Queue("chaos", Connection(self.proxy.url), partitions=self.partitions)
        )
        stack.push_async_callback(self.queue.store.connection.aclose)
        self.direct_queue = await stack.enter_async_context(Queue("chaos", self.direct))
        await declare_rules(self.queue.store, app_queue.rules)  # the producers do not wait for the first worker
        if self.partitions > 1:
            await self.queue.set_limit("queue", concurrency=ALL_AT_ONCE)
        await self.queue.put_schedule("tick", "plain", {"ms": 0}, cron="* * * * * *", catch_up="all", overlap="allow")
        app = create_app(Queue("chaos", self.proxy.url))
        self.rest: TestClient[web.Request, web.Application]
        self.rest = await stack.enter_async_context(TestClient(TestServer(app)))
        self.workers = Workers(self.proxy.url, self.sink_path, self.log)
        self.places = [asyncio.create_task(self.workers.keep(place)) for place in range(WORKERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.workers.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        await self.workers.stop(10.0)
        await asyncio.wait(self.places)
        await self._stack.aclose()
        self.sink.close()

    async def slots(self) -> dict[int, str]:
        """The jobs of the schedule, by their slots (unix s)."""
        found: dict[int, str] = {}
        for name in await self.command("HKEYS", "jobq:{chaos}:jobs"):
            schedule, _, slot = name.decode().partition("~")
            if schedule == "tick":
                moment = datetime.strptime(slot, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                found[int(moment.timestamp())] = name.decode()
        return found

    async def command(self, *words: str | bytes | int) -> Any:
        """Send a command to the server itself, not through the proxy. Repeat it while the server is away or busy."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return await self.once(*words)
                except StoreUnavailable:
                    await asyncio.sleep(0.05)

    async def once(self, *words: str | bytes | int) -> Any:
        """Send a command to the server itself, once."""
        answer = (await self.direct.trip(pack(words), 1))[0]
        if isinstance(answer, Exception):
            raise translate(answer)
        return answer

    @property
    def parts(self) -> list[Store]:
        """Stores of all partitions that there may be, on the server itself."""
        most = 1 if self.partitions == 1 else PARTITIONS_MOST
        return [Store(self.direct, "chaos", partition=number) for number in range(most)]

    async def leases(self) -> dict[str, str]:
        """The active jobs, with their tokens."""
        found: dict[str, str] = {}
        for part in self.parts:
            flat = await self.command("HGETALL", part.keys["leases"])
            found |= {job.decode(): token.decode() for job, token in zip(flat[::2], flat[1::2], strict=True)}
        return found

    async def held(self, pid: int | None = None) -> int:
        """The number of active jobs of one worker process, or of all."""
        return sum(pid is None or f"-{pid}-" in token for token in (await self.leases()).values())

    async def wait_for_workers(self) -> None:
        """Wait until each worker process is known as a worker."""
        async with asyncio.timeout(60):
            while True:
                known = b"\n".join(await self.command("ZRANGE", self.parts[0].keys["workers"], 0, -1)).decode()
                if all(f"-{process.pid}-" in known for process in self.workers.processes.values()):
                    return
                await asyncio.sleep(0.1)

    async def watch_rule(self) -> None:
        """Look again and again how many jobs are active in all partitions at one moment."""
        looks = [pack(("ZCARD", part.keys["active"])) for part in self.parts]
        payload = b"".join([pack(("MULTI",)), *looks, pack(("EXEC",))])
        while True:
            with contextlib.suppress(StoreError):
                *_, counts = await self.direct.trip(payload, len(looks) + 2)
                if isinstance(counts, list):
                    self.most_active = max(self.most_active, sum(counts))
            await asyncio.sleep(0.02)

    # -- producers -------------------------------------------------------------------------------------------------

    def refused(self, error: Exception | str) -> None:
        """A producer got an error or no answer."""
        name = error if isinstance(error, str) else type(error).__name__
        self.refusals[name] = self.refusals.get(name, 0) + 1

    def draw(self) -> tuple[str, dict[str, Any], Options]:
        """A random job."""
        chance = self.chance
        kind = chance.choices(list(FREQUENT), list(FREQUENT.values()))[0]
        payload: dict[str, Any] = {
            "plain": {"ms": chance.choice([0, 1, 20, 300])},
            "flaky": {"fails": chance.randint(1, 3)},
            "bounded": {"group": chance.randint(1, 4), "ms": chance.choice([0, 5, 20])},
            "grouped": {"tenant": chance.choice("abc"), "ms": chance.choice([0, 5, 20])},
            "breaking": {"fails": chance.choice([0, 1, 2])},
            "costly": {"tokens": chance.choice([1, 20, 300])},
            "threaded": {"ms": chance.choice([0, 20, 200])},
            "isolated": {"ms": 20},
            "blocker": {"ms": int(LEASE * 3000)},
            "stubborn": {"ms": 7000},
            "hasty": {"fails": chance.choice([0, 1])},
            "urgent": {"ms": chance.choice([0, 20, 1200])},
            **{name: {"ms": chance.choice([0, 100, 500])} for name in OVER},
        }.get(kind, {})
        homes = {"bounded": str(payload.get("group")), "costly": kind, "grouped": kind, **dict.fromkeys(OVER, "all")}
        unique = chance.choice(UNIQUE) if kind == "plain" and chance.random() < 0.3 else None
        options = Options(
            priority=chance.choice([0, 0, 0, -5, 7]),
            delay=chance.choice([0, 0, 0, 50, 1000]),
            expires=chance.choice([1050, 1500, 4000]) if kind == "hasty" else None,
            deadline=chance.choice([1050, 1500, 4000]) if kind == "urgent" else None,
            attempts={"stubborn": 1, "segfault": 2, "glutton": 2}.get(kind, 100),
            backoff=StoredBackoff("fixed", 100),
            timeout=300 if kind == "stubborn" else None,
            lifo=chance.random() < 0.1,
            key=None if unique or chance.random() > 0.1 else f"key-{new_id()}",
            unique=unique,
            limits=LIMITS[kind](payload) if kind in LIMITS else (),
            group=payload.get("tenant"),
            breaker=kind == "breaking",
            slots=2 if kind == "costly" else 1,
            costs={"tokens": payload["tokens"]} if kind == "costly" else {},
            partition_by=homes.get(kind),
        )
        return kind, payload, options

    async def produce(self, pause: float) -> None:
        """Enqueue over Python until told to stop. A call without an answer is repeated with the same id."""
        while self.producing:
            kind, payload, options = self.draw()
            base = self.queue.new(kind, payload)
            job = NewJob(kind, base.payload, options)
            place = home_of(encode_entry(job, IdMaker(), 0), await self.queue.homes())
            place = self.chance.randrange(self.partitions) if place is None else place
            job = NewJob(kind, base.payload, options, id=in_partition(new_id(), place))
            assert job.id
            while True:
                try:
                    accepted = await self.queue.submit(job)
                    break
                except StoreError as error:
                    self.refused(error)
                    await asyncio.sleep(0.2)
            self.acknowledged[accepted.id] = kind  # a duplicate is the job that holds the key
            if kind == "victim":
                self.kills.append(asyncio.create_task(self.kill(job.id)))
            elif kind in ("flaky", "bounded", "grouped", "costly", "hasty", *OVER) and self.chance.random() < 0.1:
                await self.run_again(accepted.id, kind)
            await asyncio.sleep(pause * self.chance.uniform(0.2, 1.8))

    async def run_again(self, job_id: str, kind: str) -> None:
        """Run an earlier job again, whatever its state is. A call without an answer is repeated with the same id."""
        again = in_partition(new_id(), partition_of(job_id))
        while True:
            try:
                await self.queue.rerun(job_id, id=again, key=None)
                break
            except StoreError as error:
                self.refused(error)
                await asyncio.sleep(0.2)
        # The times of the first enqueue are not kept, so it does not expire.
        self.acknowledged[again] = "flaky" if kind == "hasty" else kind
        self.reruns[again] = job_id

    async def produce_rest(self, pause: float) -> None:
        """Enqueue over REST until told to stop. A call without an answer is repeated with the same Idempotency-Key."""
        while self.producing:
            kind, payload, options = self.draw()
            if kind == "victim":
                continue
            body: dict[str, Any] = {"type": kind, "payload": payload, "attempts": options.attempts}
            body |= {"priority": options.priority, "delay": options.delay, "backoff": {"type": "fixed", "delay": 100}}
            for name in ("timeout", "expires", "deadline"):
                if getattr(options, name):
                    body[name] = getattr(options, name)
            headers = {"Idempotency-Key": new_id()}
            while True:
                async with self.rest.post("/jobs/enqueue", json=body, headers=headers) as response:
                    answer = await response.json(content_type=None)
                if response.status in (200, 201):
                    self.acknowledged[answer["id"].rpartition(":")[2]] = kind
                    break
                assert response.status == 503, answer
                self.refused(f"503 {answer['type'].rpartition(':')[2]}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(pause * self.chance.uniform(0.2, 1.8))

    async def kill(self, job_id: str) -> None:
        """Kill a job at a random time. Repeat it until it is acknowledged."""
        await asyncio.sleep(self.chance.uniform(0, 2))
        while True:
            try:
                await self.queue.kill(job_id)
                return
            except StoreFull:
                raise
            except StoreError as error:
                self.refused(error)
                await asyncio.sleep(0.2)
            except (WrongState, JobNotFound):
                return  # An earlier attempt has done it.
