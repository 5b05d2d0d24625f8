#!lua flags=allow-oom
-- reap: gives the sweeper the jobs whose lease has run out, with a new lease and a new fence. It is one step, so a job never
-- has two holders.
-- KEYS active leases jobs attempts meta
-- ARGV now, limit, lease ms, sweeper, gap ms, grace ms, bytes of specs after which the script stops
--   A worker sweeps every few seconds. If the last sweep is longer ago than `gap`, or there was none, the server itself was not
--   available (paused, blocked, restarted), and workers could not renew their leases. They get `grace` ms to do so before any job
--   is reaped. The same applies if the server's clock was set back. Leases that then end too late are shortened, `limit` per call.
-- RETURNS {} or token, now, ids, specs, charged attempts ({} when all are 0), the earlier tokens of these jobs
local active, leases, jobs, attempts, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local limit, lease, sweeper = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local gap, grace = tonumber(ARGV[5]), tonumber(ARGV[6])

-- shared: fence
-- A fence only grows. A damaged one, which cannot grow as a double, starts again at the clock.
local function next_fence(last)
    local fence = math.max((tonumber(last) or 0) + 1, now * 1000)
    return string.format('%.0f', fence < 9007199254740992 and fence or now * 1000)
end
-- end

local facts = redis.call('HMGET', meta, 'fence', 'swept', 'reap_from', 'longest_lease')
local before, from = tonumber(facts[2]), tonumber(facts[3]) or 0
local longest = math.max(lease, tonumber(facts[4]) or 0)
redis.call('HSET', meta, 'swept', string.format('%.0f', now), 'longest_lease', string.format('%.0f', longest))
-- The last sweep is too long ago, or it is in the future. In the second case the clock was set back, and `reap_from` may be too
-- far in the future as well.
if not before or now - before > gap or before - now > gap or from > now + longest then
    from = now + grace
    redis.call('HSET', meta, 'reap_from', string.format('%.0f', from))
end
-- A lease that ends later than the longest lease from now was given before the clock was set back. If its holder is dead, the job
-- would wait until the clock has caught up. Shorten it: a living holder renews at least every five seconds.
local bound = now + math.max(longest, 15000)
local beyond = redis.call('ZRANGE', active, '(' .. string.format('%.0f', bound), '+inf', 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(beyond) do redis.call('ZADD', active, string.format('%.0f', bound), id) end
if now < from then return {} end
local ids = redis.call('ZRANGE', active, '-inf', '(' .. string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, limit)
if #ids == 0 then return {} end
-- Read one by one up to the bound. A page of jobs of 1 MB each would block Redis for a tenth of a second.
local specs, bytes, count = {}, 0, 0
repeat
    count = count + 1
    specs[count] = redis.call('HGET', jobs, ids[count])
    bytes = bytes + #(specs[count] or '')
until count == #ids or bytes > tonumber(ARGV[7])
for i = #ids, count + 1, -1 do ids[i] = nil end
local fence = next_fence(facts[1])
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
