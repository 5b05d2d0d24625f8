#!lua flags=allow-oom
-- promote: delayed jobs go to waiting now, whatever their time.
-- KEYS delayed waiting priorities meta wake
-- ARGV now; then ids
-- RETURNS per id "delayed", or '' (not delayed: nothing changed)
local delayed, waiting, priorities, meta, wake = unpack(KEYS)
local states, moved = {}, 0
for i = 2, #ARGV do
    local id = ARGV[i]
    states[i - 1] = ''
    if redis.call('ZREM', delayed, id) == 1 then
        local priority, lifo = string.match(redis.call('HGET', priorities, id) or '0', '^(%-?%d+)(L?)$')
        local place = lifo == 'L' and -redis.call('HINCRBY', meta, 'lifo', 1) or redis.call('HINCRBY', meta, 'fifo', 1)
        redis.call('ZADD', waiting, tonumber(priority) * 4398046511104 + 2199023255552 + place, id)
        states[i - 1] = 'delayed'
        moved = moved + 1
    end
end
if moved > 0 then redis.call('ZADD', wake, 0, 't') end
return states
