#!lua flags=allow-oom
-- kill: moves unfinished jobs to failed. An active job loses its lease at once, and a control message tells its worker.
-- KEYS waiting delayed active blocked failed leases errors attempts expires events metrics control requests answers parked unserved held held_by limits weights admitted unspent openings wake keys unique
--   control is a channel, declared as a key so that it shares the queue's hash tag
-- ARGV now, request, error record (one line of JSON, attempt 0), retention ms ('': the queue's); then ids
-- RETURNS per id the state before the kill, or '' (unknown id or finished job: nothing changed)
local waiting, delayed, active, blocked, failed, leases, errors, attempts, expires, events, metrics, control, requests, answers, parked, unserved, held, held_by, limits, weights, admitted, unspent, openings, wake, keys, unique = unpack(KEYS)
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

-- shared: error column
local function add_error(id, record)
    local text, from = redis.call('HGET', errors, id), 1
    text = text and text .. '\n' .. record or record
    -- The column is bounded. Drop the oldest attempts first.
    while #text - from >= 65536 do
        local line = string.find(text, '\n', from, true)
        if not line then break end
        from = line + 1
    end
    redis.call('HSET', errors, id, string.sub(text, from))
end
-- end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: count
local function count(what, n)
    add(what, n)
    add('m:' .. string.format('%.0f', math.floor(now / 60000)) .. ':' .. what, n)
end
-- end

-- shared: attempts
-- A row has up to four numbers: the runs that were charged; the time from which the job can run, if it was put back since its
-- enqueue; how often it was snoozed, and how often it was rate limited, if it was. The last two are passed on as one text.
local function read_attempts(id)
    local runs, since, snoozes = string.match(redis.call('HGET', attempts, id) or '', '^(%d+) ?(%d*) ?(%d* ?%d*)')
    return tonumber(runs) or 0, tonumber(since), snoozes or ''
end

local function write_attempts(id, runs, since, snoozes)
    local row = string.format('%.0f', runs)
    if since then row = row .. string.format(' %.0f', since) end
    if since and snoozes ~= '' then row = row .. ' ' .. snoozes end
    redis.call('HSET', attempts, id, row)
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

local states, killed, freed = {}, {}, {}
for i = 5, #ARGV do
    local id, state = ARGV[i], ''
    unpark(id)
    if redis.call('ZREM', waiting, id) == 1 then state = 'waiting'
    elseif redis.call('ZREM', delayed, id) == 1 then state = 'delayed'
    elseif redis.call('ZREM', blocked, id) == 1 then state = 'blocked'
    elseif unhold(id) then state = 'held'
    elseif redis.call('ZREM', active, id) == 1 then
        state = 'active'
        local token = redis.call('HGET', leases, id)
        redis.call('HDEL', leases, id)
        local runs, since, snoozes = read_attempts(id)
        write_attempts(id, runs + 1, since, snoozes)
        redis.call('PUBLISH', control, 'kill ' .. id .. ' ' .. (token or ''))
    end
    if state ~= '' then
        add_error(id, ARGV[3])
        redis.call('ZADD', failed, now, id)
        if ARGV[4] ~= '' then redis.call('ZADD', expires, now + tonumber(ARGV[4]), id) end
        killed[#killed + 1] = id
        -- Jobs that need fewer slots may wait behind one that was held.
        if state == 'waiting' or state == 'active' or state == 'held' and redis.call('HEXISTS', weights, id) == 1 then freed[#freed + 1] = id end
    end
    states[i - 4] = state
end
give_back(freed)
follow(killed)
if #killed > 0 then
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'killed', table.concat(killed, ' '))
    count('failed', #killed)
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
