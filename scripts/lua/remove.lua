#!lua flags=allow-oom
-- remove: jobs that are not active go, with everything that is known of them.
-- KEYS waiting delayed completed failed blocked expires requests answers unique unique_until events keys jobs priorities attempts errors results progress logs unserved
-- ARGV now, request; then ids
-- RETURNS per id the state it stood in, or '' (not there, or active: nothing changed)
local waiting, delayed, completed, failed, blocked, expires, requests, answers, unique, unique_until, events, keys = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: repeated
-- A request whose reply was lost is sent again, and a frozen server may execute both. The second gets the answer of the first,
-- whatever became of the jobs in between.
local recorded = redis.call('HGET', answers, ARGV[2])
if recorded then
    local words = {}
    for word in string.gmatch(recorded, '([^\n]*)\n') do words[#words + 1] = word end
    return words
end
-- end

local states, removed = {}, {}
for i = 3, #ARGV do
    local id, state = ARGV[i], ''
    if redis.call('ZREM', waiting, id) == 1 then state = 'waiting'
    elseif redis.call('ZREM', delayed, id) == 1 then state = 'delayed'
    elseif redis.call('ZREM', completed, id) == 1 then state = 'completed'
    elseif redis.call('ZREM', failed, id) == 1 then state = 'failed'
    elseif redis.call('ZREM', blocked, id) == 1 then state = 'blocked' end
    if state ~= '' then removed[#removed + 1] = id end
    states[i - 2] = state
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
    for i = 12, #KEYS do redis.call('HDEL', KEYS[i], unpack(removed)) end
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'removed', table.concat(removed, ' '))
end
-- shared: record
redis.call('HSET', answers, ARGV[2], table.concat(states, '\n') .. '\n')
redis.call('ZADD', requests, now, ARGV[2])
-- nobody repeats a request after two minutes
local old = redis.call('ZRANGE', requests, '-inf', now - 120000, 'BYSCORE', 'LIMIT', 0, 100)
if #old > 0 then
    redis.call('HDEL', answers, unpack(old))
    redis.call('ZREM', requests, unpack(old))
end
-- end
return states
