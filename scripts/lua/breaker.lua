#!lua flags=allow-oom
-- breaker: writes, trips, resets or removes the circuit breaker of a type.
-- KEYS breakers closed reopens openings wake
-- ARGV now, verb (declare, trip, reset, remove), type, text, largest number of breakers
--   text: for declare "rate runs ms" (opens at this rate of failures in so many runs, for so many ms); for trip the ms for which it is
--   open (0: those of the row); else ''
-- RETURNS the row of the breaker now, '' if there is none; 'full' when there are too many (nothing changed)
-- The row is "rate runs ms until since outcomes": `until` is 0 while the breaker is closed, `since` is when its state began, and
-- `outcomes` are those of the last runs (0 worked, 1 failed; '-': none). A breaker that is not closed is a closed limit key "!type".
-- After its time it lets one job through at a time, and the outcome of the first one closes it or opens it again.
local breakers, closed, reopens, openings, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local verb, name, text, most = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = '!' .. name

local row = redis.call('HGET', breakers, name) or ''
local rule, state, outcomes = string.match(row, '^(%S+ %d+ %d+) (%d+ %d+) ([01-]+)$')
if not rule and verb ~= 'declare' and verb ~= 'remove' then return '' end
if verb == 'declare' then
    -- A new rule keeps the state. A damaged row starts again.
    if rule == text then return row end
    if not rule and redis.call('HLEN', breakers) >= most then return 'full' end
    if not rule then state, outcomes = string.format('0 %.0f', now), '-' end
    row = text .. ' ' .. state .. ' ' .. string.sub(outcomes, -tonumber(string.match(text, ' (%d+) ')))
elseif verb == 'trip' then
    local ms = tonumber(text) > 0 and tonumber(text) or tonumber(string.match(rule, '%d+$'))
    row = string.format('%s %.0f %.0f -', rule, now + ms, now)
    redis.call('ZADD', closed, now + ms, key)
elseif verb == 'reset' then
    row = string.format('%s 0 %.0f -', rule, now)
else
    row = ''
end
if row ~= '' then redis.call('HSET', breakers, name, row) else redis.call('HDEL', breakers, name) end
if verb == 'reset' or verb == 'remove' then redis.call('ZREM', closed, key) end
if verb ~= 'declare' then
    -- admit looks at the key: its jobs wait for the new time, or start.
    redis.call('ZREM', reopens, key)
    redis.call('ZADD', openings, '-inf', key)
    redis.call('ZADD', wake, 0, 't')
end
return row
