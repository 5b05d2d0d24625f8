#!lua flags=allow-oom
-- lapse: waiting, delayed, held, blocked -> failed: jobs that did not start in time (`expires`), or can no longer end in time (`deadline`).
-- KEYS waiting delayed active blocked held failed start_by end_by jobs errors attempts expires events metrics parked unserved held_by limits weights admitted unspent openings wake keys unique requests answers
-- ARGV now, request, page, error record of a job that did not start in time (one line of JSON, attempt 0), the same for a job past its deadline,
--   bytes of specs after which the script stops
-- RETURNS 1 if more jobs may be late, else 0; then the ids of the jobs that ended
local waiting, delayed, active, blocked, held, failed, start_by, end_by, jobs, errors, attempts, expires, events, metrics, parked, unserved, held_by, limits, weights, admitted, unspent, openings, wake, keys, unique, requests, answers = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local page = tonumber(ARGV[3])

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
if redis.call('EXISTS', start_by, end_by) == 0 then return { 0 } end

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

local list, seen, more = {}, {}, 0
local function look_at(ids)
    for _, id in ipairs(ids) do
        if not seen[id] then list[#list + 1], seen[id] = id, true end
    end
end

for _, set in ipairs({ start_by, end_by }) do
    local late = redis.call('ZRANGE', set, 0, now, 'BYSCORE', 'LIMIT', 0, page)
    if #late == page then more = 1 end
    look_at(late)
    -- Jobs that ran when they became late have a negative score. They are looked at in turns, so that long runs do not hide others.
    local ran = redis.call('ZCOUNT', set, '-inf', '(0')
    local first = ran > page and now % ran or 0
    if ran > 0 then look_at(redis.call('ZRANGE', set, first, math.min(first + page, ran) - 1)) end
end
-- A late job at the front of waiting stops claims, so it is ended first of all.
look_at(redis.call('ZRANGE', waiting, 0, page - 1))
if #list == 0 then return { 0 } end

local starts, ends = redis.call('ZMSCORE', start_by, unpack(list)), redis.call('ZMSCORE', end_by, unpack(list))
local runs, running = redis.call('HMGET', attempts, unpack(list)), redis.call('ZMSCORE', active, unpack(list))
local sets, scores = { waiting, delayed, held, blocked }, {}
for n, set in ipairs(sets) do scores[n] = redis.call('ZMSCORE', set, unpack(list)) end

-- The handler of a running job may hand it back without an attempt. Then it is late, and claim has to see that. The score is the
-- negative time from now on.
local function keep(set, id, by)
    if by > 0 then redis.call('ZADD', set, string.format('%.0f', -by), id) end
end

local ended, freed, bytes = {}, {}, 0
for i, id in ipairs(list) do
    local from, to, state = tonumber(starts[i] or nil), tonumber(ends[i] or nil), nil
    local late, over = from and math.abs(from) <= now, to and math.abs(to) <= now
    for n = 1, #sets do state = state or scores[n][i] and sets[n] end
    if late and (tonumber(string.match(runs[i] or '', '^%d+')) or 0) > 0 then
        -- A first attempt was charged, so the job has started.
        redis.call('ZREM', start_by, id)
        late = false
    end
    if not (late or over) then
        -- nothing to do
    elseif running[i] then
        if late then keep(start_by, id, from) end
        if over then keep(end_by, id, to) end
    elseif bytes > tonumber(ARGV[6]) then
        more = 1
    else
        redis.call('ZREM', start_by, id)
        redis.call('ZREM', end_by, id)
        -- Otherwise it has ended before, or was removed.
        if state then
            unpark(id)
            if state == held then unhold(id) else redis.call('ZREM', state, id) end
            add_error(id, over and ARGV[5] or ARGV[4])
            redis.call('ZADD', failed, now, id)
            local spec = redis.call('HGET', jobs, id) or ''
            bytes = bytes + #spec
            -- Quotes inside a JSON string are escaped. So this mark matches only where a field begins.
            local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
            local retention = string.match(string.sub(spec, 1, payload - 1), ',"retention":(%d+)')
            if retention then redis.call('ZADD', expires, now + tonumber(retention), id) end
            ended[#ended + 1] = id
            -- Jobs that need fewer slots may wait behind one that was held.
            if state == waiting or state == held and redis.call('HEXISTS', weights, id) == 1 then freed[#freed + 1] = id end
        end
    end
end
give_back(freed)
follow(ended)
if #ended > 0 then
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'expired', table.concat(ended, ' '))
    count('failed', #ended)
    count('expired', #ended)
end
local states = { more, unpack(ended) }
if #ended == 0 then return states end
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
