"""The routes of flow control: limits, groups, schedules and circuit breakers."""

from __future__ import annotations

from typing import Final

from jobq.engine.model.breaker import BreakerRow
from jobq.engine.model.groups import GroupRow
from jobq.engine.model.limits import LimitRow
from jobq.engine.schedule.views import Preview, ScheduleRow
from jobq.http import breakers, groups, limits, schedules
from jobq.http import problems as p
from jobq.http.auth import Scope
from jobq.http.route import Route

_RULE: Final = "/limits/{rule}"
_SCHEDULE: Final = "/schedules/{name}"
_SCHEDULES: Final = (p.SCHEDULE_NOT_FOUND,)

FLOW_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET", path="/limits", scope=Scope.READ, handler=limits.limits,
        summary="The rules of limits",
        description="With the number of jobs that each rule holds and counts now, and who gave it: code or operator.",
        responses={200: limits.Limits},
    ),
    Route(
        method="GET", path=_RULE, scope=Scope.READ, handler=limits.show_limit,
        summary="A rule of limits", responses={200: LimitRow}, errors=(p.RULE_NOT_FOUND,),
    ),
    Route(
        method="PUT", path=_RULE, scope=Scope.ADMIN, handler=limits.set_limit,
        summary="Set a rule of limits", request=limits.SetLimit, query=limits.SetLimitQuery,
        description="It replaces what code declares, acts at once, also on jobs that wait, and survives deploys."
        " Running jobs are not stopped. With `dry_run=1` nothing changes, and `would_hold` says how many jobs the rule"
        " would hold now.",
        responses={200: limits.LimitSet}, invalid=p.INVALID_LIMIT,
    ),
    Route(
        method="DELETE", path=_RULE, scope=Scope.ADMIN, handler=limits.reset_limit,
        summary="Return to the rule that code declares", query=limits.ResetLimitQuery,
        description="With `declared=1` what code declared is removed too, for rules that no code declares any more.",
        responses={200: limits.LimitReset}, errors=(p.RULE_NOT_FOUND,),
    ),
    Route(
        method="GET", path=f"{_RULE}/keys", scope=Scope.READ, handler=limits.limit_keys,
        summary="The keys of a rule", query=limits.LimitKeysQuery,
        description="Keys that hold or count jobs now, by default those with most held jobs first; of 1,000 keys.",
        responses={200: limits.LimitKeys}, errors=(p.RULE_NOT_FOUND,),
    ),
    Route(
        method="POST", path="/limits/{key}/close", scope=Scope.ADMIN, handler=limits.close_limit,
        summary="Close a limit key for a time", request=limits.CloseLimit,
        description="None of its jobs starts before the time is over; running jobs go on. The key `queue` stands for"
        " the whole queue.",
        responses={200: limits.LimitClosed}, errors=(p.RULE_NOT_FOUND,), invalid=p.INVALID_LIMIT,
    ),
    Route(
        method="POST", path="/limits/{key}/open", scope=Scope.ADMIN, handler=limits.open_limit,
        summary="Open a closed limit key",
        responses={200: limits.LimitClosed}, errors=(p.RULE_NOT_FOUND,), invalid=p.INVALID_LIMIT,
    ),
    Route(
        method="GET", path="/groups", scope=Scope.READ, handler=groups.groups,
        summary="The groups of the queue", query=groups.GroupsQuery,
        description="Groups that have jobs or settings, by default those with most held jobs first.",
        responses={200: groups.Groups},
    ),
    Route(
        method="GET", path="/groups/{group}", scope=Scope.READ, handler=groups.show_group,
        summary="A group", responses={200: GroupRow}, invalid=p.INVALID_GROUP,
        description="A group without jobs and settings is shown with its defaults.",
    ),
    Route(
        method="PUT", path="/groups/{group}", scope=Scope.ADMIN, handler=groups.set_group,
        summary="Set the weight and the bound of a group, pause or resume it", request=groups.SetGroup,
        description="It replaces all settings of the group and acts at once, also on jobs that wait."
        " Running jobs are not stopped.",
        responses={200: groups.GroupSet}, invalid=p.INVALID_GROUP,
    ),
    Route(
        method="PATCH", path="/groups/{group}", scope=Scope.ADMIN, handler=groups.change_group,
        summary="Change some settings of a group", request=groups.ChangeGroup,
        description="What the body does not name stays as it is.",
        responses={200: groups.GroupSet}, invalid=p.INVALID_GROUP,
    ),
    Route(
        method="DELETE", path="/groups/{group}", scope=Scope.ADMIN, handler=groups.reset_group,
        summary="Remove the settings of a group", responses={204: None}, invalid=p.INVALID_GROUP,
    ),
    Route(
        method="GET", path="/schedules", scope=Scope.READ, handler=schedules.schedules,
        summary="The schedules, each with its next slot", query=schedules.SchedulesQuery,
        responses={200: schedules.Schedules},
    ),
    Route(
        method="POST", path="/schedules/preview", scope=Scope.READ, handler=schedules.preview_schedule,
        summary="When the slots of a schedule would be", request=schedules.PreviewSchedule,
        description="`times` have the offset of the time zone, and `words` say the expression in English.",
        responses={200: Preview}, invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="POST", path="/schedules/prune", scope=Scope.ADMIN, handler=schedules.prune_schedules,
        summary="Remove the orphans",
        description="These are schedules that code declared, and that no program's code declares any more.",
        responses={200: schedules.SchedulesPruned},
    ),
    Route(
        method="GET", path=_SCHEDULE, scope=Scope.READ, handler=schedules.show_schedule,
        summary="A schedule", description="With its next five slots, and the last five with their outcome.",
        responses={200: ScheduleRow}, errors=_SCHEDULES, invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="PUT", path=_SCHEDULE, scope=Scope.ADMIN, handler=schedules.put_schedule,
        summary="Write a schedule", request=schedules.PutSchedule,
        description="It replaces what code declares, and survives deploys. A paused schedule stays paused.",
        responses={200: ScheduleRow}, errors=(p.UNKNOWN_RULE, p.UNKNOWN_TYPE), invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="DELETE", path=_SCHEDULE, scope=Scope.ADMIN, handler=schedules.delete_schedule,
        summary="Remove a schedule",
        description="If code declares it, it goes on as the code says. To stop it, pause it.",
        responses={200: schedules.ScheduleDeleted}, errors=_SCHEDULES, invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/pause", scope=Scope.ADMIN, handler=schedules.pause_schedule,
        summary="Pause a schedule", request=schedules.PauseSchedule,
        description="Deploys do not end a pause.",
        responses={200: schedules.SchedulePaused}, errors=_SCHEDULES, invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/resume", scope=Scope.ADMIN, handler=schedules.resume_schedule,
        summary="Resume a schedule", description="The slots of the pause are not made up: backfill does that.",
        responses={200: schedules.SchedulePaused}, errors=_SCHEDULES, invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/run", scope=Scope.ADMIN, handler=schedules.run_schedule,
        summary="Run a schedule now, besides its slots",
        responses={201: schedules.ScheduleJob}, errors=(*_SCHEDULES, p.FULL), invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/backfill", scope=Scope.ADMIN, handler=schedules.backfill_schedule,
        summary="Make up slots that got no job", request=schedules.Backfill,
        description="Of the slots between `from` and `until`, only those that did not run; 1,000 at most.",
        responses={200: schedules.ScheduleJobs}, errors=(*_SCHEDULES, p.FULL), invalid=p.INVALID_SCHEDULE,
    ),
    Route(
        method="GET", path="/breakers", scope=Scope.READ, handler=breakers.breakers,
        summary="The circuit breakers of the types", responses={200: breakers.Breakers},
        description="With their state (closed, open or half-open), the failures among the last runs, and the jobs that"
        " each one holds.",
    ),
    Route(
        method="POST", path="/breakers/{type}/trip", scope=Scope.ADMIN, handler=breakers.trip_breaker,
        summary="Open a circuit breaker", request=breakers.TripBreaker,
        description="No job of the type starts before the time is over. Then one job runs to find out.",
        responses={200: BreakerRow}, errors=(p.UNKNOWN_BREAKER,),
    ),
    Route(
        method="POST", path="/breakers/{type}/reset", scope=Scope.ADMIN, handler=breakers.reset_breaker,
        summary="Close a circuit breaker", responses={200: BreakerRow}, errors=(p.UNKNOWN_BREAKER,),
    ),
    Route(
        method="DELETE", path="/breakers/{type}", scope=Scope.ADMIN, handler=breakers.remove_breaker,
        summary="Remove a circuit breaker", responses={200: breakers.BreakerRemoved}, errors=(p.UNKNOWN_BREAKER,),
        description="For a type whose code declares none any more: its held jobs start. If workers or servers that run"
        " declare it, they write it again within 30 seconds, closed and without outcomes, and `returns` is true.",
    ),
)  # fmt: skip
