"""jobq: background jobs for Python services, over Redis or Valkey."""

from jobq.engine.context import Context, Depends, inject
from jobq.engine.handle import Job
from jobq.engine.job import Accepted, AttemptError, Backoff, JobRow, LogLine, NewJob, Options, Page, State, Stats, WorkerRow
from jobq.engine.queue import Queue
from jobq.engine.store import Connection
from jobq.engine.task import Task
from jobq.settings import Settings

