"""Reads the jobs of a queue and tells which of them the code of this program could not run: a check before a deploy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.pages import UNFINISHED, read_state
from jobq.engine.queue.producing import Producing
from jobq.engine.schedule.state import read_row
from jobq.engine.task.signature import misfit_of_type
from jobq.engine.task.versions import Inconvertible
from jobq.errors import InvalidQuery
from jobq.redact import misfit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.model.job import State
    from jobq.engine.model.views import JobRow

PAGE: Final = 500
SCHEDULES_PAGE: Final = 200
MISFITS_MAX: Final = 200
"""Different misfits in one report. Jobs may have any number of types. The others are counted together."""
OTHERS: Final = "*"
"""The type under which they are counted."""

Severity = Literal["error", "warning"]


class Misfit(msgspec.Struct, frozen=True):
    """Jobs or schedules that this program cannot run as they are, with the same type, version and reason.

    ``severity``: "error" if it would hand them back until ``unserved_for`` is over and they fail; "warning" if it runs
    them and ignores a field of the payload. ``example``: the id of the first such job, or the name of the schedule.
    """

    severity: Severity
    kind: Literal["job", "schedule"]
    type: str
    version: int
    reason: str
    count: int
    example: str


class CheckReport(msgspec.Struct, frozen=True):
    """The answer of ``queue.check_jobs()``. ``complete``: everything was read; otherwise ``limit`` ended it."""

    queue: str
    jobs: int
    schedules: int
    complete: bool
    misfits: list[Misfit]

    @property
    def fits(self) -> bool:
        """Whether this program can run everything that was read."""
        return all(one.severity != "error" for one in self.misfits)


class CheckVerbs(Producing):
    """The check of a queue against the code of this program."""

    async def check_jobs(self, states: Sequence[State | str] = UNFINISHED, *, limit: int | None = None) -> CheckReport:
        """Read the jobs of some states, by default all that have not ended, and the schedules. Find those that the code
        of this program cannot run. Nothing is changed.

        ``limit``: the most jobs that are read.

        :raises InvalidQuery: the queue has no tasks here, or there is no such state.
        """
        if not self.tasks:
            raise InvalidQuery(
                f"queue {self.name!r} has no tasks in this program: name the target of the code, package.module:queue"
            )
        found = _Found()
        jobs = 0
        complete = True
        for state in map(read_state, states):
            cursor: str | None = ""  # the first page
            while cursor is not None:
                most = PAGE if limit is None else min(PAGE, limit - jobs)
                if most < 1:
                    complete &= not (await self.page(state, limit=1, cursor=cursor)).jobs
                    break
                page = await self.page(state, limit=most, cursor=cursor)
                for row in page.jobs:
                    found.add("job", row.type, row.version, row.id, *self._judge_row(row))
                jobs += len(page.jobs)
                cursor = page.cursor
        schedules = await self._check_schedules(found)
        return CheckReport(self.name, jobs, schedules, complete, found.misfits())

    async def _check_schedules(self, found: _Found) -> int:
        names = await self.store.schedule_names()
        for at in range(0, len(names), SCHEDULES_PAGE):
            page = names[at : at + SCHEDULES_PAGE]
            for raw, (row, failed, _) in zip(page, await self.store.schedule_rows(page), strict=True):
                if row is None:
                    continue  # It was deleted meanwhile.
                name = as_text(raw)
                try:
                    definition = read_row(name, row, failed).definition
                except (msgspec.DecodeError, UnicodeDecodeError):
                    found.add("schedule", "?", 0, name, "error", "this version of jobq cannot read the schedule's row")
                    continue
                type_, version = definition.type, definition.options.version
                found.add("schedule", type_, version, name, *self._judge(type_, version, definition.payload))
        return len(names)

    def _judge_row(self, row: JobRow) -> tuple[Severity | None, str]:
        if "spec" in row.unreadable:
            return "error", "this version of jobq cannot read the job's row"
        return self._judge(row.type, row.version, row.payload)

    def _judge(self, type_: str, version: int, payload: msgspec.Raw) -> tuple[Severity | None, str]:
        """Whether a worker with this code could run the job, and why not."""
        task = self.tasks.get(type_)
        if task is None:
            return "error", "there is no handler for this type"
        try:
            if version != task.versions.current:
                payload = task.versions.convert(payload, version)
            task.signature.read(payload)
        except Inconvertible as error:
            return "error", str(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return "error", f"the payload does not fit the handler: {misfit(error)}"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of an argument's type may raise anything
            return "error", f"the payload does not fit the handler: {misfit_of_type(error)}"
        try:
            task.signature.decode(payload)
        except msgspec.ValidationError as error:
            return "warning", f"a field of the payload is ignored: {misfit(error)}"
        return None, ""


class _Found:
    """Counts misfits that are the same."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Severity, Literal["job", "schedule"], str, int, str], tuple[int, str]] = {}

    def add(
        self,
        kind: Literal["job", "schedule"],
        type_: str,
        version: int,
        name: str,
        severity: Severity | None,
        reason: str,
    ) -> None:
        """Count a job or a schedule, if something is wrong with it."""
        if severity is None:
            return
        same = (severity, kind, type_, version, reason)
        if same not in self._counts and len(self._counts) >= MISFITS_MAX:
            same = (severity, kind, OTHERS, 0, "other misfits, which do not fit in this report")
        count, example = self._counts.get(same, (0, name))
        self._counts[same] = (count + 1, example)

    def misfits(self) -> list[Misfit]:
        """Errors first, then the most frequent."""
        found = [Misfit(*same, count, example) for same, (count, example) in self._counts.items()]
        return sorted(found, key=lambda one: (one.severity != "error", -one.count))
