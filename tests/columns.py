"""A queue's whole state, read and written directly. The tests of the scripts compare it.

A state maps columns to contents: sorted sets as {member: score}, hashes as {field: value}, the events as a list of
(name, ids). A column without contents does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.store.keys import COLUMNS

if TYPE_CHECKING:
    from jobq.engine.store import Store

State = dict[str, Any]

KINDS = {column: text.split(":")[0].split(",")[0] for column, text in COLUMNS.items()}
"""The kind of each column: zset, hash, stream or channel, as in keys.py."""
_STORED = [column for column, kind in KINDS.items() if kind != "channel"]
_READ = {
    "zset": lambda key: (b"ZRANGE", key, 0, -1, b"WITHSCORES"),
    "hash": lambda key: (b"HGETALL", key),
    "stream": lambda key: (b"XREVRANGE", key, b"+", b"-"),
}


def text(value: bytes) -> str:
    """Any bytes as text, without loss."""
    return value.decode("utf-8", "surrogateescape")


def raw(value: Any) -> bytes:
    """The bytes that ``text`` converted. Numbers are written as Redis writes them."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _number(score: bytes) -> int | float:
    value = float(score)
    return int(value) if value.is_integer() else value


def _content(kind: str, reply: list[Any]) -> Any:
    if kind == "zset":
        return {text(member): _number(score) for member, score in zip(reply[::2], reply[1::2], strict=True)}
    if kind == "hash":
        return {text(field): text(value) for field, value in zip(reply[::2], reply[1::2], strict=True)}
    return [tuple(text(word) for word in fields) for _, fields in reversed(reply)]


async def dump(store: Store, *, foreign: bool = True) -> State:
    """The whole state in Redis. ``foreign``: also list keys that are not columns of the queue."""
    commands = [_READ[KINDS[column]](store.keys[column]) for column in _STORED]
    if foreign:
        commands.append((b"KEYS", b"*"))
    replies = await store.commands(*commands)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    state = {column: _content(KINDS[column], reply) for column, reply in zip(_STORED, replies, strict=False) if reply}
    if foreign:
        strangers = sorted(text(key) for key in set(replies[-1]) - set(store.keys.values()))
        if strangers:
            state["not a column"] = strangers
    return state


async def seed(store: Store, state: State) -> None:
    """Write a state into an empty queue."""
    commands: list[Any] = []
    for column, content in state.items():
        key = store.keys[column]
        if KINDS[column] == "zset":
            commands += [(b"ZADD", key, score, raw(member)) for member, score in content.items()]
        elif KINDS[column] == "hash":
            commands += [(b"HSET", key, raw(field), raw(value)) for field, value in content.items()]
        else:
            commands += [(b"XADD", key, b"*", *fields) for fields in content]
    if commands:
        replies = await store.commands(*commands)
        assert not [reply for reply in replies if isinstance(reply, Exception)], replies


def also(*states: State) -> State:
    """States merged column by column."""
    out: State = {}
    for state in states:
        for column, content in state.items():
            out[column] = content if isinstance(content, list) else out.get(column, {}) | content
    return out
