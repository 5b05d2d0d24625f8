"""Long work in pages: lists of jobs, and verbs that apply to all jobs of a state."""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from jobq.engine.model.job import State
from jobq.engine.model.times import to_ms
from jobq.engine.model.unreadable import as_text
from jobq.errors import InvalidQuery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobq.engine.model.job import Seconds
    from jobq.engine.store import Call, Store

Row = TypeVar("Row")

LIMIT: Final = 1000
SCAN: Final = 1000
"""How many ids one call looks at when it filters by type. Then the page ends early, with a cursor."""
CHUNK: Final = 100
"""Jobs per trip."""
PAGE_BYTES: Final = 8_000_000
"""Bytes of rows after which a page ends early."""
CALL: Final = 50
"""Jobs per call of a verb. Each job is in up to a dozen tables, and a table that Redis has just resized costs a page
fault at nearly every access."""
_SCORE: Final = re.compile(r"(-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?)?")
_NEWEST_FIRST: Final = (State.COMPLETED, State.FAILED)
UNFINISHED: Final = (State.WAITING, State.DELAYED, State.HELD, State.BLOCKED, State.ACTIVE)
_ALLOWED: Final[dict[str, tuple[State, ...]]] = {
    "retry": (State.FAILED, State.COMPLETED),
    "remove": tuple(state for state in State if state is not State.ACTIVE),
    "kill": UNFINISHED,
    "reprioritise": UNFINISHED[:-1],
    "promote": (State.DELAYED,),
}
_BY_PRIORITY: Final = (State.WAITING, State.BLOCKED, State.HELD)


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended: the state, and the score and id of its last job ('' before the first job).

    The id is kept as bytes. A damaged id may not be text, but the next page must still start behind it.
    """

    state: State
    score: str = ""
    id: bytes = b""


def write_cursor(cursor: Cursor) -> str:
    """A cursor as a text, which its users pass on without reading it."""
    return urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def read_cursor(text: str) -> Cursor:
    """The cursor that ``write_cursor`` made this text of.

    :raises InvalidQuery: the text is not such a cursor.
    """
    try:
        cursor = msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Cursor)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        cursor = None
    # Only what Redis prints and reads as a score. float() accepts more than Redis does.
    if cursor is None or not _SCORE.fullmatch(cursor.score):
        raise InvalidQuery(f"cursor {text[:80]!r} cannot be read: pass the last page's cursor unchanged") from None
    return cursor


def read_state(state: State | str) -> State:
    """A state, or the name of one, which programs without type checks may pass.

    :raises InvalidQuery: there is no such state.
    """
    try:
        return State(state)
    except ValueError:
        raise InvalidQuery(f"state is {state!r:.80}: it takes one of {', '.join(State)}") from None


class Pager:
    """Pages of one queue."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self,
        read: Callable[[str, str, list[Any]], Row],
        state: State | None,
        type_: str | None,
        limit: int,
        cursor: str | None,
        *,
        group: str | None = None,
        brief: bool = False,
    ) -> tuple[list[Row], str | None]:
        """A page of rows, and the cursor of the next page. Without a state, the states follow one another.

        :raises InvalidQuery: the cursor cannot be read, or the limit is out of range.
        """
        if not isinstance(limit, int) or not 1 <= limit <= LIMIT:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"limit is {limit!r:.80}: it takes 1 to {LIMIT}")
        states = list(State) if state is None else [read_state(state)]
        at = read_cursor(cursor) if cursor else Cursor(states[0])
        if at.state not in states:
            raise InvalidQuery(f"the cursor belongs to state {at.state}, the query asks for {state}: drop one of them")
        # A spec starts with its type. So the encoded prefix finds a type without decoding the spec.
        prefix = b'{"type":%b' % msgspec.json.encode(type_) if type_ else b""
        rows: list[Row] = []
        size = 0
        for current in states[states.index(at.state) :]:
            place = at if current is at.state else Cursor(current)
            ids, score, last = await self._store.do(
                self._store.page(
                    current,
                    reverse=current in _NEWEST_FIRST,
                    limit=SCAN if group else limit - len(rows),
                    scan=SCAN if prefix or group else limit - len(rows),
                    prefix=prefix,
                    highest="",
                    cursor=(place.score, place.id),
                )
            )
            if group is not None:
                ids, score, last = await self._of_group(current, ids, group, limit - len(rows), score, last)
            while ids:
                asked = ids[:CHUNK]
                found = await self._store.do(self._store.rows(asked, brief=brief))
                for job_id, row in zip(asked, found, strict=False):  # Large rows make the reply shorter.
                    if row:  # Otherwise the job left the state between the two reads.
                        rows.append(read(self._store.name, as_text(job_id), row))
                        size += sum(len(value or b"") for value in row)
                ids = ids[len(found) :]
                if ids and size > PAGE_BYTES and found[-1]:
                    return rows, write_cursor(Cursor(current, found[-1][1].decode(), asked[len(found) - 1]))
            if last:
                return rows, write_cursor(Cursor(current, score.decode(), last))
            if (len(rows) >= limit or size > PAGE_BYTES) and current is not states[-1]:
                return rows, write_cursor(Cursor(states[states.index(current) + 1]))
        return rows, None

    async def _of_group(
        self, state: State, ids: list[bytes], group: str, most: int, score: bytes, last: bytes
    ) -> tuple[list[bytes], bytes, bytes]:
        """At most so many jobs of a group, and the score and id of the next cursor."""
        chosen = await self._store.of_group(ids, group)
        if len(chosen) <= most:
            return chosen, score, last
        chosen = chosen[:most]
        found = await self._store.score(state, chosen[-1])
        # If the job has left meanwhile, the next page starts behind the whole one.
        return (chosen, score, last) if found is None else (chosen, found, chosen[-1])

    async def _sweep_each(
        self,
        parts: list[Store],
        state: State,
        verb: str,
        calls: Callable[[list[bytes]], Awaitable[list[Call[list[str]]]]],
        older_than: Seconds | None,
        progress: Callable[[int], None] | None,
        group: str | None,
    ) -> int:
        before = 0

        def told(moved: int) -> None:
            if progress:
                progress(before + moved)

        for part in parts:
            before += await Pager(part).sweep(state, verb, calls, older_than, None, told, group)
        return before

    async def sweep(
        self,
        state: State,
        verb: str,
        calls: Callable[[list[bytes]], Awaitable[list[Call[list[str]]]]],
        older_than: Seconds | None,
        limit: int | None,
        progress: Callable[[int], None] | None,
        group: str | None = None,
    ) -> int:
        """Apply a verb to every job of a state, oldest first. Returns how many jobs it moved.

        :raises InvalidQuery: the verb cannot be applied to that state, or jobs of that state have no age.
        """
        parts = self._store.parts
        if limit is None and len(parts) > 1:
            # All jobs are meant, so their order does not matter. To read each partition alone is cheaper.
            return await self._sweep_each(parts, state, verb, calls, older_than, progress, group)
        state = read_state(state)
        allowed = _ALLOWED[verb]
        if state not in allowed:
            raise InvalidQuery(f"cannot {verb} all {state} jobs: it takes {', '.join(allowed)}")
        if older_than is not None and state in _BY_PRIORITY:
            raise InvalidQuery(f"{state} jobs stand in order of priority, not of age: leave the age out")
        highest = ""
        if state not in _BY_PRIORITY and (state is not State.DELAYED or older_than is not None):
            # Jobs that finish from now on are left alone. An estimate of the time may be early, and leaves out what
            # has just finished.
            highest = str(await self._store.server_ms() - to_ms(older_than or 0))
        moved = 0
        cursor: tuple[str, bytes] = ("", b"")
        while limit is None or moved < limit:
            size = CHUNK if limit is None else min(CHUNK, limit - moved)
            scan = SCAN if group else size
            reply: list[Any] = await self._store.do(
                self._store.page(
                    state, reverse=False, limit=scan, scan=scan, prefix=b"", highest=highest, cursor=cursor
                )
            )
            ids: list[bytes] = reply[0]
            if not ids:
                break
            chosen = ids if group is None else await self._store.of_group(ids, group)
            if limit is not None:
                chosen = chosen[: limit - moved]
            made = await calls(chosen) if chosen else []
            answers = await self._store.do_all(made) if made else []
            done = sum(1 for states in answers for word in states if word and not word.startswith("key "))
            moved += done
            if progress:
                progress(moved)
            if done < len(ids) and (limit is None or moved < limit):
                # Jobs that could not be moved stay in front. Continue behind them.
                if not reply[2]:
                    break
                cursor = (reply[1].decode(), reply[2])
            # If all jobs were moved, the next page starts at the same cursor.
        return moved
