"""Queues on a cluster: how its nodes are found, and what happens when slots and nodes move."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from jobq import Connection, Queue, Worker
from jobq.engine.store.route import Route
from jobq.errors import SettingsError, StoreFull, StoreUnavailable
from tests.conftest import USER, Server, server_kind, server_version
from tests.local_cluster import NODE_TIMEOUT_MS, LocalCluster, Node, free_ports, slot_of, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Until

pytestmark = pytest.mark.slow

NAMES = ["a", "b", "c"]
"""Queues on three different nodes."""
ATOMIC = server_kind() == "valkey" and server_version() >= (9, 0)
"""Whether the server can move a slot in one step."""


async def run_one(queue: Queue) -> Any:
    """Run one job in the queue."""

    @queue.task(name="work")
    async def work(n: int) -> int:
        return n + 1

    async with queue, Worker(queue) as worker:
        worker.start()
        return await (await work.enqueue(n=1)).result(timeout=20)


def test_the_queues_of_these_tests_are_on_different_nodes(cluster: LocalCluster):
    assert len({cluster.owner(slot_of(name)) for name in NAMES}) == 3


@pytest.mark.parametrize(
    "form", ["redis+cluster://{all}", "valkey+cluster://{last}", "redis://{first}", "valkey://{last}"]
)
async def test_each_form_of_the_url_leads_to_all_nodes(form: str, cluster: LocalCluster):
    ports = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
    url = form.format(all=USER + ",".join(ports), first=USER + ports[0], last=USER + ports[-1])
    for name in NAMES:
        assert await run_one(Queue(name, url)) == 2
    connection = Connection(url)
    async with Queue("a", connection) as queue:
        assert await queue.store.queues() == NAMES
    await connection.aclose()


async def test_the_first_nodes_of_the_url_may_be_down(cluster: LocalCluster):
    connection = Connection(f"redis+cluster://{USER}127.0.0.1:1,127.0.0.1:{cluster.nodes[1].port}")
    assert await run_one(Queue("a", connection)) == 2
    await connection.aclose()


async def test_without_any_node_the_queue_says_so():
    with pytest.raises(StoreUnavailable, match="no answer from Redis"):
        await Queue("a", Connection("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout=0.5)).open()


async def test_a_server_that_is_no_cluster_is_named():
    server = Server(port=free_ports(1)[0]).start()
    try:
        with pytest.raises(StoreUnavailable, match="cluster support disabled"):
            await Queue("a", Connection(f"redis+cluster://127.0.0.1:{server.port}", timeout=0.5)).open()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("kind", "announced"), [("hostname", "node-{}.invalid"), ("unknown-endpoint", "node-{}.invalid")]
)
async def test_announced_names_behind_nat_are_mapped(kind: str, announced: str, cluster: LocalCluster):
    """The nodes announce names that this machine cannot resolve, or no name at all."""
    for i, node in enumerate(cluster.nodes):
        node.ask("CONFIG", "SET", "cluster-announce-hostname", announced.format(i))
        node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
    try:
        address_map = ",".join(
            f"{announced.format(i)}:{node.port}=127.0.0.1:{node.port}" for i, node in enumerate(cluster.nodes)
        )
        wait_for(
            lambda: (
                kind != "hostname"
                or b"?" not in [row[2][0] for node in cluster.nodes for row in node.ask("CLUSTER", "SLOTS")]
            ),
            "the nodes to hear the names",
        )
        url = f"redis+cluster://{USER}127.0.0.1:{cluster.nodes[0].port}"
        if kind == "hostname":
            away = next(name for name in NAMES if cluster.owner(slot_of(name)) is not cluster.nodes[0])
            with pytest.raises(StoreUnavailable):
                await Queue(away, Connection(url, timeout=0.5)).open()
            url += f"?address_map={address_map}"
        for name in NAMES:
            assert await run_one(Queue(name, url)) == 2
    finally:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-announce-hostname", "")
            node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


# -- slots that move ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def route(connection: Connection) -> Route:
    """A route to one key."""
    return Route(connection, b"jobq:{moved}:count")


@pytest.fixture
def ends(cluster: LocalCluster) -> tuple[Node, Node]:
    """The node that has the key of ``route``, and another one."""
    source = cluster.owner(slot_of("moved"))
    return source, next(node for node in cluster.primaries() if node is not source)


INCR = (b"HINCRBY", b"jobq:{moved}:count", b"n", 1)


async def test_moved_is_followed_and_remembered(route: Route, cluster: LocalCluster, ends: tuple[Node, Node]):
    assert await route.commands(INCR, INCR) == [1, 2]
    before = route.node
    await asyncio.to_thread(cluster.move, route.hash_slot, *ends)
    assert await route.commands(INCR, INCR) == [3, 4]
    assert route.node is not before
    assert route.node.url.endswith(str(ends[1].port))


async def test_a_refusal_moves_the_slot_that_it_names(connection: Connection, cluster: LocalCluster):
    """A route may send a key of another slot, such as that of the registry. Its own slot stays where it is."""
    own, others = (b"jobq:{%b}:meta" % name.encode() for name in NAMES[:2])
    route, other = Route(connection, own), Route(connection, others)
    await route.commands((b"HLEN", own))
    mine = route.node
    assert await route.commands((b"HLEN", others)) == [0]
    assert route.node is mine
    assert other.node.url.endswith(str(cluster.owner(slot_of(NAMES[1])).port))


async def test_ask_is_followed_and_not_remembered(route: Route, cluster: LocalCluster, ends: tuple[Node, Node]):
    assert await route.commands(INCR) == [1]
    before = route.node
    heard: list[list[int]] = []
    loop = asyncio.get_running_loop()

    def between() -> None:
        heard.append(asyncio.run_coroutine_threadsafe(route.commands(INCR, INCR), loop).result(10))
        assert route.node is before

    await asyncio.to_thread(cluster.move, route.hash_slot, *ends, between=between)
    assert heard == [[2, 3], [4, 5]], "first at the source, then at the target"
    assert await route.commands(INCR) == [6]


async def test_tryagain_is_waited_out(route: Route, cluster: LocalCluster, ends: tuple[Node, Node]):
    """A command with two keys, one of which has moved."""
    one, other = b"jobq:{moved}:count", b"jobq:{moved}:also"
    await route.commands((b"HSET", one, b"n", 1), (b"HSET", other, b"n", 1))
    loop = asyncio.get_running_loop()
    calls: list[asyncio.Task[Any]] = []

    def between() -> None:
        # between runs in the thread: once both keys are at the source, once one of them, once none
        loop.call_soon_threadsafe(lambda: calls.append(loop.create_task(route.command(b"EXISTS", one, other))))
        wait_for(lambda: calls, "the call")

    await asyncio.to_thread(cluster.move, route.hash_slot, *ends, between=between)
    assert await asyncio.gather(*calls) == [2, 2, 2]


@pytest.mark.parametrize("at_once", [False, *([True] if ATOMIC else [])])
async def test_no_command_is_executed_twice_while_a_slot_moves(
    route: Route, cluster: LocalCluster, ends: tuple[Node, Node], at_once: bool
):
    """Each write counts two numbers up. Both have the number of writes in the end."""
    source, target = ends
    moving, counted = True, 0

    async def count() -> None:
        nonlocal counted
        while moving:
            answers = await route.commands(INCR, (b"HINCRBY", b"jobq:{moved}:other", b"n", 1), INCR)
            assert not [answer for answer in answers if isinstance(answer, Exception)]
            counted += 1

    counting = [asyncio.create_task(count()) for _ in range(4)]
    move = cluster.move_at_once if at_once else cluster.move
    for _ in range(3):
        await asyncio.to_thread(move, route.hash_slot, source, target)
        await asyncio.to_thread(move, route.hash_slot, target, source)
    moving = False
    await asyncio.gather(*counting)
    assert counted > 20
    found = await route.commands((b"HGET", b"jobq:{moved}:count", b"n"), (b"HGET", b"jobq:{moved}:other", b"n"))
    assert [int(number) for number in found] == [2 * counted, counted]


async def test_the_wait_for_a_copy_counts_where_the_writes_went(
    connection: Connection, cluster: LocalCluster, ends: tuple[Node, Node]
):
    """The node that no longer has the slot confirms copies, too: of nothing."""
    queue = Queue("moved", connection, durability="replicated")
    async with queue:
        await queue.enqueue("work", {})
        await asyncio.to_thread(cluster.move, slot_of("moved"), *ends)
        replica = cluster.replica_of(ends[1])
        before = replica.ask("DBSIZE")
        await queue.enqueue("work", {})
        assert replica.ask("DBSIZE") >= before > 0
        assert (await queue.stats()).waiting == 2


async def test_a_queue_that_moves_keeps_its_workers_and_listeners(
    connection: Connection, cluster: LocalCluster, ends: tuple[Node, Node], until: Until
):
    """A sleeping worker is woken, a kill reaches it, and a waiting caller gets its result, also behind a move."""
    queue = Queue("moved", connection)
    started: list[int] = []

    @queue.task
    async def sleep(n: int) -> None:
        started.append(n)
        await asyncio.sleep(600)

    @queue.task
    async def work() -> int:
        return 1

    async with queue, Worker(queue) as worker:
        worker.start()
        assert await (await work.enqueue()).result(timeout=10) == 1
        for n, (source, target) in enumerate([ends, ends[::-1]]):
            await asyncio.to_thread(cluster.move, slot_of("moved"), source, target)
            assert await (await work.enqueue()).result(timeout=20) == 1
            job = await sleep.enqueue(n=n)
            await until(lambda n=n: n in started, "the start")
            await queue.kill(job.id)
            await until(lambda: worker.running == 0, "the kill to reach the worker", timeout=20)


# -- nodes with trouble ------------------------------------------------------------------------------------------------


async def test_a_node_that_is_full_refuses_its_own_queues_only(connection: Connection, cluster: LocalCluster):
    """Workers go on: with the jobs that are there already, and with the queues on other nodes."""
    full = cluster.owner(slot_of("a"))
    queues = [Queue(name, connection) for name in NAMES]
    refused, other, third = queues
    entered, gate = asyncio.Event(), asyncio.Event()
    for queue in queues:

        @queue.task(name="work", attempts=1)
        async def work(wait: bool = False) -> str:
            if wait:
                entered.set()
                await gate.wait()
            return "done"

    async with refused, other, third, Worker(*queues, concurrency=4) as worker:
        worker.start()
        running = await refused.enqueue("work", {"wait": True})
        await entered.wait()
        await refused.pause()
        waiting = [await refused.enqueue("work") for _ in range(5)]
        full.ask("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(StoreFull):
                await refused.enqueue("work")
            for queue in (other, third):
                assert await (await queue.enqueue("work")).result(10) == "done"
            gate.set()
            await refused.resume()
            for job in (running, *waiting):
                assert await job.result(10) == "done"
            with pytest.raises(StoreFull):
                await refused.enqueue("work")
        finally:
            full.ask("CONFIG", "SET", "maxmemory", 0)
        assert await (await refused.enqueue("work")).result(10) == "done"


async def test_a_node_that_hangs_delays_no_renewal_on_the_others(
    connection: Connection, cluster: LocalCluster, until: Until
):
    """Shorter than the time after which its replica would take over."""
    queues = [Queue(name, connection) for name in NAMES]
    release = asyncio.Event()
    runs: list[str] = []
    for queue in queues:

        @queue.task(name="work")
        async def work(name: str) -> None:
            runs.append(name)
            await release.wait()

    hung = cluster.owner(slot_of("a"))
    async with queues[0], queues[1], queues[2], Worker(*queues, lease=1.2) as worker:
        worker.start()
        for queue in queues:
            await queue.enqueue("work", {"name": queue.name})
        await until(lambda: len(runs) == 3, "all started")
        leases = queues[1].store.keys["active"]

        async def expiry() -> float:
            return float((await queues[1].store.command(b"ZRANGE", leases, 0, 0, b"WITHSCORES"))[1])

        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-node-timeout", 60_000)
        sleeping = asyncio.create_task(asyncio.to_thread(hung.ask, "DEBUG", "SLEEP", 3))
        first = await expiry()
        await until(lambda: _later(expiry, first + 1500), "two renewals")
        assert not sleeping.done()
        release.set()
        await sleeping
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS)


async def _later(expiry: Any, than: float) -> bool:
    return await expiry() > than


async def test_each_node_gets_its_scripts(connection: Connection, cluster: LocalCluster):
    async with Queue("a", connection) as queue:
        for node in cluster.nodes:
            node.ask("SCRIPT", "FLUSH")
        await queue.enqueue("work", {})
        assert (await queue.stats()).waiting == 1


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The certificate of a server at 127.0.0.1. The key is beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [openssl, *words.split(), "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL
    )
    return certificate


async def test_over_tls(certificate: Path):
    """The nodes announce their TLS ports to a client that asks over TLS."""
    cluster = LocalCluster(primaries=2, replicas=0)
    ports = free_ports(2)
    for node, port in zip(cluster.nodes, ports, strict=True):
        files = ("--tls-cert-file", certificate, "--tls-key-file", certificate.parent / "key.pem")
        node.server.add_options(
            "--tls-cluster",
            "yes",
            "--tls-port",
            str(port),
            *map(str, files),
            "--tls-ca-cert-file",
            str(certificate),
            "--tls-auth-clients",
            "no",
        )
    try:
        try:
            cluster.start()
        except RuntimeError:
            pytest.skip("the server has no TLS")
        url = f"rediss+cluster://{USER}127.0.0.1:{ports[0]}?ssl_ca_certs={certificate}"
        for name in NAMES:
            queue = Queue(name, url)
            assert await run_one(queue) == 2
        connection = Connection(url)
        await connection.join()
        assert {urlsplit(connection.node_of(slot_of(name)).url).port for name in NAMES} == set(ports)
        await connection.aclose()
    finally:
        cluster.stop()


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://h/3", "has no meaning: a cluster has no numbered databases"),
        ("redis+cluster://h?db=3", "'db' is not supported here"),
        ("redis+cluster://h:port", "the addresses of nodes must be host:port,host:port"),
        ("redis+cluster://h?address_map=a", "address_map must be announced=reachable"),
        ("redis://h?address_map=a=b", "'address_map' is not supported here"),
    ],
)
def test_an_unusable_url_of_a_cluster_is_refused(url: str, says: str):
    with pytest.raises(SettingsError, match=says):
        Connection(url)
