#!lua flags=allow-oom
-- follow_events: gives a process the turn to follow the events of the queue for its webhooks, and stores how far it has come.
-- KEYS webhooks webhook_facts
-- ARGV now, follower, ms for which it has the turn from now on, fence of the turn that stores a cursor (0: none), cursor
-- RETURNS the fence of the turn; 0 if another process has it, or there is no webhook; and the stored cursor, or ''
local webhooks, webhook_facts = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: one at a time
-- One process at a time has the turn, for `ms` from its last call on. Returns the fence of the turn, or 0 if another process has it.
local function take_turn(key, field, who, ms)
    local fence, till, holder = string.match(redis.call('HGET', key, field) or '', '^(%d+) (%d+) (.+)$')
    fence, till = tonumber(fence) or 0, tonumber(till) or 0
    -- A time that is further ahead than a turn lasts was written by a wrong clock.
    if holder ~= who and till > now and till <= now + ms then return 0 end
    if holder ~= who or till <= now then fence = fence + 1 end
    redis.call('HSET', key, field, string.format('%.0f %.0f %s', fence, now + ms, who))
    return fence
end
-- end

if redis.call('EXISTS', webhooks) == 0 then
    -- The next webhook begins with events of its own time.
    redis.call('HDEL', webhook_facts, 'cursor')
    return { 0, '' }
end
local fence = take_turn(webhook_facts, 'follower', ARGV[2], tonumber(ARGV[3]))
if fence > 0 and fence == tonumber(ARGV[4]) then redis.call('HSET', webhook_facts, 'cursor', ARGV[5]) end
return { fence, redis.call('HGET', webhook_facts, 'cursor') or '' }
