"""The field ``unique`` of an enqueue. Times are ms."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from jobq.engine.model.job import DELAY_MAX_MS, Conflict, StoredUnique, UniqueBy, While
from jobq.engine.model.unique import BY_MAX

Key = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        description="While a job with this key is unfinished, or for key_ttl ms, the answer is that job.",
        extra_json_schema={"pattern": "^[^\\x00-\\x1f\\x7f]*$"},
    ),
]
_While = Annotated[While, Meta(description="The states in which a job holds its key.")]
_For = Annotated[
    int,
    Meta(
        ge=1,
        le=DELAY_MAX_MS,
        description="ms from the enqueue for which the key is held; with while: unfinished, from the end of the job.",
    ),
]
_Conflict = Annotated[Conflict, Meta(description="What happens if the key is held.")]
_PutOff = Annotated[int, Meta(ge=1, le=DELAY_MAX_MS, description="ms by which each enqueue puts off the waiting job.")]
_MaxWait = Annotated[
    int, Meta(ge=1, le=DELAY_MAX_MS, description="ms from the first enqueue, when the job is due at the latest.")
]


_Field = Annotated[str, Meta(min_length=1, max_length=256)]
_By = Annotated[tuple[_Field, ...], Meta(max_length=BY_MAX, description="The fields of the payload that make the key.")]


class Unique(msgspec.Struct, forbid_unknown_fields=True, rename={"while_": "while", "for_": "for"}):
    """How long a job holds the key, and what happens to another job with it. ``key`` and ``key_ttl`` are its short
    forms. ``by``: the fields of the payload that make the key, in place of ``key``. Without both, the key is that
    of the type: made as its task says, or one for all of its jobs."""

    key: Key | None = None
    while_: _While | None = None
    for_: _For | None = None
    on: _Conflict = "return"
    delay: _PutOff | None = None
    max_wait: _MaxWait | None = None
    by: _By = ()

    def stored(self) -> StoredUnique:
        """The same as jobs have it."""
        by = tuple(UniqueBy(name) for name in self.by)
        return StoredUnique(self.key, self.while_, self.for_, self.on, self.delay, self.max_wait, by)
