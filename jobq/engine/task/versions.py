"""Versions of a task's payload, and the functions that convert older ones.

A job carries the version of its payload. A worker converts an older one step by step before it calls the handler, so a
signature can change while jobs wait. No worker converts to an older version: it hands back what it does not know yet.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from jobq.engine.model.encoding import encode
from jobq.engine.task.inject import behind, name_of, parameters_of
from jobq.redact import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable

    Upcast = Callable[[dict[str, Any]], Any]

REASON_MAX: Final = 300
"""Characters of the error of a function that converts payloads."""


class Inconvertible(Exception):
    """A payload cannot be converted to the version of this program. ``newer``: its version is newer than that."""

    def __init__(self, message: str, *, newer: bool = False) -> None:
        self.newer = newer
        super().__init__(message)


class Versions:
    """The versions of one task's payload. ``current``: the one that its handler takes."""

    __slots__ = ("_steps", "_task", "current")

    def __init__(self, task: str, current: int) -> None:
        self._task = task
        self.current = current
        self._steps: dict[int, Upcast] = {}
        """The functions by the version that they take. Each returns the next version."""

    def add(self, version: int, fn: Upcast) -> None:
        """Register a function that converts ``version`` to the next one.

        :raises TypeError: it is not a plain function of one argument, or there is one for this version already, or the
            task has no later version.
        """
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < self.current:  # pyright: ignore[reportUnnecessaryIsInstance] - users without type checks
            raise TypeError(
                f"upcast({version!r:.80}) of task {self._task!r}: it takes the version of payloads that it converts,"
                f" and the task has version {self.current}: write @queue.task(version=...) with a later one"
            )
        if version in self._steps:
            raise TypeError(f"task {self._task!r} has two upcasts from version {version}: remove one of them")
        if inspect.iscoroutinefunction(inspect.unwrap(behind(fn))):
            raise TypeError(f"upcast {name_of(fn)} is async: it converts a dict and waits for nothing, so write def")
        try:
            parameters_of(fn).bind({})
        except TypeError:
            raise TypeError(f"upcast {name_of(fn)} does not take one argument, the older payload as a dict") from None
        self._steps[version] = fn

    def convert(self, payload: bytes | msgspec.Raw, version: int) -> msgspec.Raw:
        """The payload in the current version.

        :raises Inconvertible: it is newer, a step is missing, or a step refuses it.
        """
        if version > self.current:
            raise Inconvertible(
                f"its payload has version {version}, and {self._task} has version {self.current} here", newer=True
            )
        try:
            value: Any = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Inconvertible(f"the payload is not JSON: {excerpt(str(error), REASON_MAX)}") from None
        for step in range(version, self.current):
            value = self._step(step, {} if value is None else value)
        try:
            return msgspec.Raw(encode(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise Inconvertible(
                f"the upcasts of {self._task} made a payload that is not JSON: {excerpt(str(error), REASON_MAX)}"
            ) from None

    def _step(self, version: int, value: Any) -> dict[str, Any]:
        fn = self._steps.get(version)
        if fn is None:
            raise Inconvertible(
                f"its payload has version {version}, and {self._task} has no @{self._task}.upcast({version}) here"
            )
        if not isinstance(value, dict):
            raise Inconvertible(f"its payload has version {version} and is not an object")
        try:
            converted: Any = fn(cast("dict[str, Any]", value))
        except (Exception, SystemExit) as error:  # a SystemExit would end the server that enqueues
            raise Inconvertible(
                f"upcast({version}) of {self._task} raised {type(error).__name__}: {excerpt(str(error), REASON_MAX)}"
            ) from error
        if not isinstance(converted, dict):
            raise Inconvertible(
                f"upcast({version}) of {self._task} returned {type(converted).__name__} and not the new payload, a dict"
            )
        return cast("dict[str, Any]", converted)
