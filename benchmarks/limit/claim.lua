-- claim: the first jobs of waiting go to active under a lease.
-- KEYS waiting active jobs leases
-- ARGV want, holder
local waiting, active, jobs, leases = unpack(KEYS)
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)
local popped = redis.call('ZPOPMIN', waiting, tonumber(ARGV[1]))
if #popped == 0 then return {} end
local ids, expiries, tokens = {}, {}, {}
for i = 1, #popped, 2 do
    ids[#ids + 1] = popped[i]
    expiries[i], expiries[i + 1] = now + 30000, popped[i]
    tokens[i], tokens[i + 1] = popped[i], ARGV[2]
end
redis.call('ZADD', active, unpack(expiries))
redis.call('HSET', leases, unpack(tokens))
return { ids, redis.call('HMGET', jobs, unpack(ids)) }
