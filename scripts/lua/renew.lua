#!lua flags=allow-oom
-- renew: extends the leases of leased jobs, from now.
-- KEYS active leases
-- ARGV now, lease ms; then per job: id, token
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local active, leases = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local ids, expiries, lost = {}, {}, {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
if #ids == 0 then return lost end
local held = redis.call('HMGET', leases, unpack(ids))
local till = now + tonumber(ARGV[2])
for i, id in ipairs(ids) do
    if held[i] == ARGV[2 * i + 2] then
        local n = #expiries
        expiries[n + 1], expiries[n + 2] = till, id
    else
        lost[#lost + 1] = id
    end
end
-- XX: a renewal must never put a job back into active after it has left.
if #expiries > 0 then redis.call('ZADD', active, 'XX', unpack(expiries)) end
return lost
