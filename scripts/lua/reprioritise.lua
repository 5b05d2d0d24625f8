#!lua flags=allow-oom
-- reprioritise: gives jobs that have not started another priority. They keep their order in time.
-- KEYS waiting delayed blocked priorities requests answers held held_by limits arrivals wake meta
-- ARGV now, request, priority; then ids
-- RETURNS per id its state, or '' (unknown id, active or finished job: nothing changed)
local waiting, delayed, blocked, priorities, requests, answers, held, held_by, limits, arrivals, wake, meta = unpack(KEYS)
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

-- shared: hold
-- A job with limits or a group waits in held until admit finds room under all of its keys. Its line is the row of its group and keys.
local function hold(id, line, place)
    redis.call('ZADD', held, string.format('%.0f', place), id)
    redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', place + 4503599627370496) .. '\0' .. id)
    redis.call('ZADD', arrivals, 'LT', string.format('%.0f', place), line)
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

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

local priority, states = tonumber(ARGV[3]), {}
local aging = aging_of(redis.call('HGET', meta, 'aging'))
-- Keep the place within the priority, which is the part below 2^42. With aging it is what remains without the worth of the priority.
local function with_priority(id, score)
    if aging <= 0 then return priority * 4398046511104 + score % 4398046511104 end
    local before = tonumber(string.match(redis.call('HGET', priorities, id) or '', '^%-?%d+')) or 0
    return score + (priority - before) * 1000 * aging
end
for i = 4, #ARGV do
    local id, state = ARGV[i], ''
    local score = redis.call('ZSCORE', waiting, id)
    if score then
        state = 'waiting'
        redis.call('ZADD', waiting, string.format('%.0f', with_priority(id, tonumber(score))), id)
    elseif redis.call('ZSCORE', delayed, id) then state = 'delayed'
    elseif redis.call('ZSCORE', blocked, id) then state = 'blocked'
    else
        local place = unhold(id)
        if place then
            state = 'held'
            hold(id, redis.call('HGET', limits, id) or '', with_priority(id, place))
            redis.call('ZADD', wake, 0, 't')
        end
    end
    if state ~= '' then
        local lifo = string.match(redis.call('HGET', priorities, id) or '', 'L?F?$')
        redis.call('HSET', priorities, id, ARGV[3] .. lifo)
    end
    states[i - 3] = state
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
