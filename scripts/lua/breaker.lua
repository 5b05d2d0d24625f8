#!lua flags=allow-oom
-- breaker: writes, trips, resets or removes the circuit breaker of a type, or takes over its state from another partition.
-- KEYS breakers closed reopens openings wake meta
-- ARGV now, verb (declare, trip, reset, remove, follow), type, text, largest number of breakers
--   text: for declare "rate runs ms" (opens at this rate of failures in so many runs, for so many ms); for trip the ms for which it is
--   open (0: those of the row); for follow "until since" of the other partition; else ''
-- RETURNS the row of the breaker now, '' if there is none; 'full' when there are too many (nothing changed)
-- The row is "rate runs ms until since outcomes": `until` is 0 while the breaker is closed, `since` is when its state began, and
-- `outcomes` are those of the last runs (0 worked, 1 failed; '-': none). A breaker that is not closed is a closed limit key "!type".
-- After its time it lets one job through at a time, and the outcome of the first one closes it or opens it again.
-- Of the states in two partitions the one that began later holds. One that is not later changes nothing. The state that a breaker has
-- when it is declared is older than all others: its `since` has a 0 in front.
local breakers, closed, reopens, openings, wake, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local verb, name, text, most = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = '!' .. name

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

local row = redis.call('HGET', breakers, name) or ''
local rule, state, outcomes = string.match(row, '^(%S+ %d+ %d+) (%d+ %d+) ([01-]+)$')
-- Two changes in one ms must not seem to be one.
local function later_than(text) return math.max(now, (tonumber(string.match(text, ' ([1-9]%d*)$')) or 0) + 1) end
if not rule and verb ~= 'declare' and verb ~= 'remove' then return '' end
if verb == 'declare' then
    -- A new rule keeps the state. A damaged row starts again.
    if rule == text then return row end
    if not rule and redis.call('HLEN', breakers) >= most then return 'full' end
    counted()
    if not rule then state, outcomes = string.format('0 0%.0f', now), '-' end
    row = text .. ' ' .. state .. ' ' .. string.sub(outcomes, -tonumber(string.match(text, ' (%d+) ')))
elseif verb == 'trip' then
    local ms = tonumber(text) > 0 and tonumber(text) or tonumber(string.match(rule, '%d+$'))
    row = string.format('%s %.0f %.0f -', rule, now + ms, later_than(state))
    redis.call('ZADD', closed, now + ms, key)
elseif verb == 'follow' then
    local till, since = string.match(text, '^(%d+) (%d+)$')
    local own_till, own = string.match(state, '^(%d+) (%d+)$')
    if not since or string.sub(since, 1, 1) == '0' then return row end
    local later = tonumber(since) - tonumber(own)
    -- Of two that began in the same ms the one that is open for longer holds.
    if string.sub(own, 1, 1) ~= '0' and (later < 0 or later == 0 and tonumber(till) <= tonumber(own_till)) then return row end
    row = rule .. ' ' .. text .. ' -'
    if tonumber(till) > 0 then redis.call('ZADD', closed, till, key) else redis.call('ZREM', closed, key) end
elseif verb == 'reset' then
    row = string.format('%s 0 %.0f -', rule, later_than(state))
else
    row = ''
    counted()
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
