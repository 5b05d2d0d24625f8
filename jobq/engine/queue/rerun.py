"""Running a job again as a new job, with another payload or other options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Unpack

import msgspec

from jobq.engine.model.encoding import encode
from jobq.engine.model.job import NewJob, Options, StoredUnique
from jobq.engine.model.options import Given, check, merge
from jobq.engine.model.rows import job_row
from jobq.engine.queue.producing import Producing
from jobq.errors import InvalidJob, JobNotFound

if TYPE_CHECKING:
    from jobq.engine.model.job import Durability
    from jobq.engine.task.handle import Job

KEEP: Final[Any] = object()
"""The payload of a rerun that has that of the earlier job."""
_LIMITS: Final = 10
"""The place of the limit keys in a reply of rows.lua."""


class RerunVerbs(Producing):
    """Reruns."""

    async def rerun(
        self,
        job_id: str,
        payload: Any = KEEP,
        *,
        id: str | None = None,
        durability: Durability | None = None,
        **given: Unpack[Given],
    ) -> Job[Any]:
        """Enqueue a job, in any state, again as a new job. ``payload``: another one than that of the earlier job.

        Its options are those of the earlier job, without the times (delay, run_at, expires, deadline), and with the
        ``version`` of its payload. ``given`` replaces them. The new job has ``rerun_of``, and the earlier one lists it
        among its ``reruns``.

        :raises JobNotFound: there is no such job.
        :raises KeyTaken: another job holds its key now.
        :raises InvalidJob: an option or the payload does not fit, or the row of the earlier job cannot be read.
        """
        new = await self.again(job_id)
        if "key" in given and given["key"] is None:
            given.setdefault("unique", None)  # which has the key of the earlier job
        options = merge(new.options, given)
        data = new.payload
        if payload is not KEEP:
            try:
                data = msgspec.Raw(encode({} if payload is None else payload))
            except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
                raise InvalidJob(f"payload of {new.type[:80]!r}: {error}") from None
        return await self.send(
            msgspec.structs.replace(new, options=options, payload=data, id=id), durability=durability
        )

    async def again(self, job_id: str) -> NewJob:
        """A new job with the payload and the options of an earlier one, without its times.

        :raises JobNotFound: there is no such job.
        :raises InvalidJob: its row cannot be read.
        """
        row = (await self.store.do(self.store.rows([job_id])))[0]
        if not row:
            raise JobNotFound(job_id)
        old = job_row(self.name, job_id, row)
        if "spec" in old.unreadable:
            raise InvalidJob(f"the row of job {job_id} cannot be read, so it cannot be run again")
        options = Options(
            priority=old.priority,
            attempts=old.attempts,
            backoff=old.backoff,
            timeout=old.timeout,
            lifo=old.lifo,
            retention=old.retention,
            metadata=old.metadata,
            limits=tuple(old.limits),
            group=old.group,
            slots=old.slots,
            costs=old.costs,
            breaker=f"!{old.type}".encode() in (row[_LIMITS] or b"").split(b"\n"),
            # The first job with the key may be unfinished, or a later one has it.
            version=old.version,
            partition_by=old.partition_by,
            unique=None if old.key is None else StoredUnique(key=old.key, while_="unfinished", on="fail"),
        )
        check(options)
        return NewJob(old.type, old.payload, options, rerun_of=job_id)
