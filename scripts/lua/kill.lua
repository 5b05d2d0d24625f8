#!lua flags=allow-oom
-- kill: unfinished jobs go to failed. An active one loses its lease at once, and its worker is told over the control channel.
-- KEYS waiting delayed active blocked failed leases errors attempts events metrics control
--   control is a channel, declared as a key so that it shares the queue's hash tag
-- ARGV now, error record (one line of JSON, attempt 0); then ids
-- RETURNS per id the state it stood in, or '' (not there, or finished: nothing changed)
local waiting, delayed, active, blocked, failed, leases, errors, attempts, events, metrics, control = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local states, killed = {}, {}
for i = 3, #ARGV do
    local id, state = ARGV[i], ''
    if redis.call('ZREM', waiting, id) == 1 then state = 'waiting'
    elseif redis.call('ZREM', delayed, id) == 1 then state = 'delayed'
    elseif redis.call('ZREM', blocked, id) == 1 then state = 'blocked'
    elseif redis.call('ZREM', active, id) == 1 then
        state = 'active'
        local token = redis.call('HGET', leases, id)
        redis.call('HDEL', leases, id)
        redis.call('HINCRBY', attempts, id, 1)
        redis.call('PUBLISH', control, 'kill ' .. id .. ' ' .. (token or ''))
    end
    if state ~= '' then
        local text = redis.call('HGET', errors, id)
        text = text and text .. '\n' .. ARGV[2] or ARGV[2]
        -- the column is bounded: the oldest attempts go first
        while #text > 65536 and string.find(text, '\n', 1, true) do text = string.sub(text, string.find(text, '\n', 1, true) + 1) end
        redis.call('HSET', errors, id, text)
        redis.call('ZADD', failed, now, id)
        killed[#killed + 1] = id
    end
    states[i - 2] = state
end
if #killed > 0 then
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'failed', table.concat(killed, ' '))
    redis.call('HINCRBY', metrics, 'failed', #killed)
    redis.call('HINCRBY', metrics, 'm:' .. string.format('%.0f', math.floor(now / 60000)) .. ':failed', #killed)
end
return states
