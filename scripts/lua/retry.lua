#!lua
-- retry: finished jobs go back to waiting, with fresh attempts; the errors of earlier ones stay.
-- KEYS failed completed waiting delayed active blocked priorities attempts results progress unserved expires keys unique unique_until meta wake requests answers
-- ARGV now, request; then ids
-- RETURNS per id the state it stood in; '' (not there, or unfinished: nothing changed); or "key <id>": that job holds its key now
local failed, completed, waiting, delayed, active, blocked, priorities, attempts, results, progress, unserved, expires, keys, unique, unique_until, meta, wake, requests, answers = unpack(KEYS)
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

-- shared: place
-- Each priority has 2^42 places, and its sequence starts in their middle. A damaged row counts as priority 0.
local function place(id)
    local priority, lifo = string.match(redis.call('HGET', priorities, id) or '', '^(%-?%d+)(L?)$')
    local turn = lifo == 'L' and -redis.call('HINCRBY', meta, 'lifo', 1) or redis.call('HINCRBY', meta, 'fifo', 1)
    return (tonumber(priority) or 0) * 4398046511104 + 2199023255552 + turn
end
-- end

-- the keys that a job holds while it is unfinished; those with a time of their own (behind a tab) had their time
local function own_keys(id)
    return string.gmatch('\n' .. (redis.call('HGET', keys, id) or ''), '\n([^\t\n][^\n]*)')
end

-- Another job that holds one of them now, by the same rule as in enqueue.lua: until the key's own time is over, or while
-- the holder is unfinished.
local function rival(id)
    for key in own_keys(id) do
        local other = string.match(redis.call('HGET', unique, key) or '', '^%S+')
        if other and other ~= id then
            local till = redis.call('ZSCORE', unique_until, key)
            if till then
                if tonumber(till) > now then return other end
            elseif redis.call('ZSCORE', waiting, other) or redis.call('ZSCORE', delayed, other)
                or redis.call('ZSCORE', active, other) or redis.call('ZSCORE', blocked, other) then
                return other
            end
        end
    end
    return nil
end

local states, moved = {}, 0
for i = 3, #ARGV do
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
            for _, column in ipairs({ results, progress, unserved }) do redis.call('HDEL', column, id) end
            -- no runs charged, and able to run since now
            redis.call('HSET', attempts, id, string.format('0 %.0f', now))
            for key in own_keys(id) do
                redis.call('HSET', unique, key, id .. ' -')
                -- the time of a later holder that is over: with it, this job's key would count as free
                redis.call('ZREM', unique_until, key)
            end
            redis.call('ZADD', waiting, place(id), id)
            moved = moved + 1
        end
    end
    states[i - 2] = state
end
if moved > 0 then redis.call('ZADD', wake, 0, 't') end
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
