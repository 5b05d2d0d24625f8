"""Checks that the tests find errors. It breaks the scripts on purpose, one at a time, and tests/lua or tests/model
must fail.

    python -m tests.mutations              all of them, which takes hours
    python -m tests.mutations claim renew  those of some scripts

There are two kinds: SABOTAGES, which are mistakes that people make, and every line that only writes, left out. Exits
with 1 if a break was not found.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "lua"
NONE_SELECTED = 5
"""Pytest's exit code if there was no test to run."""
REDS = ("FAILED ", "ERROR ")
WRITE = re.compile(r"\s*redis\.call\('(ZADD|ZREM|ZREMRANGEBY(?:RANK|LEX)|HSET|HDEL|HINCRBY|XADD|PUBLISH)'.*\)\s*$")


class Break(NamedTuple):
    """One mistake in one script: ``old``, which occurs once, becomes ``new``."""

    script: str
    what: str
    old: str
    new: str


FENCE = "if redis.call('HGET', leases, id) ~= token then return false end"
LATE = "if by and math.abs(tonumber(by)) <= now then"
SAID = "redis.call('HGET', leases, id) == ARGV[i + 1]"
LOGGED = "redis.call('HGET', leases, id) == token"
HELD = (
    "local rows = limits and redis.call('EXISTS', weights) == 1 and redis.call('HMGET', weights, unpack(held)) or nil\n"
    "    return { token, now, held, redis.call('HMGET', jobs, unpack(held)), charged(held), rows and '', rows }"
)
TICK = "min(virtual + START / max(1, busy), start + (charging and max(step, 1000) or step))"
LIFTED = "floor(virtual)) end\n    return"
SABOTAGES = [
    *[
        Break(name, "fence not checked", FENCE, "")
        for name in ("reschedule", "fail", "snooze", "throttle", "release", "defer")
    ],
    *[
        Break(name, "any lease will do", FENCE, "if redis.call('HEXISTS', leases, id) == 0 then return false end")
        for name in ("reschedule", "fail", "snooze", "throttle", "release", "defer")
    ],
    Break("progress", "fence not checked", SAID, "true"),
    Break("log", "fence not checked", LOGGED, "true"),
    Break("progress", "told although nobody asked", "and redis.call('HGET', meta, 'events') == 'all' then", "then"),
    Break("progress", "a long value is told", "#value <= 1024 and value or ''", "value"),
    Break("claim", "the start is not told", "if told then redis", "if false then redis"),
    Break("claim", "the start is told although nobody asked", "if told then redis", "if events then redis"),
    Break("claim", "the keys for events are not asked for", "(facts[3] or told)", "facts[3]"),
    Break("log", "lines that come again are stored again", "if received >= all then return nil end", ""),
    Break("log", "a newer line goes with those that come again", "_ = first + 1, received", "_ = first, received"),
    Break("enqueue", "a plain job is refused", "pcall('HINCRBY', meta, 'fifo', 1", "call('HINCRBY', meta, 'fifo', 1"),
    Break("enqueue", "plain jobs are refused", "fresh and redis.pcall", "fresh and redis.call"),
    *[
        Break(name, "a damaged count refuses all outcomes", "pcall('HINCRBY', metrics", "call('HINCRBY', metrics")
        for name in ("complete", "fail", "reschedule", "kill", "defer", "snooze", "throttle")
    ],
    *[
        Break(name, "a damaged sequence refuses all", "pcall('HINCRBY', meta, counter", "call('HINCRBY', meta, counter")
        for name in ("enqueue", "forward", "promote", "retry", "release")
    ],
    *[
        Break(name, "two runs get one token", "fence < 9007199254740992 and fence or now * 1000", "fence")
        for name in ("claim", "reap")
    ],
    Break("rebase", "it walks on from places of no priority", "format('(%.0f', 1024 * SPAN)", "'+inf'"),
    Break("log", "the lines of another run count", "fence == run and", "fence and"),
    Break("complete", "fence not checked", "held[k] == token", "true"),
    Break(
        "complete",
        "the next group's place",
        "    at = last + 1\nend\nlocal held",
        "    at = last + 2\nend\nlocal held",
    ),
    Break("complete", "any lease will do", "held[k] == token", "held[k]"),
    Break("drop", "nobody is asked to force it", "or ARGV[4] == '1'", "or true"),
    Break("drop", "force does not help", "or ARGV[4] == '1'", ""),
    Break("drop", "living workers do not count", "jobs + alive + planned", "jobs + planned"),
    Break("drop", "schedules do not count", "jobs + alive + planned", "jobs + alive"),
    Break("drop", "dead workers count", "now - tonumber(ARGV[3])", "0"),
    Break("drop", "the answers stay for ever", "redis.call('PEXPIRE', answers, 120000)", ""),
    Break("drop", "a refused drop lets the answers go", "if unused then\n", "if true then\n"),
    Break("pause", "the answers go with those of a dropped queue", "redis.call('PERSIST', answers)", ""),
    Break("drop", "finished jobs do not count", "completed, failed, blocked, held }", "blocked, held }"),
    Break("spread", "code changes what an operator set", "who == 'code' or ", ""),
    Break("spread", "keys move when there are fewer partitions", " or wanted < tonumber(homes)", ""),
    Break("spread", "keys of earlier jobs are not found", "facts[2] and 1 or 0", "0"),
    Break("spread", "homes change", " or homes ~= '0'", ""),
    Break("spread", "partitions with jobs are forgotten", "math.max(wanted, most)", "wanted"),
    Break("settings", "one that was changed meanwhile follows", "~= ARGV[2] then return 0", "== '' then return 0"),
    Break("setting", "a change is not counted", "counted()\nif field", "if field"),
    Break("close", "a change is not counted", "if how ~= 'until' then counted() end", ""),
    Break("close", "a handler makes a time shorter", "how == 'longer' and before >= till", "false"),
    Break("close", "operators cannot be told from handlers", "whole and 0 or -0.5", "0"),
    Break("pause", "a change is not counted", "if states[1] ~= '' then counted() end", ""),
    Break("resume", "a change is not counted", "if states[1] ~= '' then counted() end", ""),
    Break("breaker", "an older state replaces a newer one", "later < 0 or", "false or"),
    Break("breaker", "a declaration replaces a state", "string.sub(since, 1, 1) == '0'", "false"),
    Break("renew", "fence not checked", "held[i] == ARGV[2 * i + 2]", "true"),
    Break("renew", "XX omitted", "active, 'XX', unpack", "active, unpack"),
    Break("renew", "the lease runs from its end, not from now", "now + tonumber", "now + now + tonumber"),
    Break("claim", "the fence may stand still", "or 0) + 1, now", "or 0), now"),
    Break(
        "claim", "the fence follows the clock back",
        "math.max((tonumber(last) or 0) + 1, now * 1000)", "now * 1000",
    ),
    Break("claim", "16 digits concatenated", "string.format('%.0f', fence < 9", "'' .. (fence < 9"),
    Break("claim", "paused is not asked", "if facts[1] then return", "if false then return"),
    Break("claim", "want 0 takes all", "if want < 1 then", "if false then"),
    Break("claim", "a closed queue gives no reason", "return { 'closed', now", "return { '', now"),
    Break(
        "why", "held jobs of full lines go first",
        "if line and line ~= row then kept",
        "if false then kept",
    ),
    Break("why", "jobs of its own line twice", "if line ~= row then in_group", "if true then in_group"),
    Break("why", "the job itself is before it", "digits .. '\\0' .. id) or 0", "digits .. '\\0' .. id .. '~') or 0"),
    Break("why", "another group takes no turn before it", "in_line + (passed and 0 or 1)", "in_line"),
    Break("why", "lines of its own group take turns", "or '') == group then", "or '') == nil then"),
    Break("why", "what it does not look at counts for nothing", "floor(counted * all / looked_at)", "counted"),
    Break(
        "why", "its own line does not count",
        "math.max(in_line, held_before -", "math.max(0, held_before - in_line -",
    ),
    Break(
        "why", "a group takes more turns than it has jobs",
        "jobs_before + min(taken, jobs_there)",
        "jobs_before + taken",
    ),
    Break("why", "silent workers count", "'ZCOUNT', workers, alive, '+inf'", "'ZCOUNT', workers, 0, '+inf'"),
    Break(
        "why", "the rows of silent workers are read",
        "workers, '+inf', alive, 'BYSCORE'",
        "workers, '+inf', 0, 'BYSCORE'",
    ),
    Break("why", "large rows are read", "<= LARGE and", "<= 1e9 and"),
    Break(
        "why", "a delayed job is the first of its priority",
        "(tonumber(priority) + 1) * SPAN - 1",
        "tonumber(priority) * SPAN",
    ),
    Break("why", "its priority is not read", "match(redis.call('HGET', priorities, id) or '', '^%-?%d+') or 0", "0"),
    Break(
        "why", "the rule of code takes precedence",
        "set ~= '' and set or declared",
        "declared ~= '' and declared or set",
    ),
    Break("why", "each slot of a job is a job of its own", "if not seen[one] then ids", "if one then ids"),
    Break(
        "why", "delayed for any reason is parked",
        "kind and redis.call('ZSCORE', parked",
        "kind and 1 or redis.call('ZSCORE', parked",
    ),
    Break("why", "the mark of a key is part of it", "match(own_key, '\\t(.*)$') or own_key", "own_key"),
    Break(
        "why", "runs of all times", "if tonumber(at) >= floor(now / 300000) - 12 then", "if true then",
    ),
    Break("demand", "paused groups ask for workers", "'^%S+ 1') then return end", "'^%S+ 1') then group = nil end"),
    Break("demand", "delayed jobs ask for workers early", "delayed, '-inf', now", "delayed, '-inf', '+inf'"),
    Break("demand", "closed keys are open", "keys[n + 4] = till > now and 1 or 0", "keys[n + 4] = 0"),
    Break("fold", "what is counted now is folded", "if at and tonumber(at) ~= interval then", "if at then"),
    Break("fold", "counts stay and are added again", "    redis.call('HDEL', metrics, unpack(some))\n", ""),
    Break("fold", "old slots stay", "if unit == 't' or tonumber(at) >=", "if true or tonumber(at) >="),
    Break("fold", "any number of types", "redis.call('HLEN', history) > TYPES", "false"),
    Break("fold", "a type that runs leaves room", "last < floor(interval / UNITS.q[1])", "last < floor(interval)"),
    Break("fold", "a type that is counted now leaves room", " or fields[rows[i]]", ""),
    Break("fold", "a note at each call", "now - last >= 30000", "true"),
    Break("fold", "old notes stay", "and tonumber(at) > now - 480000", ""),
    Break("numbers", "all types together are left out", "ipairs({ kind, '' })", "ipairs({ kind })"),
    Break("numbers", "moved jobs count as new", "fifo - (tonumber(facts[2]) or 0)", "fifo"),
    Break("numbers", "delayed jobs count as arrived", "fifo - (tonumber(facts[3]) or 0)", "fifo"),
    Break("sample", "large specs are read", "if size <= left then", "if true then"),
    Break("schedule_fire", "jobs of schedules are not counted", "    add_up('moved', -1)\n", ""),
    Break("rebase", "the number of new jobs jumps", "(tonumber(facts[4]) or 0) + back", "(tonumber(facts[4]) or 0)"),
    Break("why", "without bound", "'LIMIT', 0, most, 'WITHSCORES')", "'LIMIT', 0, 1e9, 'WITHSCORES')"),
    Break("claim", "a small job overtakes one that does not fit", "if stop then count", "if false then count"),
    Break("claim", "too many slots never run", "math.min(slots, waits and size_of_others or size)", "slots"),
    Break("claim", "a job that does not fit is not passed on", "too_many and ARGV[8] ~= '1'", "false"),
    Break("claim", "reserved slots are for all", "or waits and taken + need > others", ""),
    Break("claim", "urgent jobs take no reserved slot", "not urgent or i > urgent", "true"),
    Break("claim", "the rule of the queue counts jobs", "for n = 2, slots do more", "for n = 2, 1 do more"),
    Break("overflow", "seats do not count", " + number(seats, key) + min(slots, full)", " + min(slots, full)"),
    Break("overflow", "tokens of seats do not count", "unspent, key) + number(seats, key)", "unspent, key)"),
    Break("overflow", "a closed key has room", "if not kills and (tonumber", "if false and (tonumber"),
    Break("overflow", "seats of jobs that are gone stay", "    clean(key)\n", ""),
    Break("overflow", "costs of seats do not count", "ipairs({ unspent, seats })", "ipairs({ unspent })"),
    Break("overflow", "nothing is dropped", "if action_of(key) == 'drop' and", "if false and"),
    Break("overflow", "the newest is replaced", "return a[1] < b[1] or", "return a[1] > b[1] or"),
    Break("overflow", "decided twice", "redis.call('ZREM', undecided, id) == 0 then return", "false then return"),
    Break("admit", "jobs over a limit are admitted", "if settings[5] and redis", "if false and redis"),
    Break("forward", "the next attempt is dropped", "redis.call('HEXISTS', attempts, due[i]) == 0", "true"),
    Break("rule", "the action of a removed rule stays", "elseif at and not acts then", "elseif false then"),
    Break("admit", "a promised cost counts as one token", "sum = sum + cost_of(rows[i], unit)", "sum = sum + 1"),
    Break("admit", "a cost needs one token", "return band.unit and id and min(", "return 1 or min("),
    Break("admit", "a large cost waits for ever", ", band.unit), band.burst) or 1", ", band.unit), 1e9) or 1"),
    Break("admit", "the key opens at its next token", "(taken + need - 1) * band.interval", "taken * band.interval"),
    Break("claim", "a cost is one token", "(band.unit and cost_of(rows[i], band.unit) or 1)", "1"),
    Break("claim", "an earlier run counts", "if row and match(row, '\\n%S+ %d+ %d') then", "if false then"),
    Break("claim", "a debt is forgotten", "if band.unit then redis.call('HSET'", "if false then redis.call('HSET'"),
    Break("disable_webhook", "a changed one is disabled", "~= ARGV[2] then return 0", "== '' then return 0"),
    Break("disable_webhook", "the last reason wins", "'HSETNX'", "'HSET'"),
    Break("webhook_write", "the row is not compared", "~= before then return", "== 'x' then return"),
    Break("webhook_write", "a repeated call is stale", "if stored ~= row then", "if true then"),
    Break("webhook_write", "any number of webhooks", ">= most then return 'full'", ">= 1000000 then return 'full'"),
    Break("webhook_write", "failures are always forgotten", "row == '' or forget == '1'", "true"),
    Break("webhook_write", "the last one leaves the cursor", "redis.call('EXISTS', webhooks) == 0", "false"),
    Break("follow_events", "two follow at once", "till <= now + ms then return 0", "false then return 0"),
    Break("follow_events", "a follower cannot go on", "if holder ~= who and till > now", "if till > now"),
    Break("follow_events", "a clock that was set back stops all", "till > now and till <= now + ms", "till > now"),
    Break("follow_events", "an earlier turn moves the place back", "fence == tonumber(ARGV[4])", "true"),
    Break("follow_events", "a place stays without webhooks", "redis.call('HDEL', webhook_facts, 'cursor')", ""),
    Break("remove", "types of large jobs are read", "bytes < 1000000 and redis", "redis"),
    Break("remove", "types are not told", "(string.sub(spec, 1, 1024)", "(string.sub(spec, 1, 9)"),
    Break("charge", "fence not checked", "redis.call('HGET', leases, id) == ARGV[i + 1]", "true"),
    Break("charge", "a repeated call counts twice", "(real or estimate)", "estimate"),
    Break("charge", "what was given back is not used", "if more < 0 and", "if false and"),
    Break("admit", "several slots count as one", "for slot = 2, slots do places", "for slot = 2, 1 do places"),
    Break(
        "admit", "groups with equal tags are served by name",
        "    return a.place < b.place\n", "    return a.name < b.name\n",
    ),
    Break("admit", "jobs at the front pay for no turn", "and score % SPAN > SPAN / 2", ""),
    Break(
        "admit", "a turn costs nothing",
        "    g.start = start + step\n", "",
    ),
    Break("admit", "early lines go before waiting", "            if line.first > horizon then break end\n", ""),
    Break(
        "admit", "lines without jobs stay",
        "place and open_spot(line, place) or false)", "open_spot(line, place or 0))",
    ),
    Break("admit", "places are counted by half", "counts[name] = (counts[name] or 0) + 1", "counts[name] = 1"),
    Break(
        "admit", "a line starts again at its first job",
        "line.last and '(' .. line.last or from(line.name), to(line.name)", "from(line.name), to(line.name)",
    ),
    Break("admit", "the queue's own rule bounds no turn", "min(want, most))", "want)"),
    Break("group", "what is not named is reset", "word == '=' and words[at] or word", "word == '=' and '-' or word"),
    Break("group", "a pause keeps slots", "        free_slots(id, redis.call('HGET', weights, id) or '', line)\n", ""),
    Break(
        "recount", "a line without jobs is kept",
        "            redis.call('HDEL', lines, '=' .. line)\n        elseif", "        elseif",
    ),
    Break("admit", "later jobs go before the next line of a key", "or looks < 1 or not opens then", "or true then"),
    Break("admit", "a promised token stays promised", "not (crowd and is_short(k, line.id))", "true"),
    Break("admit", "a line opens at the place of a killed job", "line.filed and line.first > line.filed", "false"),
    Break("recount", "a key of an open line is a difference", " and not is_of_an_open_line(key)", ""),
    Break("retry", "seats of before count again", "                leave_seats(id, names)\n", ""),
    Break("admit", "too many slots never run", "min(slots_of(id), full) <= full", "slots_of(id) <= full"),
    Break("admit", "a small job overtakes", "if ahead(key, line) then return key, false end", ""),
    Break("admit", "keys open in vain", "if not heavy then return true end\n", "if true then return true end\n"),
    Break("admit", "nobody opens a key for the line that is first", "if other and may_go(key) then", "if false then"),
    Break("admit", "nobody knows when the first job can go", "close(key, id)\n    return false", "return false"),
    Break("admit", "a later job decides when a key opens", "= min(at, reopening[key] or huge)", "= at"),
    Break("admit", "a later line decides when a key opens", "reopens, 'LT', unpack(put)", "reopens, unpack(put)"),
    Break("admit", "a worker wakes itself", "left == 1 and n < want", "left == 1"),
    *[
        Break(name, "a job with several slots keeps all but one", "if rows[i] then", "if false then")
        for name in ("complete", "defer", "fail", "release", "reschedule", "snooze", "kill", "remove")
    ],
    Break("rule", "a job with several slots keeps all but one", "    free_slots(id, redis.", "    type(id, redis."),
    Break("recount", "places beyond its slots stay", "then stands = nil end", "then end"),
    Break("claim", "one too many", "waiting, 0, want - 1)", "waiting, 0, want)"),
    Break("claim", "taken from the front, removed from the end", "waiting, 0, count - 1)", "waiting, -count, -1)"),
    Break("claim", "repeated: another request's answer", "if last == tonumber(request) then", "if record then"),
    Break("claim", "the original runs after its repetition", "and not repeated then return", "and false then return"),
    Break("claim", "a request is executed after a later one", "if last > tonumber(request) or last ==", "if last =="),
    Break("claim", "a repetition that finds nothing is forgotten", "if repeated then", "if false then"),
    Break("claim", "repeated: what is lost is answered too", "lease_token == token", "true"),
    Break(
        "claim", "repeated: falls through to a new claim",
        f"if #held == 0 then return {{}} end\n    {HELD}", f"if #held > 0 then {HELD} end",
    ),
    Break("claim", "no baton for what waits", "redis.call('EXISTS', waiting) == 1 or", "false or"),
    Break("claim", "no baton for what is delayed", "or redis.call('EXISTS', delayed) == 1", ""),
    Break("claim", "however large they are", "bytes <= tonumber(ARGV[9])", "true"),
    Break("claim", "nobody told of what was left for its size", "count == want or count < #ids", "count == want"),
    Break("claim", "attempts never read", "redis.call('EXISTS', attempts) == 1", "false"),
    Break(
        "reap", "the last millisecond of a lease is taken",
        "'(' .. string.format('%.0f', now)", "string.format('%.0f', now)",
    ),
    Break("reap", "no grace after a gap", "if now < from then return {} end", ""),
    Break("reap", "the gap is never seen", "or now - before > gap", ""),
    Break("reap", "a sweep in the future is not seen", "or before - now > gap", ""),
    Break("reap", "a grace in the future is not seen", "or from > now + longest", ""),
    Break("reap", "another worker's longer leases are forgotten", "math.max(lease, tonumber(facts[4]) or 0)", "lease"),
    Break("reap", "short leases bring down those of others", "math.max(longest, 15000)", "longest"),
    Break("reap", "however large they are", "or bytes > tonumber(ARGV[7])", ""),
    Break("reap", "one fence for all", "math.max((tonumber(last) or 0) + 1, now * 1000)", "now * 1000"),
    Break("enqueue", "known ids written again", "local stored = known[i] or seen[id]", "local stored = seen[id]"),
    Break("enqueue", "ids twice in a batch", "local stored = known[i] or seen[id]", "local stored = known[i]"),
    Break("enqueue", "another job's id is taken for a repetition", "and '-' or '!'", "and '-' or '-'"),
    Break("enqueue", "a repetition is taken for another job", "== without_time(spec)", "== spec"),
    Break("enqueue", "FIFO backwards", "or fifo + i", "or fifo - i"),
    Break("enqueue", "plain: FIFO backwards", "from + i), ids[i]", "from - i), ids[i]"),
    Break("enqueue", "plain: known ids written again", "fresh and not known[i]", "fresh"),
    Break("enqueue", "plain: ids twice in a batch", " and not seen[id]", ""),
    Break("enqueue", "plain: what was seen first is forgotten", "    seen = {}\nend", "end"),
    Break("enqueue", "LIFO is FIFO", "lifo and -turn", "lifo and turn"),
    Break("enqueue", "priorities collide", "1000 * aging or 4398046511104", "1000 * aging or 2199023255552"),
    Break("enqueue", "an earlier due time told to nobody", "soonest <= tonumber(head[2])", "false"),
    Break("forward", "a minute early", "'-inf', now, 'BYSCORE'", "'-inf', now + 60000, 'BYSCORE'"),
    Break("forward", "due now waits one more", "'-inf', now, 'BYSCORE'", "'-inf', '(' .. now, 'BYSCORE'"),
    Break("forward", "priority forgotten", "score_of(tonumber(priority) or 0, number)", "score_of(0, number)"),
    Break("forward", "due times rounded down", "math.ceil(", "math.floor("),
    Break("release", "to the back", "-turn('lifo', 1)", "turn('fifo', 1)"),
    Break("release", "in reverse", "for i = #ARGV - 1, 2, -2 do", "for i = 2, #ARGV, 2 do"),
    Break("reschedule", "the delay forgotten", "delayed, due, id", "delayed, now, id"),
    Break("reschedule", "reasons without bound", ">= 65536", ">= 1e9"),
    Break("reschedule", "a reason too many goes", ">= 65536", ">= 65535"),
    Break("fail", "reasons without bound", ">= 65536", ">= 1e9"),
    Break("kill", "reasons without bound", ">= 65536", ">= 1e9"),
    Break("log", "lines without bound", "if over > 0 then", "if false then"),
    Break("log", "a line too many goes", "if over > 0 then", "if over >= 0 then"),
    Break("log", "lines of one call without bound", "if #lines > MOST then", "if false then"),
    Break("defer", "the time does not double", "2 ^ math.min(times - 1, 40)", "1"),
    Break("recall", "the last job comes first", "for i = #ids, 1, -1 do", "for i = 1, #ids do"),
    Break("schedule_fire", "the head is not compared", "if stored ~= head then", "if not stored then"),
    Break("schedule_fire", "a known job comes again", "if redis.call('HEXISTS', jobs, id) == 1 then", "if false then"),
    Break("schedule_fire", "earlier jobs do not matter", "if overlap ~= 'allow' and (", "if overlap == 'never' and ("),
    Break("schedule_fire", "running jobs do not matter", "'skip' and redis.call('ZSCORE', active, id)", "0"),
    Break("schedule_fire", "queue_one waits for a running job", "or overlap == 'skip' and redis", "or redis"),
    Break("schedule_fire", "held keys do not matter", "and holder(key, mode", "and false and holder(key, mode"),
    Break("schedule_write", "the head is not compared", "~= head then return", "== 'x' then return"),
    Break("schedule_write", "a repeated call is stale", "if stored == row or not", "if not"),
    Break("schedule_write", "any number of schedules", ">= most then return 'full'", ">= 1000000 then return 'full'"),
    Break("schedule_due", "one reads more than 1 MB", "if bytes > 1000000 then break end", ""),
    Break("schedule_due", "a clock that was set back is not noticed", "last > now + 1000", "false"),
    Break("fail", "failures of schedules are not noted", "        note_failure(id)\n", ""),
    Break("recall", "limits do not hold a job", "if names then hold(id, names, place) else", "do"),
    Break("recall", "no wake token", "if #ids > 0 then", "if false then"),
    Break("forward", "a due job stays parked", "for _, id in ipairs(due) do unpark(id) end", ""),
    *[Break(name, "the job stays parked", "\n    unpark(id)\n", "\n") for name in ("kill", "remove", "promote")],
    Break("defer", "the others hear of it a minute late", "math.min(soonest, delay)", "soonest"),
    Break("kill", "finished ones too", "elseif redis.call('ZREM', active, id) == 1 then", "else"),
    Break("retry", "a key's own time is not looked at", "if tonumber(till) > now and", "if false and"),
    Break("retry", "a key's time that is over stays", "redis.call('ZREM', unique_until, key)", ""),
    Break("retry", "a rival is not asked", "if other and other ~= id then return own, other end", ""),
    Break("retry", "unfinished ones too", "if set then", "if true then"),
    *[
        Break(name, "another's key is taken along", "elseif id == list[i] then", "elseif id then")
        for name in ("remove", "trim")
    ],
    *[
        Break(name, "a key's other job is forgotten", "elseif id == list[i] and other ~= '' then", "elseif false then")
        for name in ("remove", "trim")
    ],
    *[
        Break(name, "a removed job stays in the row of its key", "if other == list[i] then", "if false then")
        for name in ("remove", "trim")
    ],
    *[
        Break(name, "nobody follows", "local due = other == list[i] and", "local due = false and")
        for name in ("complete", "fail", "kill", "remove", "enqueue_unique")
    ],
    *[
        Break(name, "a follower forgets its own delay", "math.max(now, tonumber(due))", "now")
        for name in ("complete", "fail", "kill")
    ],
    *[
        Break(name, "a key's time: <= for <", "if tonumber(till) > now", "if tonumber(till) >= now")
        for name in ("enqueue_unique",)
    ],
    Break("enqueue_unique", "a job that is gone holds a key", "and (fingerprint ~= '-' or state) then", "then"),
    Break("enqueue_unique", "the key of a request goes with its job", "(fingerprint ~= '-' or state)", "state"),
    Break("enqueue_unique", "running jobs hold no key", "or state == 'active' or mode", "or mode"),
    Break("enqueue_unique", "the end is not looked at", "state and score + time > now", "state"),
    Break("enqueue_unique", "queued is unfinished", "if mode ~= 'queued' then", "if true then"),
    Break("enqueue_unique", "the other job of a key is overlooked", "ipairs({ id, other }) do", "ipairs({ id }) do"),
    Break("enqueue_unique", "limits stay", "'replace_all' then take_limits(", "'nothing' then take_limits("),
    Break(
        "enqueue_unique", "an admitted job keeps its places",
        "redis.call('ZREM', waiting, id)\n        give_back({ id })", "redis.call('ZREM', waiting, id)",
    ),
    Break("enqueue_unique", "it stays in its line", "place = unhold(id)", "place = redis.call('ZSCORE', held, id)"),
    Break("enqueue_unique", "others hear of no free slots", "if weight ~= '' then give_back({ id }) end", ""),
    Break("enqueue_unique", "only the row says what runs", "id, state = list[1], 'active'", "id = nil"),
    *(
        one
        for name in ("enqueue_unique", "schedule_fire")
        for one in (
            Break(name, "jobs of the row do not count", "ipairs({ first, other }) do look", "ipairs({}) do look"),
            Break(name, "the other job does not count", "ipairs({ first, other })", "ipairs({ first })"),
            Break(name, "claims note nothing", "'HSET', meta, 'running', 1, 'limited', 1", "'HLEN', meta"),
            Break(name, "a job that has ended holds the key", "if runs and not seen[id]", "if not seen[id]"),
            Break(name, "notes are not looked at", "while all or #found == 0 do", "while false do"),
            Break(name, "ended jobs stay noted", "redis.call('ZREM', running, member)", "from = from"),
        )
    ),
    Break("claim", "claims note no keys", "if facts[6] then note_keys() end", ""),
    Break("claim", "notes of ended jobs grow", "if #ended > 0 then redis", "if false then redis"),
    Break("claim", "notes of running jobs go", "if not redis.call('ZSCORE', active, match(", "if (match("),
    Break(
        "enqueue_unique", "known ids written again",
        "local stored = known[i] or seen[id]", "local stored = seen[id]",
    ),
    Break("enqueue_unique", "ids twice in a batch", "local stored = known[i] or seen[id]", "local stored = known[i]"),
    Break("enqueue_unique", "another job's id is a repetition", "same and '-' or '!'", "'-'"),
    Break("enqueue_unique", "a changed job is not known", "or redis.call('HGET', replaced, id) == digest(spec)", ""),
    Break("enqueue_unique", "a repetition replaces again", "if other and mark == digest(spec) then", "if false then"),
    Break(
        "enqueue_unique", "any job with the id is a repetition",
        "if other and mark == digest(spec) then", "if other then",
    ),
    Break("enqueue_unique", "an extension is not remembered", " or done == 'extended' then", " then"),
    Break(
        "enqueue_unique", "another type's data",
        "if not old or string.sub(old, 1, job.width) ~=", "if not old or nil ~= nil and",
    ),
    Break(
        "enqueue_unique", "a running job is changed",
        "elseif conflict ~= 'return' and QUEUED[state] then", "elseif conflict ~= 'return' then",
    ),
    Break(
        "enqueue_unique", "the longest wait is forgotten",
        "math.min(now + job.delay, latest or math.huge)", "now + job.delay",
    ),
    Break("enqueue_unique", "put off to an earlier time", "math.max(score, math.min(", "math.max(0, math.min("),
    Break("enqueue_unique", "a backoff is put off", "redis.call('HEXISTS', attempts, id) == 1 or", ""),
    Break("enqueue_unique", "a parked job is put off", " or redis.call('HEXISTS', unserved, id) == 1", ""),
    Break(
        "enqueue_unique", "the first delay is not bounded",
        "math.min(job.ready, now + job.wait)", "job.ready",
    ),
    Break("enqueue_unique", "keep_last runs at once", "job.behind = id", "job.behind = nil"),
    Break("enqueue_unique", "FIFO backwards", "or fifo + i", "or fifo - i"),
    Break("enqueue_unique", "LIFO is FIFO", "lifo and -turn", "lifo and turn"),
    Break("enqueue_unique", "a killed job is not charged", "runs + 1, since", "runs, since"),
    Break("enqueue_unique", "a repetition brings back a removed job", "elseif repeated and", "elseif false and"),
    Break("enqueue_unique", "an id cannot be used again", "repeated and was_removed", "was_removed"),
    Break("enqueue_unique", "a new queue is told to nobody", "fifo == 0 and { 0, '', 'new', '', '' } or {}", "{}"),
    Break("expire", "a waiter is released early", "if not awaited then", "if true then"),
    Break("expire", "a waiter is not released", "if not awaited then", "if false then"),
    Break("remove", "the last column overlooked", "for i = 22, #KEYS do", "for i = 22, #KEYS - 1 do"),
    Break("enqueue", "a repetition brings back a removed job", "elseif repeated and", "elseif false and"),
    Break("enqueue", "an id cannot be used again after a removal", "repeated and was_removed", "was_removed"),
    Break("enqueue", "a repeated id is never free again", "tonumber(at) < tonumber(time)", "true"),
    Break("expire", "ids of removed jobs stay", "redis.call('ZREM', removed, unpack(gone))", "gone = gone"),
    Break("trim", "the last column overlooked", "for i = 8, #KEYS do", "for i = 8, #KEYS - 1 do"),
    Break("claim", "late jobs start", LATE, "if false then"),
    Break("claim", "a job starts no more in its last ms", LATE, LATE.replace("<= now", "<= now + 1")),
    Break("claim", "late only if it never ran", LATE, LATE.replace("if by and", "if by and tonumber(by) > 0 and")),
    Break("claim", "a late job starts behind others", "count, enough = i - 1, false\n", "count, enough = i, false\n"),
    Break("enqueue", "reruns without bound", "if #list < 20 and other ~= id", "if other ~= id"),
    Break("enqueue", "a rerun of a job that is gone", "and redis.call('HEXISTS', jobs, earlier) == 1 then", "then"),
    Break("retry", "a deadline ahead is forgotten", "if by and math.abs(tonumber(by)) <= now", "if by"),
    Break("lapse", "a job that has started expires", "        late = false\n", ""),
    Break("lapse", "a late job that ran never ends", "and math.abs(from) <= now", "and from > 0 and from <= now"),
    Break("lapse", "a deadline of such a job never comes", "and math.abs(to) <= now", "and to > 0 and to <= now"),
    Break("lapse", "running jobs end", "elseif running[i] then", "elseif false then"),
    Break("lapse", "more is not said", "if #late == page then more = 1 end", ""),
    Break("lapse", "the head of waiting is not looked at", "look_at(redis.call('ZRANGE', waiting, 0, page - 1))", ""),
    Break("lapse", "long runs hide others", "ran > page and now % ran or 0", "0"),
    Break("lapse", "jobs that ran are not looked at", "if ran > 0 then look_at", "if false then look_at"),
    Break("lapse", "the wrong record", "over and ARGV[5] or ARGV[4]", "ARGV[4]"),
    Break("lapse", "the payload's retention", "string.sub(spec, 1, payload - 1)", "spec"),
    Break("lapse", "reasons without bound", ">= 65536", ">= 1e9"),
    Break("lapse", "the job stays parked", "\n            unpark(id)\n", "\n"),
    Break("lapse", "places stay taken", "\ngive_back(freed)\n", "\n"),
    Break("lapse", "nobody follows", "\nfollow(ended)\n", "\n"),
    Break("trim", "one too many is kept", "count - tonumber(ARGV[1 + i])", "count - 1 - tonumber(ARGV[1 + i])"),
    Break("trim", "newest first", "redis.call('ZRANGE', set, 0, over - 1)", "redis.call('ZRANGE', set, -over, -1)"),
    Break("trim", "the young go too", "redis.call('ZCOUNT', set, '-inf', old)", "count"),
    Break("trim", "the young are not counted", ", count - many)", ")"),
    Break("trim", "the page is not kept", "math.min(page - #ids, over,", "math.min(over,"),
    Break("expire", "a millisecond early", "unique_until, '-inf', now, 'BY", "unique_until, '-inf', now + 1, 'BY"),
    Break("reprioritise", "the place in time is lost", "score % 4398046511104", "score % 1"),
    Break("reprioritise", "LIFO is lost", "ARGV[3] .. lifo", "ARGV[3]"),
    Break("promote", "not delayed, moved all the same", "if redis.call('ZREM', delayed, id) == 1 then", "if true then"),
    *[
        Break(name, "a repeated request is executed", "if recorded then", "if false then")
        for name in ("kill", "lapse", "retry", "promote", "remove", "reprioritise", "pause", "resume", "drop")
    ],
    Break("kill", "the job's own retention is forgotten", "if ARGV[4] ~= '' then", "if false then"),
    *[
        Break(name, "its charged runs are forgotten", "    write_attempts(id, runs, ", "    write_attempts(id, 0, ")
        for name in ("promote", "release", "defer", "snooze", "throttle")
    ],
    *[
        Break(name, "its snoozes are forgotten", f"{since}, snoozes)", f"{since}, '')")
        for name, since in (
            ("promote", "now"),
            ("release", "now"),
            ("defer", "now + delay"),
            ("reschedule", "due"),
            ("fail", "ARGV[i + 2]), since"),
            ("kill", "runs + 1, since"),
        )
    ],
    Break("promote", "waits since its enqueue", "write_attempts(id, runs, now, snoozes)", ""),
    Break("kill", "an active job is not charged", "runs + 1, since", "runs, since"),
    Break("snooze", "not counted", "(tonumber(times) or 0) + 1", "(tonumber(times) or 0)"),
    Break("snooze", "its rate limits are forgotten", " + 1) .. rest)", " + 1))"),
    Break("throttle", "not counted", "(tonumber(times) or 0) + 1", "(tonumber(times) or 0)"),
    Break("throttle", "its snoozes are forgotten", "tonumber(before) or 0, ", "0, "),
    Break("throttle", "closed for good", "local till = now + tonumber(ARGV[i + 2])", "local till = now + 1e9"),
    Break("throttle", "a closing time is made shorter", "'GT', till, key", "till, key"),
    Break("throttle", "the queue's closing time is made shorter", "if till > (tonumber(", "if 1e15 > (tonumber("),
    Break("throttle", "the last job goes first", "for i = #ARGV - 3, 2, -4 do", "for i = 2, #ARGV - 3, 4 do"),
    Break("throttle", "a job alone loses its place", "'L?$') .. 'F'", "'L?$')"),
    Break("throttle", "places are kept", "free(ended)", ""),
    Break("forward", "a rate limited job goes to the back", "front[i] or lifo", "lifo"),
    Break("forward", "the mark stays", "redis.call('HSET', priorities, due[i], own)", ""),
    Break("promote", "the mark stays", "HSET', priorities, id, priority .. lifo)", "HSET', priorities, id, '0F')"),
    Break("promote", "a rate limited job goes to the back", "front == 'F' or lifo == 'L'", "lifo == 'L'"),
    Break("reprioritise", "a rate limited job loses its place", "'L?F?$'", "'L?$'"),
    Break("claim", "a closed queue is claimed from", "if till > now and till < now + 1e12 then", "if false then"),
    Break("claim", "a queue that is open again stays closed", "redis.call('HDEL', meta, 'closed')", ""),
    Break("claim", "jobs of a closed key start", "open = open and known[key] <= now", ""),
    Break("claim", "jobs of a closed key keep their places", "free(back)", ""),
    Break("admit", "a closed key has room", "if k.till > now then return 0 end", ""),
    Break("admit", "nobody knows when a closed key opens", "if k.till > now then at = k.till end", ""),
    Break("balance", "two workers have the right", "till <= now + ms then return 0", "false then return 0"),
    Break("balance", "a wrong clock keeps the right", "till > now and till <= now + ms", "till > now"),
    Break("balance", "a lost right comes back as it was", "or till <= now then fence", "or false then fence"),
    Break("share", "an earlier worker is heard", "> fence then return {} end", "> fence and false then return {} end"),
    Break("share", "the fence is not kept", "redis.call('HSET', meta, 'balanced', ARGV[2])", ""),
    Break("share", "tokens come from nowhere", "math.max(0, old[i].burst - ahead / old[i].interval)", "old[i].burst"),
    Break("share", "more tokens than the burst", "math.min(tokens, new[i] and", "math.max(tokens, new[i] and"),
    Break("share", "what was given back stays", "redis.call('ZREM', spent, field)", ""),
    Break("share", "all slots of a job are one", " + redis.call('ZLEXCOUNT', admitted, '[queue\\0', '(queue\\1')", ""),
    Break("rule", "a partition gets the whole rule", "elseif shares then", "elseif false then"),
    Break("close", "it is never open again", "redis.call('ZREM', closed, key)", "till = ''"),
    Break("close", "jobs wait for the old time", "redis.call('ZADD', openings, '-inf', key)", ""),
    Break("expire", "closing times stay", "if #open > 0 then", "if false then"),
    Break("expire", "a breaker is closed by time alone", "if string.byte(key) ~= 33 and", "if"),
    *[
        Break(name, "the outcome counts for nothing", f"note(free(ids), '{mark}', lost)", "free(ids)")
        for name, mark in (("complete", "0"), ("fail", "1"))
    ],
    *[
        Break(name, "nobody hears of an open breaker", "reply[#reply + 1] = key .. ' ' .. ms", "")
        for name in ("fail", "reschedule")
    ],
    Break("complete", "nobody hears of a closed breaker", "reply[#reply + 1] = key .. ' 0'", ""),
    Break("fail", "a failure counts as a success", "note(free(ids), '1', lost)", "note(free(ids), '0', lost)"),
    Break("fail", "too few runs open it", "#last >= tonumber(runs) and", ""),
    Break("fail", "an open breaker is opened again", "tonumber(till) <= now then", "true then"),
    Break("complete", "it never closes", "till, since = '0', string", "till, since = till, string"),
    Break("complete", "its key stays closed", "redis.call('ZREM', closed, key)", ""),
    Break("admit", "a half-open breaker lets all through", "rule = { concurrency = 1, bands = {} }", ""),
    Break("claim", "jobs that were admitted before all find out", "if open and known[key] > 0 and", "if false and"),
    Break("throttle", "a rate limit trips a breaker", "if string.find(key, '^[^@!]') then", "if true then"),
    Break("breaker", "a new rule forgets the state", "if not rule then state,", "if true then state,"),
    Break("breaker", "without bound", "redis.call('HLEN', breakers) >= most", "false"),
    Break("breaker", "a reset key stays closed", "if verb == 'reset' or verb == 'remove' then", "if false then"),
    Break("snooze", "due at once", "now + tonumber(ARGV[i + 2])", "now"),
    Break("rows", "past its own retention", "if till and tonumber(till) <= now then row = false end", ""),
    Break("rows", "however large they are", "if bytes > 1000000 then break end", ""),
    Break("rows", "a brief has everything", "value and brief and cut(column, value) or value", "value"),
    Break("results", "however large they are", "if bytes > 1000000 then break end", ""),
    Break("page", "however large they are", "or bytes > 1000000", ""),
    Break("stats", "the first priority only", "aged and 0 or 64 do", "1 do"),
    Break("stats", "however large they are", "or bytes > 1000000 then break end", "then break end"),
    Break("admit", "the clock of groups stands still", TICK, "start"),
    Break("admit", "the clock of groups runs away", TICK, "virtual + 1000"),
    Break("admit", "a group in turns is lifted to the clock", "floor(virtual) - LATE) end\n    return", LIFTED),
    Break("forward", "aging: it waits since this call", "if times[i] and number > 0 then", "if false then"),
    Break("enqueue", "aging: a job at the front starves the others", "lifo and fifo > MIDDLE", "false"),
    Break("enqueue_unique", "aging: LIFO starves the others", "l == '1' and fifo > 2199023255552", "false"),
    Break("forward", "aging: LIFO starves the others", "lifo == 'L' and not aged and", "lifo == 'L' and"),
    Break("promote", "aging: LIFO starves the others", "aging_of(redis.call('HGET', meta, 'aging')) == 0", "true"),
    Break("retry", "aging: LIFO starves the others", "aging_of(redis.call('HGET', meta, 'aging')) == 0", "true"),
    Break("enqueue", "aging: numbers count jobs", "last >= first + n and ", ""),
    Break("enqueue", "aging: a wrong clock counts for ever", " and last <= first + 60000000", ""),
    Break("admit", "aging: priorities before the turns of groups", "aging > 0 and 9007199254740992 or", "false or"),
    Break("admit", "aging: urgent jobs without a group pay nothing", "and number <= plan[2] then", "then"),
    Break("admit", "aging: jobs of waiting pay twice", "counted or was_counted(", "counted or nil and was_counted("),
    Break("reprioritise", "aging: the worth of the priority stays", "(priority - before) * 1000", "priority * 1000"),
    Break("claim", "aging: only new jobs are urgent", "+ (below - 1) * 1000 * aging", "+ (below - 9) * 1000 * aging"),
    Break("claim", "aging: nobody knows when a job is urgent", "if border and waits then", "if false then"),
    Break("rebase", "aging: places are counted", "if aging_of(facts[6]) > 0 then", "if false then"),
    Break("aging", "code overrules an operator", "(ARGV[3] == '1' or stored == wanted)", "stored == wanted"),
    Break("aging", "turns of before stay", "redis.call('UNLINK', lines, open_lines, full_lines, turns, arrivals)", ""),
    Break("aging", "any number of jobs", "number > tonumber(ARGV[4])", "false"),
    Break("rebase", "starts with every call", "string.gmatch(facts[3] or ''", "string.gmatch(''"),
    Break("rebase", "places given twice", "sign * (done + i)), id)", "sign * i), id)"),
    Break("rebase", "LIFO from its far end", "'BYSCORE', 'REV', 'LIMIT'", "'BYSCORE', 'LIMIT'"),
    Break("rebase", "always", "<= bound and", "<= -1 and"),
    Break("enqueue", "a new queue is told to nobody", "sequence == 1 and { 0, '', 'new' } or {}", "{}"),
    Break("enqueue", "several: a new queue is told to nobody", "sequence == count and { 0, '', 'new' } or {}", "{}"),
    Break("enqueue", "with options: a new queue is told to nobody", "fifo == 0 and { 0, '', 'new' } or {}", "{}"),
    Break("publish", "who has started does not count", "started and 1 or place", "place"),
    Break("publish", "who repeats counts", "place or #lines + 1, ours", "1, ours"),
    Break("publish", "types without bound", "stored or redis.call('HLEN', types) < most", "true"),
    Break("publish", "rows without bound", " and #lines < 3", ""),
    Break("publish", "silent publishers are compared", "tonumber(seen) > now - kept", "true"),
    Break("publish", "forgotten by nobody", "redis.call('ZADD', types_seen, now, name)", ""),
    Break("expire", "published types stay", "redis.call('HDEL', types, unpack(unheard))", ""),
    Break("heartbeat", "a word from the future stays", "redis.call('ZADD', workers, now, worker)", ""),
    Break("pause", "16 digits concatenated", "string.format('%.0f', now)", "'' .. now"),
    Break("page", "the cursor's own job again", "start = rank + 1", "start = rank"),
    Break("page", "ties behind a vanished job passed over", "set, '-inf', '(' .. ARGV[6])", "set, '-inf', ARGV[6])"),
    Break("heartbeat", "the wrong claims forgotten", "worker .. ':0', worker", "ARGV[2] .. ':0', worker"),
    Break("heartbeat", "claims of the unknown stay", "> 3 * known", "> 1e9"),
    Break(
        "heartbeat", "claims of the known go too",
        "if not redis.call('ZSCORE', workers, string.match(lane, '(.*):')) then", "if true then",
    ),
]  # fmt: skip


EQUIVALENT = {
    # A failed run opens a breaker again and never closes it.
    ("fail", "ZREM', closed, key)"),
    ("reschedule", "ZREM', closed, key)"),
    # Whatever overflow ends has limits, so giving back its places has called a worker already.
    ("overflow", "ZADD', delayed, math.max(now, tonumber(due)), id)\n                redis.call('ZADD', wake, 0, 't')"),
    # The row of a removed job goes with all others.
    ("remove", "string.format('%s %.0f', times, math.max(0, spent - early)))"),
}
"""Lines of shared pieces that have no effect in these scripts: script, and how the text up to their end ends. They are
not left out."""


def left_out() -> list[Break]:
    """Each line that only writes, left out."""
    breaks: list[Break] = []
    for path in sorted(SCRIPTS.glob("*.lua")):
        lines = path.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            if WRITE.match(line) and "then" not in line:
                before = "".join(lines[:number])
                old = before[-200:] + line
                if any(path.stem == script and old.rstrip().endswith(end) for script, end in EQUIVALENT):
                    continue
                breaks.append(Break(path.stem, f"line {number + 1} left out: {line.strip()[:70]}", old, before[-200:]))
    return breaks


def noticed(broken: Break) -> str | None:
    """The test that fails, or None if all pass."""
    with tempfile.TemporaryDirectory(prefix="jobq-lua-") as name:
        folder = Path(name)
        for path in SCRIPTS.glob("*.lua"):
            text = path.read_text()
            if path.stem == broken.script:
                assert text.count(broken.old) == 1, f"{broken.script}: {broken.what}: not there, or more than once"
                text = text.replace(broken.old, broken.new)
            (folder / path.name).write_text(text)
        env = os.environ | {"JOBQ_TEST_LUA": name, "HYPOTHESIS_PROFILE": "mutations"}
        # Tests named after the script run first. They nearly always find the break.
        for tests, *some in (("lua", "-k", broken.script), ("lua",), ("model",)):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}", *some]
            ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False, timeout=300)
            if ran.returncode == 1:
                said = ran.stdout.decode().splitlines()
                return next(line.partition(" ")[2].partition(" - ")[0] for line in said if line.startswith(REDS))
            if ran.returncode not in (0, NONE_SELECTED):
                said = (ran.stdout + ran.stderr).decode()[-2000:]
                raise RuntimeError(f"{broken.script}: {broken.what}: pytest ended with {ran.returncode}\n{said}")
    return None


def main(scripts: list[str]) -> int:
    """Try the breaks of these scripts, or all. Returns the number of breaks that were not found."""
    if red := noticed(Break("", "nothing broken", "", "")):
        sys.exit(f"{red} is red without any break: nothing can be learnt from the tests")
    breaks = [broken for broken in SABOTAGES + left_out() if not scripts or broken.script in scripts]
    survivors: list[Break] = []
    began = time.monotonic()
    for number, broken in enumerate(breaks, 1):
        red = noticed(broken)
        if red is None:
            survivors.append(broken)
        print(f"{number}/{len(breaks)} {broken.script}: {broken.what}: {red or 'NOT NOTICED'}", flush=True)
    print(f"{len(breaks) - len(survivors)} of {len(breaks)} noticed, in {time.monotonic() - began:.0f} s")
    for broken in survivors:
        print(f"not noticed: {broken.script}: {broken.what}")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
