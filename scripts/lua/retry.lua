#!lua
-- retry: finished jobs go back to waiting, with fresh attempts; the errors of earlier ones stay.
-- KEYS failed completed waiting delayed active blocked priorities attempts results progress unserved expires keys unique unique_until meta wake
-- ARGV now; then ids
-- RETURNS per id the state it stood in; '' (not there, or unfinished: nothing changed); or "key <id>": that job holds its key now
local failed, completed, waiting, delayed, active, blocked, priorities, attempts, results, progress, unserved, expires, keys, unique, unique_until, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local states, moved = {}, 0

-- the keys that a job holds while it is unfinished; those with a time of their own (behind a tab) had their time
local function own_keys(id)
    return string.gmatch('\n' .. (redis.call('HGET', keys, id) or ''), '\n([^\t\n][^\n]*)')
end

local function rival(id)
    for key in own_keys(id) do
        local other = string.match(redis.call('HGET', unique, key) or '', '^%S+')
        if other and other ~= id and not redis.call('ZSCORE', unique_until, key) and (
            redis.call('ZSCORE', waiting, other) or redis.call('ZSCORE', delayed, other)
            or redis.call('ZSCORE', active, other) or redis.call('ZSCORE', blocked, other)) then
            return other
        end
    end
    return nil
end

for i = 2, #ARGV do
    local id, state = ARGV[i], ''
    local set = redis.call('ZSCORE', failed, id) and failed or redis.call('ZSCORE', completed, id) and completed
    if set then
        local other = rival(id)
        if other then
            state = 'key ' .. other
        else
            state = set == failed and 'failed' or 'completed'
            redis.call('ZREM', set, id)
            redis.call('ZREM', expires, id)
            for _, column in ipairs({ attempts, results, progress, unserved }) do redis.call('HDEL', column, id) end
            for key in own_keys(id) do
                if not redis.call('ZSCORE', unique_until, key) then redis.call('HSET', unique, key, id .. ' -') end
            end
            local priority, lifo = string.match(redis.call('HGET', priorities, id) or '0', '^(%-?%d+)(L?)$')
            local place = lifo == 'L' and -redis.call('HINCRBY', meta, 'lifo', 1) or redis.call('HINCRBY', meta, 'fifo', 1)
            redis.call('ZADD', waiting, tonumber(priority) * 4398046511104 + 2199023255552 + place, id)
            moved = moved + 1
        end
    end
    states[i - 1] = state
end
if moved > 0 then redis.call('ZADD', wake, 0, 't') end
return states
