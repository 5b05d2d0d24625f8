#!lua flags=allow-oom
-- schedule_write: writes or removes a schedule, if nobody has changed it since it was read. A message tells the workers.
-- KEYS schedules schedule_rows schedule_failures schedule_seen control meta
--   control is a channel, declared as a key so that it shares the queue's hash tag
-- ARGV now, name, head of the row that was read ('': there was none), the new head and state, the two definitions in a line each ('': remove
--   the schedule), when it is due (unix ms, '': never), largest number of schedules
-- RETURNS "ok"; "stale" if the row has another head, or "full" if there are too many schedules (nothing changed)
local schedules, schedule_rows, schedule_failures, schedule_seen, control, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local name, head, state, definitions, due, most = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local stored = redis.call('HGET', schedule_rows, name)
local row = definitions ~= '' and state .. '\n' .. definitions or nil
-- The call may be repeated because its reply was lost.
if stored == row or not stored and not row then return 'ok' end
if (stored and string.match(stored, '^[^\n]*') or '') ~= head then return 'stale' end
if not stored and redis.call('HLEN', schedule_rows) >= most then return 'full' end
if row then
    redis.call('HSET', schedule_rows, name, row)
else
    redis.call('HDEL', schedule_rows, name)
    redis.call('HDEL', schedule_failures, name)
    redis.call('ZREM', schedule_seen, name)
end
if row and due ~= '' then redis.call('ZADD', schedules, due, name) else redis.call('ZREM', schedules, name) end
-- The slot may have been planned by a clock that is set back later. schedule_due compares this time with the clock.
if (tonumber(redis.call('HGET', meta, 'scheduled_at') or 0) or 0) < now then
    redis.call('HSET', meta, 'scheduled_at', string.format('%.0f', now))
end
redis.call('PUBLISH', control, 'schedules')
return 'ok'
