"""Sends calls in one write. Marks a call that is repeated. Sends a whole script that the server lacks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from jobq.engine.store import lua
from jobq.engine.store.cluster import is_refusal
from jobq.engine.store.keys import queue_keys
from jobq.engine.store.packing import pack
from jobq.engine.store.refusals import translate
from jobq.engine.store.route import PAUSES, Route
from jobq.engine.store.tracking import trackers_of
from jobq.errors import DurabilityUnavailable, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store.calls import Call
    from jobq.engine.store.link import Connection
    from jobq.engine.store.packing import Argument

T = TypeVar("T")


class Heads(dict[str, "tuple[int, bytes]"]):
    """The packed heads of scripts by name. Each is made when it is first used, because a queue uses a few of them, and
    a worker of hundreds of queues would spend memory and time on the others."""

    def __init__(self, sender: Sender, *, short: bool) -> None:
        super().__init__()
        self._sender = sender
        self._short = short

    def __missing__(self, name: str) -> tuple[int, bytes]:
        head = self[name] = self._sender.head(name, short=self._short)
        return head


class Sender(Route):
    """Calls on the keys of one queue. All of them are in one slot."""

    def __init__(self, connection: Connection, name: str, prefix: str, partition: int = 0) -> None:
        self.name = name
        self.prefix = prefix
        self.partition = partition
        self.keys = queue_keys(prefix, name, partition)
        super().__init__(connection, self.keys["waiting"])
        self._scripts = lua.scripts()
        self._heads = {short: Heads(self, short=short) for short in (False, True)}

    def head(self, name: str, *, short: bool) -> tuple[int, bytes]:
        """The packed command and keys in front of the arguments, and their number. They are packed only once."""
        script = self._scripts[name]
        keys = [self.keys[column] for column in script.columns(short=short) if column in self.keys]
        words = pack((b"EVALSHA", script.sha, len(keys), *keys))
        return 3 + len(keys), words[words.index(b"\n") + 1 :]

    def packed(self, call: Call[Any]) -> bytes:
        """The call as the server reads it."""
        if call.keys is not None:
            script = self._scripts[call.script]
            return pack((b"EVALSHA", script.sha, len(call.keys), *call.keys, *call.args))
        count, head = self._heads[call.short][call.script]
        if not call.args:
            return b"*%d\r\n%b" % (count, head)
        tail = pack(tuple(call.args))
        return b"*%d\r\n%b%b" % (count + len(call.args), head, tail[tail.index(b"\n") + 1 :])

    def _pack_source(self, call: Call[Any]) -> bytes:
        script = self._scripts[call.script]
        columns = script.columns(short=call.short)
        keys = call.keys if call.keys is not None else tuple(self.keys[column] for column in columns)
        return pack((b"EVAL", script.source, len(keys), *keys, *call.args))

    async def trip(
        self,
        *calls: Call[Any],
        extra: tuple[Argument, ...] | None = None,
        patience: float = 0.0,
        within: float | None = None,
    ) -> list[Any]:
        """Send the calls in one write. A call's own error (``StoreError``) stands in its place in the answers.

        ``extra``: a WAIT or WAITAOF behind them on the same connection (it counts that connection's writes), which may
        block for ``patience`` seconds; its reply comes last. ``within``: as for ``do``.

        :raises StoreUnavailable: no attempt got an answer.
        """
        behind = [pack(extra)] if extra else []
        answers = await self.send(
            [*map(self.packed, calls), *behind],
            calls,
            self.packed,
            patience=patience,
            within=within,
            waits=bool(behind),
        )
        return await self.read(calls, answers, behind, patience)

    async def trip_on_wake(self, call: Call[Any], block: float) -> Any:
        """Block on the wake token for up to ``block`` seconds, then run the call. Both go in one write, so the claimed
        job comes back with the token and not a trip later. Sent once. Returns the call's own ``StoreError``.

        :raises StoreUnavailable: no answer came, so the call may have been executed or not.
        """
        pieces = [pack((b"BZPOPMIN", self.keys["wake"], block)), self.packed(call)]
        node = await self.current()
        token, answer = await node.trip(b"".join(pieces), 2, patience=block)
        if is_refusal(token):
            # The slot moves to another node, which ends the wait. The next one must not end at once again.
            await asyncio.sleep(PAUSES[1])
        elif isinstance(token, Exception):
            raise translate(token)
        if is_refusal(answer):
            (answer,) = await self.follow(node, pieces[1:], [answer])
        return (await self.read((call,), [answer], [], 0.0))[0]

    async def wait_for_wake(self, stores: Sequence[Sender], block: float) -> int | None:
        """Block until one of these queues has a wake token, for up to ``block`` seconds, and take it. All of them are
        on this one's server or cluster. Returns the place of the queue, None if no token came.

        :raises StoreUnavailable: no answer came, so a token may have been taken.
        :raises StoreError: the server refuses the wait, for example because one of the keys is of another type.
        """
        if self.connection.in_cluster:
            return await trackers_of(self.connection).wait(stores, block)
        keys = [store.keys["wake"] for store in stores]
        node = await self.current()
        (token,) = await node.trip(pack((b"BZPOPMIN", *keys, block)), 1, patience=block)
        if isinstance(token, Exception):
            raise translate(token)
        return keys.index(token[0]) if token else None

    async def read(
        self, calls: Sequence[Call[Any]], answers: list[Any], behind: list[bytes], patience: float
    ) -> list[Any]:
        """What the calls return, made of the server's answers. A call's own error stands in its place. ``behind``,
        ``patience``: what was sent behind them, and for how long it may block."""
        loaded = False
        for i, call in enumerate(calls):
            answer = answers[i]
            if isinstance(answer, Exception):
                # The server does not know the script after a restart, a failover or a flush. It did not run, so send
                # the whole script.
                if str(answer).startswith(("NOSCRIPT", "No matching script")):
                    if not loaded:
                        await self.load()
                        loaded = True
                    pieces = [self._pack_source(call), *behind]
                    answer, *last = await self.send(
                        pieces, (call,), self._pack_source, patience=patience, waits=bool(behind)
                    )
                    answers[len(calls) :] = last
                if isinstance(answer, Exception):
                    answers[i] = translate(answer)
                    continue
            answers[i] = call.read(answer)
        return answers

    async def do(self, call: Call[T], *, within: float | None = None) -> T:
        """Send one call. ``within``: seconds for all of it, where that is less than the connection's timeout.

        :raises StoreError: the server's error.
        """
        # The same as `trip` with one call, without its lists and coroutines. Every single enqueue goes this way.
        answer = (await self.send([self.packed(call)], (call,), self.packed, within=within))[0]
        if isinstance(answer, Exception):
            answer = (await self.read((call,), [answer], [], 0.0))[0]
            if isinstance(answer, StoreError):
                raise answer
            return answer
        return call.read(answer)

    async def do_all(self, calls: Sequence[Call[T]], *, within: float | None = None) -> list[T]:
        """Send several calls in one write, each of a size that does not hold the server for long. ``within``: as for
        ``do``.

        :raises StoreError: the server's error for one call; the others may have been executed.
        """
        answers = await self.trip(*calls, within=within)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return answers

    async def do_durably(self, calls: Sequence[Call[T]], durability: str, timeout_ms: int) -> list[T]:
        """Send enqueues in one write. Return only when the jobs are fsynced here, or stored on a replica.

        :raises StoreError: a call was refused; jobs of the others may be enqueued.
        :raises DurabilityUnavailable: no confirmation in time, or the server cannot give one. The jobs are enqueued.
        """
        wait: tuple[Argument, ...] = (
            (b"WAITAOF", 1, 0, timeout_ms) if durability == "fsynced" else (b"WAIT", 1, timeout_ms)
        )
        *answers, confirmed = await self.trip(*calls, extra=wait, patience=timeout_ms / 1000)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        if isinstance(confirmed, Exception):
            raise DurabilityUnavailable(f"the server cannot confirm {durability!r}: {confirmed}; the jobs are enqueued")
        # WAITAOF returns (local, replicas), WAIT a number.
        copies: int = confirmed[0] if durability == "fsynced" else confirmed
        if not copies:
            raise DurabilityUnavailable(
                f"{durability!r} was not confirmed within {timeout_ms} ms; the jobs are enqueued"
            )
        return answers

    async def load(self) -> None:
        """Load all scripts at once. Then the server has all scripts of a trip or none of them, so they run in order.

        :raises StoreUnavailable: no answer.
        """
        await self.commands(*((b"SCRIPT", b"LOAD", script.source) for script in self._scripts.values()))
