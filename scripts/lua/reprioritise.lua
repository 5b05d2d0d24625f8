#!lua flags=allow-oom
-- reprioritise: unstarted jobs get another priority and keep their place in time.
-- KEYS waiting delayed blocked priorities
-- ARGV now, priority; then ids
-- RETURNS per id the state it stands in, or '' (not there, running or finished: nothing changed)
local waiting, delayed, blocked, priorities = unpack(KEYS)
local priority, states = tonumber(ARGV[2]), {}
for i = 3, #ARGV do
    local id, state = ARGV[i], ''
    local score = redis.call('ZSCORE', waiting, id)
    if score then
        state = 'waiting'
        -- the sequence below 2^42 stays
        local place = tonumber(score) % 4398046511104
        redis.call('ZADD', waiting, priority * 4398046511104 + place, id)
    elseif redis.call('ZSCORE', delayed, id) then state = 'delayed'
    elseif redis.call('ZSCORE', blocked, id) then state = 'blocked' end
    if state ~= '' then
        local lifo = string.match(redis.call('HGET', priorities, id) or '', 'L?$')
        redis.call('HSET', priorities, id, ARGV[2] .. lifo)
    end
    states[i - 2] = state
end
return states
