#!lua flags=allow-oom
-- reschedule: held jobs whose attempt failed go from active to delayed; the attempt is charged.
-- KEYS active leases delayed attempts errors metrics wake
-- ARGV now; then per job: id, token, attempt (charged so far, this one included), delay ms, error record (one line of JSON)
-- RETURNS the ids that were not held (they changed nothing)
local active, leases, delayed, attempts, errors, metrics, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local retried, lost = 0, {}
for i = 2, #ARGV, 5 do
    local id, token, attempt, delay, record = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4]
    if redis.call('HGET', leases, id) == token then
        redis.call('ZREM', active, id)
        redis.call('HDEL', leases, id)
        redis.call('HSET', attempts, id, attempt)
        local text = redis.call('HGET', errors, id)
        text = text and text .. '\n' .. record or record
        -- the column is bounded: the oldest attempts go first
        while #text > 65536 and string.find(text, '\n', 1, true) do text = string.sub(text, string.find(text, '\n', 1, true) + 1) end
        redis.call('HSET', errors, id, text)
        redis.call('ZADD', delayed, now + delay, id)
        retried = retried + 1
    else
        lost[#lost + 1] = id
    end
end
if retried > 0 then
    -- somebody has to know the new due time; a worker that has just settled may be full already
    redis.call('ZADD', wake, 0, 't')
    redis.call('HINCRBY', metrics, 'retried', retried)
    redis.call('HINCRBY', metrics, 'm:' .. string.format('%.0f', math.floor(now / 60000)) .. ':retried', retried)
end
return lost
