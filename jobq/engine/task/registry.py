"""The tasks, middleware and hooks of a queue."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

import msgspec

from jobq.engine.model.breaker import Breaker
from jobq.engine.model.declared import declared_costs, declared_rules, limits_given
from jobq.engine.model.groups import TEMPLATES, name_by
from jobq.engine.model.job import PLAIN, Options
from jobq.engine.model.limits import Rule, check_key_count
from jobq.engine.model.options import TaskGiven, check_type, merge
from jobq.engine.model.outcome import type_name
from jobq.engine.model.policy import retry_policy
from jobq.engine.model.unique import bind
from jobq.engine.schedule.definition import RULE, ScheduleGiven, check_schedule_name, define, of_version
from jobq.engine.task.events import Hook, add_hook
from jobq.engine.task.inject import behind, name_of, parameters_of
from jobq.engine.task.signature import Signature
from jobq.engine.task.task import Owner, Task
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from jobq.engine.model.options import Given
    from jobq.engine.schedule.definition import Definition
    from jobq.engine.task.events import EventName, Hooks
    from jobq.engine.task.tracer import Tracer
    from jobq.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Hook)
T = TypeVar("T", bound="Task[..., Any]")


class Registry:
    """The part of a queue with which handlers are registered."""

    name: str
    settings: Settings
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    default_options: Options = PLAIN
    """The options of jobs for which neither their call nor their task says anything."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task[Any, Any]] = {}
        """By the names of their types. A task with aliases is in it under each of them."""
        self.revised = False
        """Whether a task has aliases, or a version of its payload beyond the first."""
        self.rules: dict[str, Rule] = {}
        """The rules of limits that tasks and the queue declare."""
        self.name_functions: dict[str, dict[str, Callable[..., Any]]] = {}
        """The functions that give the group of a job, or what decides its partition, by type and option. They take the
        arguments of the job."""
        self.declared_schedules: dict[str, Definition] = {}
        """The schedules of tasks, which a worker or server of this queue writes when it starts."""
        self.declared_breakers: dict[str, Breaker] = {}
        """The circuit breakers that tasks declare, by their types."""
        self.tracer: Tracer | None = None
        """Makes spans of the enqueues. See jobq/otel.py."""
        self.middlewares: list[Any] = []
        self.hooks: Hooks = {}
        self.startup_hooks: list[Callable[[], Any]] = []
        self.shutdown_hooks: list[Callable[[], Any]] = []

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        isolate: Literal["process"] | None = None,
        **given: Unpack[TaskGiven],
    ) -> _Decorator: ...
    def task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        isolate: Literal["process"] | None = None,
        **given: Unpack[TaskGiven],
    ) -> Any:
        """Register a function as the handler of a type. The type's name is the function's, unless ``name`` is given.

        ``aliases``: earlier names of the type, whose jobs this handler runs too.
        ``fn`` may be any callable; a partial or an object with ``__call__`` needs a ``name``.

        :raises InvalidJob: an option is out of its range, or the type has a handler already.
        :raises TypeError: the signature cannot describe a payload, or ``fn`` cannot be a handler.
        """

        def register(fn: Callable[..., Any]) -> Task[..., Any]:
            if not callable(fn):
                raise TypeError(f"a handler is a function, not {fn!r:.80}; give the name of the type as name=")
            plain: Any = fn.fn if isinstance(fn, Task) else fn
            type_ = name or getattr(plain, "__name__", None)
            if type_ is None:
                raise TypeError(f"{plain!r:.80} has no name: give the name of the type as name=")
            options: dict[str, Any] = dict(given)
            policy = retry_policy(options, type_name)
            breaker = options.pop("breaker", None)
            if breaker is not None and not isinstance(breaker, Breaker):
                raise InvalidJob(f"breaker is {breaker!r:.80}: it takes Breaker(rate=..., runs=..., open_for=...)")
            limits = limits_given(options.pop("limits", None))
            names = {option: options.pop(option, None) for option in TEMPLATES}
            defaults = merge(self.default_options, cast("Given", options))
            if limits:
                arguments = Signature(plain).defaults
                rules, keys, by = declared_rules(limits, type_, arguments)
                check_key_count(len(keys) + len(by), self.settings.max_limit_keys)
                costs, costs_by = declared_costs(limits, type_, arguments)
                self.declare(rules)
                defaults = msgspec.structs.replace(defaults, limits=keys, limits_by=by)
                if costs or costs_by:
                    costs |= defaults.costs
                    costs_by = tuple(one for one in costs_by if one.unit not in defaults.costs)
                    defaults = msgspec.structs.replace(defaults, costs=costs, costs_by=costs_by)
            for option, named_by in names.items():
                if isinstance(named_by, str):
                    by = name_by(option, named_by, type_, Signature(plain).defaults)
                    change: dict[str, Any] = {option if isinstance(by, str) else TEMPLATES[option]: by}
                    defaults = msgspec.structs.replace(defaults, **change)
                elif named_by is not None and not callable(named_by):
                    raise InvalidJob(
                        f"{option} is {named_by!r:.80}: it takes a text, a template such as '{{tenant}}' or a function"
                    )
            if breaker is not None:
                defaults = msgspec.structs.replace(defaults, breaker=True)
            if defaults.unique is not None:
                defaults = bind(defaults, type_, Signature(plain).defaults)
            task: Task[..., Any] = Task(cast("Owner", self), plain, type_, defaults, isolate, policy, _names(aliases))
            known = (task.name, *task.aliases)
            for at, named in enumerate(known):
                if named in known[:at]:
                    raise InvalidJob(f"task {task.name!r} has the name {named!r} twice: remove it from aliases=")
                if named in self.tasks:
                    raise InvalidJob(
                        f"queue {self.name!r} has a handler for {named!r} already:"
                        f" {'remove it from aliases=' if at else 'give one of them a name='}"
                    )
            self.tasks |= dict.fromkeys(known, task)
            if task.aliases or task.versions.current > 1:
                self.revised = True
            if functions := {option: value for option, value in names.items() if callable(value)}:
                self.name_functions[task.name] = functions
            if breaker is not None:
                self.declared_breakers[task.name] = breaker
            return task

        return register if fn is None else register(fn)

    def schedule(
        self,
        expression: str | Sequence[str] | None = None,
        /,
        *,
        name: str | None = None,
        payload: Any = None,
        **given: Unpack[ScheduleGiven],
    ) -> Callable[[T], T]:
        """Enqueue a job of a task at certain times. It goes above ``@queue.task``, and a task may have several.

        ``expression`` (cron, 5 fields or 6 with seconds first; one or several), ``every=`` or ``at=`` say when; see
        ``ScheduleGiven``. ``name``: by default that of the task. ``payload``: the arguments of the handler. Everything
        else is an option of the jobs.

        :raises InvalidJob: an expression, the zone, the payload or an option cannot be used, or the name is taken.
        :raises TypeError: it is not above ``@queue.task``.
        """
        if expression is not None:
            given["cron"] = expression

        def register(task: T) -> T:
            if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance] - users without type checks
                raise TypeError(f"@queue.schedule is for tasks: put it above @queue.task, not on {task!r:.80}")
            chosen = check_schedule_name(name or task.name)
            if chosen in self.declared_schedules:
                raise InvalidJob(f"there is a schedule {chosen!r} already: give one of them another name=")
            definition = of_version(define(task.name, payload, dict(given)), task.versions.current)
            if definition.options.version == task.versions.current:
                task.check(definition.payload)
            if definition.overlap == "queue_one":
                self.declare({RULE: Rule(1)})
            self.declared_schedules[chosen] = definition
            return task

        return register

    def declare(self, rules: Mapping[str, Rule]) -> None:
        """Keep rules of limits, which a worker or server of this queue writes when it starts.

        :raises InvalidJob: a task declared one of them with other numbers.
        """
        for name, rule in rules.items():
            if self.rules.get(name, rule) != rule:
                raise InvalidJob(
                    f"rule {name!r} is declared twice, as {self.rules[name].text()} and as {rule.text()}: give one of"
                    " them another name=, or list the key of the rule as a text"
                )
            self.rules[name] = rule

    def middleware(self, fn: Any) -> Any:
        """Call ``async def fn(context, call_next)`` around every run. The first one registered is the outermost. The
        dependencies of the run are opened and closed inside of it.

        ``call_next()`` returns the handler's result or raises its error. That is the error of the child process for
        ``isolate="process"``, ``Timeout`` if the run took too long, and ``InvalidPayload`` if no worker can read the
        payload. A handler that was killed, lost its lease or is stopped with the worker ends in ``CancelledError``, and
        ``context.stopped`` says why. Middleware does not see what happens outside of a run, such as the death of a
        worker or the kill of a waiting job. The job's errors show it, and a worker that recovers a job logs it.

        :raises TypeError: ``fn`` is not ``async``, or does not take these two arguments.
        """
        if not inspect.iscoroutinefunction(inspect.unwrap(behind(fn))):
            raise TypeError(f"middleware {name_of(fn)} is not async: write async def {name_of(fn)}(context, call_next)")
        try:
            parameters_of(fn).bind(None, None)
        except TypeError:
            raise TypeError(f"middleware {name_of(fn)} does not take (context, call_next)") from None
        self.middlewares.append(fn)
        return fn

    def on(self, event: EventName) -> Callable[[H], H]:
        """Call ``async def hook(event)`` for the jobs of this queue: ``@queue.on("final_failure")``.

        - "enqueue": Redis has the job. Called in the process that enqueued it, and not for a duplicate.
        - "start": a run begins.
        - "success", "failure": a run returned or failed, and Redis has stored it.
        - "retry", "final_failure": after a "failure", whether another attempt follows or the job has ended in failed.

        :raises TypeError: there is no such event, or the hook is not ``async`` or does not take one argument.
        """

        if callable(event):
            raise TypeError('@queue.on needs the event: write @queue.on("final_failure") above the hook')

        def register(hook: H) -> H:
            add_hook(self.hooks, event, None, hook)
            return hook

        return register

    def on_startup(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        """Call ``fn`` (plain or async) when a worker starts, before its first claim.

        :raises TypeError: the hook cannot be called without arguments.
        """
        check_hook("startup", fn)
        self.startup_hooks.append(fn)
        return fn

    def on_shutdown(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        """Call ``fn`` (plain or async) when a worker has stopped, after its last run.

        :raises TypeError: the hook cannot be called without arguments.
        """
        check_hook("shutdown", fn)
        self.shutdown_hooks.append(fn)
        return fn


def _names(aliases: Any) -> tuple[str, ...]:
    """The earlier names of a type.

    :raises TypeError: it is one text, whose letters would count as names, or holds something else.
    """
    if isinstance(aliases, str) or not all(isinstance(one, str) for one in aliases):
        raise TypeError(f"aliases is {aliases!r:.80}: it takes a list of names, such as ['old.name']")
    for name in aliases:
        check_type(name)
    return tuple(aliases)


def check_hook(when: str, fn: Any) -> None:
    """Check a hook where it is registered, instead of when a worker starts or stops.

    :raises TypeError: the hook cannot be called without arguments.
    """
    if not callable(fn):
        raise TypeError(f"a {when} hook is a function, not {fn!r:.80}")
    function = behind(fn)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{when} hook {name_of(fn)} is a generator, which would never run: write two hooks")
    try:
        inspect.signature(fn).bind()
    except TypeError as error:
        raise TypeError(f"{when} hook {name_of(fn)} is called without arguments, but has parameters: {error}") from None
    except ValueError:  # A function of C does not tell its parameters.
        return


class _Decorator(Protocol):
    """Types of ``@queue.task(...)``."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
