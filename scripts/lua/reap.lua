#!lua flags=allow-oom
-- reap: the sweeper claims jobs whose lease ran out: new fence, new lease, in one move, so nobody else holds them.
-- KEYS active leases jobs attempts meta
-- ARGV now, limit, lease ms, sweeper, gap ms, grace ms, bytes of specs after which it is enough
--   Somebody sweeps every few seconds. Where nobody did for longer than `gap` (or ever), the server itself was away (paused, blocked,
--   restarted): leases ran out that nobody could renew. Their holders get `grace` ms to renew before anything is reaped.
--   The same where the server's clock was set back. Leases that end too late by the new clock are shortened, `limit` a call.
-- RETURNS {} or token, now, ids, specs, charged attempts ({} when all are 0), the tokens they were held with
local active, leases, jobs, attempts, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local limit, lease, sweeper = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local gap, grace = tonumber(ARGV[5]), tonumber(ARGV[6])
local facts = redis.call('HMGET', meta, 'fence', 'swept', 'reap_from', 'longest_lease')
local before, from = tonumber(facts[2]), tonumber(facts[3]) or 0
local longest = math.max(lease, tonumber(facts[4]) or 0)
redis.call('HSET', meta, 'swept', string.format('%.0f', now), 'longest_lease', string.format('%.0f', longest))
-- The last sweep lies too far back, or in the future: then the clock was set back, and so may be the time in `reap_from`.
if not before or now - before > gap or before - now > gap or from > now + longest then
    from = now + grace
    redis.call('HSET', meta, 'reap_from', string.format('%.0f', from))
end
-- No worker gives a lease that is longer than the longest. One that is was given before the clock was set back, and its holder
-- would be thought alive for as long as the clock went back. A living holder renews every five seconds at the latest.
local bound = now + math.max(longest, 15000)
local beyond = redis.call('ZRANGE', active, '(' .. string.format('%.0f', bound), '+inf', 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(beyond) do redis.call('ZADD', active, string.format('%.0f', bound), id) end
if now < from then return {} end
local ids = redis.call('ZRANGE', active, '-inf', '(' .. string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, limit)
if #ids == 0 then return {} end
-- a page of jobs of a megabyte would hold Redis for a tenth of a second
local specs, bytes, count = {}, 0, 0
repeat
    count = count + 1
    specs[count] = redis.call('HGET', jobs, ids[count])
    bytes = bytes + #(specs[count] or '')
until count == #ids or bytes > tonumber(ARGV[7])
for i = #ids, count + 1, -1 do ids[i] = nil end
local fence = string.format('%.0f', math.max((tonumber(facts[1]) or 0) + 1, now * 1000))
local token = fence .. ' ' .. sweeper
local holders = redis.call('HMGET', leases, unpack(ids))
local expiries, tokens = {}, {}
for i, id in ipairs(ids) do
    expiries[2 * i - 1], expiries[2 * i] = now + lease, id
    tokens[2 * i - 1], tokens[2 * i] = id, token
end
redis.call('HSET', meta, 'fence', fence)
redis.call('ZADD', active, unpack(expiries))
redis.call('HSET', leases, unpack(tokens))
local charged = redis.call('EXISTS', attempts) == 1 and redis.call('HMGET', attempts, unpack(ids)) or {}
return { token, now, ids, specs, charged, holders }
