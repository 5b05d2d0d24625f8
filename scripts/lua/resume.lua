#!lua flags=allow-oom
-- resume: removes the flag that stops claims, and wakes one worker.
-- KEYS meta wake requests answers
-- ARGV now, request
-- RETURNS "paused", or '' if the queue was not paused (nothing changed)
local meta, wake, requests, answers = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: repeated
-- A caller that did not get the reply sends its request again, and a frozen server may then execute both. The second one returns
-- the recorded answer of the first, even if the jobs have moved since.
local recorded = redis.call('HGET', answers, ARGV[2])
if recorded then
    local words = {}
    for word in string.gmatch(recorded, '([^\n]*)\n') do words[#words + 1] = word end
    return words
end
-- end

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

redis.call('ZADD', wake, 0, 't')
local states = { redis.call('HDEL', meta, 'paused') == 1 and 'paused' or '' }
if states[1] ~= '' then counted() end
-- shared: record
redis.call('HSET', answers, ARGV[2], table.concat(states, '\n') .. '\n')
redis.call('ZADD', requests, now, ARGV[2])
-- Answers that a dropped queue left behind have a time to live. From now on they are the answers of a queue in use.
redis.call('PERSIST', answers)
redis.call('PERSIST', requests)
-- No caller repeats a request after two minutes.
local old = redis.call('ZRANGE', requests, '-inf', now - 120000, 'BYSCORE', 'LIMIT', 0, 100)
if #old > 0 then
    redis.call('HDEL', answers, unpack(old))
    redis.call('ZREM', requests, unpack(old))
end
-- end
return states
