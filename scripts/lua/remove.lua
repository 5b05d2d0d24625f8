#!lua flags=allow-oom
-- remove: jobs that are not active go, with everything that is known of them.
-- KEYS waiting delayed completed failed blocked expires unique unique_until events keys jobs priorities attempts errors results progress logs unserved
-- ARGV now; then ids
-- RETURNS per id the state it stood in, or '' (not there, or active: nothing changed)
local waiting, delayed, completed, failed, blocked, expires, unique, unique_until, events, keys = unpack(KEYS)
local states, removed = {}, {}
for i = 2, #ARGV do
    local id, state = ARGV[i], ''
    if redis.call('ZREM', waiting, id) == 1 then state = 'waiting'
    elseif redis.call('ZREM', delayed, id) == 1 then state = 'delayed'
    elseif redis.call('ZREM', completed, id) == 1 then state = 'completed'
    elseif redis.call('ZREM', failed, id) == 1 then state = 'failed'
    elseif redis.call('ZREM', blocked, id) == 1 then state = 'blocked' end
    if state ~= '' then removed[#removed + 1] = id end
    states[i - 1] = state
end
if #removed > 0 then
    for _, names in ipairs(redis.call('HMGET', keys, unpack(removed))) do
        for key in string.gmatch(names or '', '\t?([^\n]+)') do
            local value = redis.call('HGET', unique, key)
            local holder = string.match(value or '', '^%S+')
            for _, id in ipairs(removed) do
                if holder == id then
                    redis.call('HDEL', unique, key)
                    redis.call('ZREM', unique_until, key)
                end
            end
        end
    end
    redis.call('ZREM', expires, unpack(removed))
    -- from `keys` on, KEYS are the columns
    for i = 10, #KEYS do redis.call('HDEL', KEYS[i], unpack(removed)) end
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'removed', table.concat(removed, ' '))
end
return states
