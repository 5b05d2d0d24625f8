#!lua flags=allow-oom
-- resume: claims go on, and one worker is told.
-- KEYS meta wake requests answers
-- ARGV now, request
-- RETURNS "paused", or '' when the queue was running already
local meta, wake, requests, answers = unpack(KEYS)
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

redis.call('ZADD', wake, 0, 't')
local states = { redis.call('HDEL', meta, 'paused') == 1 and 'paused' or '' }
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
