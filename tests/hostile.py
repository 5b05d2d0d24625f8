"""Exceptions that misbehave when they are formatted or compared. Each must still end its job's run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobq import Retry

if TYPE_CHECKING:
    from collections.abc import Callable


class StrRaises(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class StrGivesNone(Exception):
    def __str__(self) -> Any:
        return None  # noqa: PLE0307


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class StrInterrupts(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class StrCancels(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class StrRecurses(Exception):
    def __str__(self) -> str:
        return str(self)


class Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise ValueError("no length")

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise ValueError("no bytes")

    def __format__(self, _: str) -> str:
        raise ValueError("no format")


class StrGivesAnotherStr(Exception):
    def __str__(self) -> str:
        return Text("text")


class ReprRaises(Exception):
    def __repr__(self) -> str:
        raise ValueError("no repr")


class ClassRaises(Exception):
    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ValueError("no class")


class ClassLies(Exception):
    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Retry


class AttributesRaise(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


class CauseRaises(Exception):
    @property
    def __cause__(self) -> Any:  # pyright: ignore
        raise ValueError("no cause")


class ContextRaises(Exception):
    @property
    def __context__(self) -> Any:  # pyright: ignore
        raise ValueError("no context")


class TracebackRaises(Exception):
    @property
    def __traceback__(self) -> Any:  # pyright: ignore
        raise ValueError("no traceback")


class NotesRaise(Exception):
    @property
    def __notes__(self) -> Any:  # pyright: ignore
        raise ValueError("no notes")


class SyntaxWithoutMessage(SyntaxError):
    @property
    def msg(self) -> Any:  # pyright: ignore
        raise ValueError("no message")


class DelayRaises(Retry):
    @property
    def delay(self) -> Any:  # pyright: ignore
        raise ValueError("no delay")

    @delay.setter
    def delay(self, _: Any) -> None: ...


class Unordered:
    def total_seconds(self) -> float:
        raise ValueError("no time")

    def __mul__(self, _: Any) -> Any:
        raise ArithmeticError("no product")


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class NameRaises(Exception, metaclass=Nameless):
    pass


class GroupRaises(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise ValueError("no exceptions")


def _in_a_circle() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    return first


def _with(error: Exception, **attributes: Any) -> Exception:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def _nested(levels: int) -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(levels):
        members: list[Exception] = [error]
        error = ExceptionGroup("group", members)
    return error


def _chained(links: int) -> Exception:
    error: Exception = ValueError("first")
    for _ in range(links):
        later = ValueError("later")
        later.__cause__ = error
        error = later
    return error


def _syntax_error(*place: Any) -> SyntaxError:
    """A syntax error whose position has values of wrong types."""
    return SyntaxError("m", place)


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "a syntax error with texts for numbers": lambda: _syntax_error("f", "one", "two", "text"),
    "a syntax error whose file is a number": lambda: _syntax_error(7, 1, 1, "text"),
    "a syntax error beyond its line": lambda: SyntaxError("m", ("f", 1, 10**30, "text", -5, -(10**30))),
    "a syntax error whose message raises": lambda: SyntaxWithoutMessage("m", ("f", 1, 1, "text")),
    "str raises": StrRaises,
    "str gives None": StrGivesNone,
    "str exits": StrExits,
    "str interrupts": StrInterrupts,
    "str cancels": StrCancels,
    "str recurses": StrRecurses,
    "str gives another str": StrGivesAnotherStr,
    "repr raises": lambda: ReprRaises("x"),
    "an argument whose repr raises": lambda: KeyError(ReprRaises("x")),
    "__class__ raises": ClassRaises,
    "__class__ lies": ClassLies,
    "every attribute raises": AttributesRaise,
    "__cause__ raises": CauseRaises,
    "__context__ raises": ContextRaises,
    "__traceback__ raises": TracebackRaises,
    "__notes__ raises": NotesRaise,
    "__notes__ is a number": lambda: _with(ValueError("x"), __notes__=7),
    "__notes__ holds what has no str": lambda: _with(ValueError("x"), __notes__=[StrRaises(), 7, None]),
    "a name that raises": NameRaises,
    "a module that is a number": lambda: type("Odd", (Exception,), {"__module__": 7})("x"),
    "a module that is another str": lambda: type("Odd", (Exception,), {"__module__": Text("m")})("x"),
    "a name of a megabyte": lambda: type("N" * 1_000_000, (Exception,), {})("x"),
    "a message without UTF-8": lambda: ValueError("\ud800"),
    "a message of ten megabytes": lambda: ValueError("x" * 10_000_000),
    "a message of line breaks": lambda: ValueError("\n" * 100_000),
    "bytes for a message": lambda: ValueError(b"\xff\x00"),
    "a circle of causes": _in_a_circle,
    "a chain of 10,000 causes": lambda: _chained(10_000),
    "groups in groups": lambda: _nested(2_000),
    "a group whose exceptions raise": lambda: GroupRaises("g", [ValueError("x")]),
    "a retry whose delay raises": DelayRaises,
    "a retry whose delay is not a time": lambda: Retry(delay=Unordered()),  # type: ignore[arg-type]
}
"""For each fault, a function that makes such an exception."""
