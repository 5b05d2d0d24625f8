#!lua flags=allow-oom
-- fail: held jobs go from active to failed for good.
-- KEYS active leases failed attempts errors expires events metrics
-- ARGV now; then per job: id, token, attempt (charged so far, this one included), error record (one line of JSON), retention ms ('': the queue's)
-- RETURNS how many stand in failed now; then the ids that were not held (they changed nothing)
local active, leases, failed, attempts, errors, expires, events, metrics = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local ids, lost = {}, { 0 }
for i = 2, #ARGV, 5 do
    local id, token, attempt, record, retention = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    if redis.call('HGET', leases, id) == token then
        redis.call('ZREM', active, id)
        redis.call('HDEL', leases, id)
        redis.call('HSET', attempts, id, attempt)
        local text = redis.call('HGET', errors, id)
        text = text and text .. '\n' .. record or record
        -- the column is bounded: the oldest attempts go first
        while #text > 65536 and string.find(text, '\n', 1, true) do text = string.sub(text, string.find(text, '\n', 1, true) + 1) end
        redis.call('HSET', errors, id, text)
        redis.call('ZADD', failed, now, id)
        if retention ~= '' then redis.call('ZADD', expires, now + tonumber(retention), id) end
        ids[#ids + 1] = id
    else
        lost[#lost + 1] = id
    end
end
if #ids > 0 then
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'failed', table.concat(ids, ' '))
    redis.call('HINCRBY', metrics, 'failed', #ids)
    redis.call('HINCRBY', metrics, 'm:' .. string.format('%.0f', math.floor(now / 60000)) .. ':failed', #ids)
end
lost[1] = redis.call('ZCARD', failed)
return lost
