#!lua flags=allow-oom
-- follow_events: says which process follows the events of the queue for its webhooks, and stores how far it has come.
-- KEYS webhook_facts
-- ARGV now, follower, ms for which it follows from now on, cursor ('': it stores none)
-- RETURNS 1 if the caller is the follower now, else 0 (nothing changed); the stored cursor, or ''
local webhook_facts = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local row = redis.call('HMGET', webhook_facts, 'follower', 'cursor')
local other, till = string.match(row[1] or '', '^(%S+) (%d+)$')
-- A time that lies too far ahead was written before the clock was set back.
if other and other ~= ARGV[2] and tonumber(till) > now and tonumber(till) <= now + tonumber(ARGV[3]) then return { 0, row[2] or '' } end
redis.call('HSET', webhook_facts, 'follower', string.format('%s %.0f', ARGV[2], now + tonumber(ARGV[3])))
if ARGV[4] == '' then return { 1, row[2] or '' } end
redis.call('HSET', webhook_facts, 'cursor', ARGV[4])
return { 1, ARGV[4] }
