#!lua flags=allow-oom
-- remove: removes jobs that are not active, with all their columns and keys.
-- KEYS waiting delayed completed failed blocked expires requests answers unique unique_until events removed parked held held_by admitted unspent openings wake start_by end_by keys limits weights jobs priorities attempts errors results progress logs replaced reruns unserved
-- ARGV now, request; then ids
-- RETURNS per id the state before the removal, or '' (unknown id or active job: nothing changed)
local waiting, delayed, completed, failed, blocked, expires, requests, answers, unique, unique_until, events, removed, parked, held, held_by, admitted, unspent, openings, wake, start_by, end_by, keys, limits, weights, jobs = unpack(KEYS)
local unserved = KEYS[#KEYS]
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

-- shared: unhold
-- Take a job out of held. Returns its place, or nil if it is not held.
local function unhold(id)
    local place = redis.call('ZSCORE', held, id)
    if not place then return nil end
    redis.call('ZREM', held, id)
    local at = string.format('%016.0f', tonumber(place) + 4503599627370496)
    redis.call('ZREM', held_by, (redis.call('HGET', limits, id) or '') .. '\0' .. at .. '\0' .. id)
    return tonumber(place)
end
-- end

-- shared: slots
-- A job with several slots has as many places under each key, and while it is active under the key `queue`. The first place of a
-- key is "key NUL id", the others follow it.
local function free_slots(id, weight, names)
    if tonumber(string.match(weight, '^%d+') or 1) == 1 then return end
    for key in string.gmatch((names or '') .. '\nqueue', '[^\n]+') do
        redis.call('ZREMRANGEBYLEX', admitted, '[' .. key .. '\0' .. id .. '\0', '(' .. key .. '\0' .. id .. '\1')
    end
end
-- end

-- shared: give back
-- Jobs that leave waiting or active without a worker give back their places under their limit keys, and the tokens that they have
-- not spent. A worker is woken, and its admit looks at these keys first.
local function give_back(list)
    if #list == 0 or redis.call('EXISTS', limits, weights) == 0 then return end
    local rows = redis.call('HMGET', weights, unpack(list))
    for i, names in ipairs(redis.call('HMGET', limits, unpack(list))) do
        if rows[i] then free_slots(list[i], rows[i], names) end
        for key in string.gmatch(names or '', '[^\n]+') do
            redis.call('ZREM', admitted, key .. '\0' .. list[i])
            redis.call('ZREM', unspent, key .. '\0' .. list[i])
            redis.call('ZADD', openings, '-inf', key)
            redis.call('ZADD', wake, 0, 't')
        end
    end
end
-- end

-- shared: follow
-- A job that waits in `blocked` for the end of another one with its key (keep_last) is due when that one has ended. forward then
-- gives it its place. The row of the key names both jobs.
local function follow(list)
    if #list == 0 or redis.call('EXISTS', blocked) == 0 then return end
    for i, names in ipairs(redis.call('HMGET', keys, unpack(list))) do
        for key in string.gmatch(names and names .. '\n' or '', '([^\t\n]+)\n') do
            local id, other = string.match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ %S+ (%S+)$')
            local due = other == list[i] and redis.call('ZSCORE', blocked, id)
            if due then
                redis.call('ZREM', blocked, id)
                redis.call('ZADD', delayed, math.max(now, tonumber(due)), id)
                redis.call('ZADD', wake, 0, 't')
            end
        end
    end
end
-- end

-- shared: release keys
-- A job that is removed takes its keys along. If the row of a key names another job too, that one may still hold it.
local function release(list)
    for i, names in ipairs(redis.call('HMGET', keys, unpack(list))) do
        for key in string.gmatch(names and names .. '\n' or '', '([^\t\n]+)\n') do
            local id, rest, other = string.match(redis.call('HGET', unique, key) or '', '^(%S+) (%S+ ?%S*) ?(%S*)$')
            if other == list[i] then
                redis.call('HSET', unique, key, id .. ' ' .. (string.gsub(rest, ' %-$', '')))
            elseif id == list[i] and other ~= '' then
                redis.call('HSET', unique, key, other .. ' -')
            elseif id == list[i] then
                redis.call('HDEL', unique, key)
                redis.call('ZREM', unique_until, key)
            end
        end
    end
end
-- end

-- shared: unpark
-- A delayed job whose type no worker knew is in `parked`, too. Its row in `unserved` has the time that it was delayed for. If it
-- leaves earlier, the rest of this time does not count.
local function unpark(id)
    local times, spent, kind = string.match(redis.call('HGET', unserved, id) or '', '^(%d+) (%d+) (.+)$')
    if not kind or redis.call('ZREM', parked, kind .. '\0' .. id) == 0 then return end
    local early = math.max(0, (tonumber(redis.call('ZSCORE', delayed, id)) or 0) - now)
    redis.call('HSET', unserved, id, string.format('%s %.0f', times, math.max(0, spent - early)))
end
-- end

-- The types of jobs, for those who hear of the removal: one a line, '' for those that cannot be read. A spec begins with its type.
-- Specs may be large, so those behind the first MB are not read.
local function types_of(list)
    local types, bytes = {}, 0
    for i, id in ipairs(list) do
        local spec = bytes < 1000000 and redis.call('HGET', jobs, id) or ''
        types[i] = string.match(string.sub(spec, 1, 1024), '^{"type":"([^"\\]+)"') or ''
        bytes = bytes + #spec
    end
    return table.concat(types, '\n')
end

local states, gone, freed = {}, {}, {}
for i = 3, #ARGV do
    local id, state = ARGV[i], ''
    unpark(id)
    if redis.call('ZREM', waiting, id) == 1 then state = 'waiting'
    elseif redis.call('ZREM', delayed, id) == 1 then state = 'delayed'
    elseif redis.call('ZREM', completed, id) == 1 then state = 'completed'
    elseif redis.call('ZREM', failed, id) == 1 then state = 'failed'
    elseif redis.call('ZREM', blocked, id) == 1 then state = 'blocked'
    elseif unhold(id) then state = 'held' end
    if state ~= '' then gone[#gone + 1] = id end
    -- Jobs that need fewer slots may wait behind one that was held.
    if state == 'waiting' or state == 'held' and redis.call('HEXISTS', weights, id) == 1 then freed[#freed + 1] = id end
    states[i - 2] = state
end
give_back(freed)
if #gone > 0 then
    follow(gone)
    release(gone)
    for _, set in ipairs({ expires, start_by, end_by }) do redis.call('ZREM', set, unpack(gone)) end
    local types = types_of(gone)
    -- From `keys` on, KEYS are the columns.
    for i = 22, #KEYS do redis.call('HDEL', KEYS[i], unpack(gone)) end
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'removed', table.concat(gone, ' '), 'types', types)
    -- The reply to the enqueue of such a job may have been lost. Its repetition must not bring the job back.
    local times = {}
    for i, id in ipairs(gone) do times[2 * i - 1], times[2 * i] = now, id end
    redis.call('ZADD', removed, unpack(times))
    redis.call('ZREMRANGEBYRANK', removed, 0, -10001)
end
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
