#!lua flags=allow-oom
-- release: held jobs go back from active to the front of their priority in waiting, uncharged.
-- KEYS active leases waiting priorities meta wake
-- ARGV now; then per job: id, token
-- RETURNS the ids that were not held (they changed nothing)
local active, leases, waiting, priorities, meta, wake = unpack(KEYS)
local lost, released = {}, 0
-- backwards: each goes in front of the one before it, so the first stays first
for i = #ARGV - 1, 2, -2 do
    local id, token = ARGV[i], ARGV[i + 1]
    if redis.call('HGET', leases, id) == token then
        redis.call('ZREM', active, id)
        redis.call('HDEL', leases, id)
        local priority = string.match(redis.call('HGET', priorities, id) or '0', '^%-?%d+')
        local place = -redis.call('HINCRBY', meta, 'lifo', 1)
        redis.call('ZADD', waiting, tonumber(priority) * 4398046511104 + 2199023255552 + place, id)
        released = released + 1
    else
        lost[#lost + 1] = id
    end
end
if released > 0 then redis.call('ZADD', wake, 0, 't') end
return lost
