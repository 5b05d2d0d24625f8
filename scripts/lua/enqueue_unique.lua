#!lua
-- enqueue_unique: adds new jobs that have a key, or that belong to a request with a key. If an earlier job holds the key, that job may be changed instead.
-- KEYS waiting jobs meta wake delayed active blocked held completed failed priorities keys unique unique_until removed held_by limits weights arrivals groups attempts unserved replaced requests answers metrics undecided running start_by end_by reruns; leases errors expires events control admitted unspent openings
--   Leave out the keys after the semicolon when no job says kill_running or replace_all.
-- ARGV now, repeated (1: the reply to this call may have been lost); then per job: id, spec, options, uniqueness
--   options: as in enqueue, but without keys. '': none
--   uniqueness: two lines. The first one is the job's own key, or empty: "while for conflict delay wait width key"
--     while: queued, running, unfinished, ended (unfinished, and `for` ms after the end) or enqueued (`for` ms after the enqueue)
--     conflict: what happens if the key is held: return, fail, replace, replace_all, extend, keep_last or kill_running
--     delay: ms by which a replaced or extended job is put off; wait: ms after its enqueue when it is due at the latest (-1: neither)
--     width: bytes of the spec up to the end of its type
--   The second line is the key of the request, or empty: "ttl fingerprint key". The job does not take it along when it is removed.
-- RETURNS groups of five, only for jobs that were not written: position (from 1), id of the earlier job, its fingerprint, its state
--   ('': its row is gone), and what was done: returned, replaced, extended, or fail (refused). The first three are as in enqueue,
--   also the group 0, '', 'new', '', '' for a new queue, '' and 'full' if the group of the job is full, '' and 'lifo' if the queue has aging,
--   and '' and 'over' if the job is written, now or earlier, and the caller must call overflow for it.
-- This script does not have allow-oom: at maxmemory the server refuses the whole call before its first write.
local waiting, jobs, meta, wake, delayed, active, blocked, held, completed, failed, priorities, keys, unique, unique_until, removed, held_by, limits, weights, arrivals, groups, attempts, unserved, replaced, requests, answers, metrics, undecided, running, start_by, end_by, reruns, leases, errors, expires, events, control, admitted, unspent, openings = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local format, match = string.format, string.match

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- shared: turn
-- The numbers that give waiting its order. A damaged number starts again behind those of all jobs, and past the bound of rebase.lua,
-- which then gives all jobs low numbers. In a queue with aging `fifo` counts from 2^42 on, and the numbers of FIFO jobs are times: 2^42
-- and us of the clock. `aged` is the last one.
local function turn(counter, n)
    local last = redis.pcall('HINCRBY', meta, counter, n)
    if type(last) == 'table' or last < n or last > 2199023255552 then
        local facts = redis.call('HMGET', meta, 'aging', 'aged')
        if counter == 'fifo' and aging_of(facts[1]) > 0 then
            if type(last) == 'table' or last < 4398046511104 then redis.call('HSET', meta, 'fifo', string.format('%.0f', 4398046511104 + n)) end
            local first = 4398046511104 + 1000 * now
            last = (tonumber(facts[2]) or 0) + n
            -- A number that is more than a minute ahead was given by a wrong clock.
            if not (last >= first + n and last <= first + 60000000) then last = first + n end
            redis.call('HSET', meta, 'aged', string.format('%.0f', last))
        else
            last = 1649267441664 + n
            redis.call('HSET', meta, counter, string.format('%.0f', last))
        end
    end
    return last
end
-- end

-- shared: score
-- Each priority has 2^42 places, and its sequence starts in their middle. In a queue with aging a step of priority is worth as many
-- us of waiting as `aging` says in ms.
local aging
local function score_of(priority, number)
    if priority == 0 then return 2199023255552 + number end
    -- Without aging the numbers of FIFO jobs are smaller. So only jobs at the front have to ask.
    if aging == nil then aging = (number < 0 or number > 2199023255552) and aging_of(redis.call('HGET', meta, 'aging')) or 0 end
    return priority * (aging > 0 and 1000 * aging or 4398046511104) + 2199023255552 + number
end
-- end

-- shared: same job
-- Quotes inside a JSON string are escaped. So these marks match only where a field begins.
local function without_time(spec)
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local head = string.sub(spec, 1, payload - 1)
    for _, field in ipairs({ ',"at":%d+', ',"expires_at":%d+', ',"deadline_at":%d+' }) do head = string.gsub(head, field, '', 1) end
    -- The trace context of the producer is last, and its values are texts without braces.
    return head .. string.gsub(string.sub(spec, payload), ',"trace":{[^{}]*}}$', '}')
end

-- A client may use an id of its own again after the removal. Then `at`, the time of sending, is not before the removal. An id
-- that jobq made says the time itself, and is not used again.
local function was_removed(id, spec)
    local time = redis.call('ZSCORE', removed, id)
    if not time then return false end
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local at = string.match(string.sub(spec, 1, payload - 1), ',"at":(%d+)')
    return not at or tonumber(at) < tonumber(time)
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

-- shared: acts
-- meta names the rules with an action for jobs over their limit. overflow decides about a job under such a rule when it is due for
-- the first time, before admit looks at any job.
local acting
local function acts_on(line)
    if not acting then acting = redis.call('HGET', meta, 'over') or '' end
    if acting == '' then return false end
    for name in string.gmatch('\n' .. line, '\n([%w_][^:\n]*)') do
        if string.find(acting, '\n' .. name .. '\n', 1, true) then return true end
    end
    return false
end
-- end

-- shared: room of a group
-- A group may have a bound for the jobs that it holds.
local spaces = {}
local function is_full(line)
    local group = string.match(line, '^@([^\n]*)')
    if not group then return false end
    if not spaces[group] then
        local most = tonumber(string.match(redis.call('HGET', groups, group) or '', '^%S+ %S+ (%d+)$'))
        local from = '[@' .. group
        spaces[group] = most and most - redis.call('ZLEXCOUNT', held_by, from .. '\0', '(@' .. group .. '\1')
            - redis.call('ZLEXCOUNT', held_by, from .. '\n', '(@' .. group .. '\11') or math.huge
    end
    spaces[group] = spaces[group] - 1
    return spaces[group] < 0
end
-- end

-- shared: holder
-- The row of a key names the job that took it last, and a job that held it then and had not ended: "id fingerprint latest other".
-- A job holds a key as long as its own row says so: by the set that it stands in, or by the time of its end. A key with a ttl
-- is held until then, while the job has a row. A key with a fingerprint is that of a request, whose client gets the same answer
-- for the whole ttl, job or no job.
local QUEUED = { waiting = true, delayed = true, held = true, blocked = true }
local SETS = { { 'waiting', waiting }, { 'delayed', delayed }, { 'active', active }, { 'held', held }, { 'blocked', blocked },
    { 'completed', completed }, { 'failed', failed } }
local function state_of(id)
    for _, set in ipairs(SETS) do
        local score = redis.call('ZSCORE', set[2], id)
        if score then return set[1], tonumber(score) end
    end
    return nil
end

local function holder(key, mode, time)
    local id, fingerprint, other = match(redis.call('HGET', unique, key) or '', '^(%S+) (%S+) ?%S* ?(%S*)$')
    if not id then return nil end
    local till = redis.call('ZSCORE', unique_until, key)
    if till then
        local state, score = state_of(id)
        if tonumber(till) > now and (fingerprint ~= '-' or state) then return id, fingerprint, state or '', score end
        return nil
    end
    for _, one in ipairs({ id, other }) do
        local state, score = state_of(one)
        local holds = QUEUED[state]
        if mode ~= 'queued' then holds = holds or state == 'active' or mode == 'ended' and state and score + time > now end
        if holds then return one, fingerprint, state, score end
    end
    return nil
end
-- end

-- shared: running
-- Any number of jobs may wait with a key that only running jobs hold, so the row of the key does not name them all. From the first
-- such enqueue on, claims note in `running` which keys their jobs have, as "key NUL id". The row names those that ran before. A job
-- counts while it is active. Returns the running jobs with this key: the first one, or all of them.
local noted
local function running_with(key, all)
    if not noted then
        noted = redis.call('HGET', meta, 'running') or redis.call('HSET', meta, 'running', 1, 'limited', 1)
    end
    local first, other = match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ ?%S* ?(%S*)$')
    local found, seen, from = {}, {}, '[' .. key .. '\0'
    local function look(id)
        local runs = redis.call('ZSCORE', active, id)
        if runs and not seen[id] then found[#found + 1], seen[id] = id, true end
        return runs
    end
    for _, id in ipairs({ first, other }) do look(id) end
    while all or #found == 0 do
        local page = redis.call('ZRANGE', running, from, '(' .. key .. '\1', 'BYLEX', 'LIMIT', 0, 100)
        if #page == 0 then break end
        for _, member in ipairs(page) do
            if not look(string.sub(member, #key + 2)) then redis.call('ZREM', running, member) end
        end
        from = '(' .. page[#page]
    end
    return found
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

local kill, take_limits
if leases then
-- Only calls that kill running jobs or replace the options of a job have these keys. What follows is not indented, because shared pieces are the same in each script.

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

function kill(id, by)
    local token = redis.call('HGET', leases, id)
    redis.call('ZREM', active, id)
    redis.call('HDEL', leases, id)
    local runs, since, snoozes = read_attempts(id)
    write_attempts(id, runs + 1, since, snoozes)
    redis.call('PUBLISH', control, 'kill ' .. id .. ' ' .. (token or ''))
    add_error(id, format('{"attempt":0,"at":%.0f,"type":"Killed","message":"killed by the enqueue of job %s, which has the same key"}', now, by))
    redis.call('ZADD', failed, now, id)
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'killed', id)
    count('failed', 1)
    -- A payload may have a field of this name too.
    local spec = redis.call('HGET', jobs, id) or ''
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local retention = match(string.sub(spec, 1, payload - 1), ',"retention":(%d+)')
    if retention then redis.call('ZADD', expires, now + tonumber(retention), id) end
    give_back({ id })
    follow({ id })
end

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

-- Gives a job that waits the limits, the group, the slots and the costs of the new one. A job in waiting was admitted under the
-- earlier ones, so it goes back to held. It keeps its place.
function take_limits(id, job, state)
    local line, weight = redis.call('HGET', limits, id) or '', redis.call('HGET', weights, id) or ''
    if line == job.under and weight == job.weight then return end
    local place
    if state == 'waiting' then
        place = redis.call('ZSCORE', waiting, id)
        redis.call('ZREM', waiting, id)
        give_back({ id })
    elseif state == 'held' then
        place = unhold(id)
        if weight ~= '' then give_back({ id }) end
    end
    if job.under ~= '' then redis.call('HSET', limits, id, job.under) else redis.call('HDEL', limits, id) end
    if job.weight ~= '' then redis.call('HSET', weights, id, job.weight) else redis.call('HDEL', weights, id) end
    if job.under ~= '' or job.weight ~= '' then redis.call('HSET', meta, 'limited', 1) end
    if not place then return end
    if job.under ~= '' then hold(id, job.under, tonumber(place)) else redis.call('ZADD', waiting, place, id) end
    redis.call('ZADD', wake, 0, 't')
end
end

-- Where the data of a spec begins: its payload with its version, and metadata, which are its last fields.
local function data_at(spec)
    for _, field in ipairs({ ',"payload":', ',"version":', ',"metadata":' }) do
        local at = string.find(spec, field, 1, true)
        if at then return at end
    end
    return #spec
end

local function digest(spec) return redis.sha1hex(without_time(spec)) end

-- The first fields of a spec, which say where the job stands in time: up to the end of its delay.
local function first_fields(spec, width)
    local at = width + 1
    for _, field in ipairs({ ',"at":%d+', ',"priority":%-?%d+', ',"delay":%d+' }) do
        local _, last = string.find(spec, '^' .. field, at)
        at = last and last + 1 or at
    end
    return at - 1
end

local LATER = { ',"lifo":true', ',"run_at":%d+', ',"expires_at":%d+', ',"deadline_at":%d+' }
-- The options of the new spec, but not those that say when the job runs. They stay as they are.
local function new_head(old, new, width)
    local head = string.sub(new, first_fields(new, width) + 1, data_at(new) - 1)
    local before = string.sub(old, 1, data_at(old) - 1)
    for _, field in ipairs(LATER) do head = string.gsub(head, field, '', 1) .. (match(before, field) or '') end
    return string.sub(old, 1, first_fields(old, width)) .. head
end

-- Puts off a job that has not run. It is not due later than its first enqueue allowed.
local function put_off(job, id, state, score)
    if state ~= 'delayed' or job.delay < 0 then return false end
    -- A job between two attempts, snoozed or parked has a due time of another kind.
    if redis.call('HEXISTS', attempts, id) == 1 or redis.call('HEXISTS', unserved, id) == 1 then return false end
    local latest = tonumber((match(redis.call('HGET', unique, job.key) or '', '^%S+ %S+ (%d+)')))
    local due = math.max(score, math.min(now + job.delay, latest or math.huge))
    if due == score then return false end
    redis.call('ZADD', delayed, due, id)
    local spec = redis.call('HGET', jobs, id)
    local at = data_at(spec)
    local head = string.gsub(string.sub(spec, 1, at - 1), ',"run_at":%d+', '', 1)
    redis.call('HSETNX', replaced, id, digest(spec))
    redis.call('HSET', jobs, id, head .. format(',"run_at":%.0f', due) .. string.sub(spec, at))
    return true
end

-- Gives the job that waits the data of the new one, and with replace_all its options. Its id and its place stay.
local function replace(job, id, state, score)
    local old = redis.call('HGET', jobs, id)
    -- The key may be that of a job of another type, whose handler takes other arguments.
    if not old or string.sub(old, 1, job.width) ~= string.sub(job.spec, 1, job.width) then return 'returned' end
    -- The enqueue of that job may be repeated because its reply was lost. The digest shows that it is the same job.
    redis.call('HSETNX', replaced, id, digest(old))
    local head = job.conflict == 'replace_all' and new_head(old, job.spec, job.width) or string.sub(old, 1, data_at(old) - 1)
    redis.call('HSET', jobs, id, head .. string.sub(job.spec, data_at(job.spec)))
    if job.conflict == 'replace_all' then take_limits(id, job, state) end
    put_off(job, id, state, score)
    return 'replaced'
end

-- A job that is not held yet takes no room of its group. It is asked for once per job.
local function no_room(job)
    if job.ready > now or job.behind or job.has_room then return false end
    job.has_room = not is_full(job.under)
    return not job.has_room
end

-- What the holder of the key does with the new job. Returns the holder, its state and what was done; nil if the job is new.
local function resolve(job)
    local conflict = job.conflict
    local id, state, score, list
    if job.mode == 'running' then
        list = running_with(job.key, conflict == 'kill_running')
        id, state = list[1], 'active'
    else
        local _
        id, _, state, score = holder(job.key, job.mode, job.time)
        list = { id, (match(redis.call('HGET', unique, job.key) or '', '^%S+ %S+ %S+ (%S+)$')) }
    end
    if not id then return nil end
    if conflict == 'fail' then return id, state, 'fail' end
    if conflict == 'kill_running' then
        if state == 'active' and no_room(job) then return '', '', 'full' end
        for _, one in ipairs(list) do
            if redis.call('ZSCORE', active, one) then kill(one, job.id) end
        end
        if state == 'active' then return nil end
        state, score = state_of(id)
    end
    if conflict == 'keep_last' and state == 'active' then
        job.behind = id
        return nil
    end
    local done = 'returned'
    if conflict == 'extend' then
        done = put_off(job, id, state, score) and 'extended' or done
    elseif conflict ~= 'return' and QUEUED[state] then
        done = replace(job, id, state, score)
    end
    return id, state, done
end

-- shared: take key
-- The row of the key names the job, and another unfinished one that does not hold it any more, or that it waits for (`behind`). The
-- mark in `keys` says when a retry of the finished job takes the key again. A tab alone: not at all, the ttl runs from the enqueue on.
local function take_key(id, key, mode, time, latest, behind)
    local before, other = match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ ?%S* ?(%S*)$')
    local unfinished
    for _, one in ipairs(before and not redis.call('ZSCORE', unique_until, key) and { behind or before, other } or {}) do
        local state = state_of(one)
        if not unfinished and (QUEUED[state] or state == 'active') then unfinished = one end
    end
    local row = id .. ' -'
    if unfinished then row = row .. ' ' .. latest .. ' ' .. unfinished elseif latest ~= '-' then row = row .. ' ' .. latest end
    redis.call('HSET', unique, key, row)
    local mark = mode == 'enqueued' and '\t' or (mode == 'queued' or mode == 'running') and mode .. '\t' or ''
    redis.call('HSET', keys, id, mark .. key)
    if mode == 'enqueued' then
        redis.call('ZADD', unique_until, now + time, key)
    else
        redis.call('ZREM', unique_until, key)
    end
end
-- end

local function take_keys(job)
    if job.request then
        redis.call('HSET', unique, job.request, job.id .. ' ' .. job.fingerprint)
        redis.call('ZADD', unique_until, now + job.ttl, job.request)
    end
    local latest = job.key and job.wait >= 0 and format('%.0f', now + job.wait) or '-'
    if job.key then take_key(job.id, job.key, job.mode, job.time, latest, job.behind) end
end

-- A job whose enqueue changed another one has no row, so its repetition would change that one again. Remember it for two minutes.
local function remember(job, id, state, done)
    redis.call('HSET', answers, 'job:' .. job.id, id .. '\n' .. state .. '\n' .. done .. '\n' .. digest(job.spec) .. '\n')
    redis.call('ZADD', requests, now, 'job:' .. job.id)
    -- A dropped queue leaves answers with a time to live.
    redis.call('PERSIST', answers)
    redis.call('PERSIST', requests)
end

-- shared: life of a job
-- A job may have a time by which it must have started, one by which it must have ended, and an earlier job that it runs again. That
-- one names its last 20 reruns. Returns true if the job has a time.
local function set_life(id, words)
    local from, to, earlier = string.match(words, '^(%S+) (%S+) ?(%S*)$')
    if not from then return false end
    if from ~= '-' then redis.call('ZADD', start_by, from, id) end
    if to ~= '-' then redis.call('ZADD', end_by, to, id) end
    if earlier ~= '' and redis.call('HEXISTS', jobs, earlier) == 1 then
        local list = { id }
        for other in string.gmatch(redis.call('HGET', reruns, earlier) or '', '%S+') do
            if #list < 20 and other ~= id then list[#list + 1] = other end
        end
        redis.call('HSET', reruns, earlier, table.concat(list, ' '))
    end
    return from ~= '-' or to ~= '-'
end
-- end

-- shared: note a number
-- `fifo` also counts jobs that are moved or known already, and jobs that are only due later. So these are counted too: `fifo` less
-- `moved` is the number of new jobs, and `fifo` less `later` that of jobs that have come to waiting. A damaged number starts again.
local function add_up(field, n)
    if type(redis.pcall('HINCRBY', meta, field, n)) == 'table' then redis.call('HSET', meta, field, n) end
end
-- end

local total = (#ARGV - 2) / 4
local ids = {}
for i = 1, total do ids[i] = ARGV[4 * i - 1] end
local known = redis.call('HMGET', jobs, unpack(ids))
-- Always write. WAIT and WAITAOF wait for the last write of their connection.
local fifo = turn('fifo', total) - total
local reply = fifo == 0 and { 0, '', 'new', '', '' } or {}
local repeated, seen, duplicates, known_jobs, later = ARGV[2] == '1', {}, 0, 0, 0
local function tell_over(i)
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5] = i, '', 'over', '', ''
end
for i = 1, total do
    local id, spec, options, words = ids[i], ARGV[4 * i], ARGV[4 * i + 1], ARGV[4 * i + 2]
    local own, request = match(words, '^([^\n]*)\n?(.*)$')
    local job = { id = id, spec = spec }
    local time, delay, wait, width
    job.mode, time, job.conflict, delay, wait, width, job.key = match(own, '^(%S+) (%d+) (%S+) (%-?%d+) (%-?%d+) (%d+) (.+)$')
    job.time, job.delay, job.wait, job.width = tonumber(time), tonumber(delay), tonumber(wait), tonumber(width)
    local head, under, weight, life = match(options, '^([^\v]*)\v?([^\v]*)\v?([^\v]*)\v?(.*)$')
    local p, l, d = match(head, '^(%S+) (%S+) (%S+)$')
    local due = match(d or '0', '^=(%d+)$')
    job.under, job.weight, job.ready = under, weight, due and tonumber(due) or now + tonumber(d or 0)
    if job.wait and job.wait >= 0 then job.ready = math.min(job.ready, now + job.wait) end
    local ttl
    ttl, job.fingerprint, job.request = match(request, '^(%d+) (%S+) (.+)$')
    job.ttl = tonumber(ttl)
    local earlier, fingerprint, state, done
    local stored = known[i] or seen[id]
    if stored then
        -- The spec may have changed earlier in this call.
        stored = redis.call('HGET', jobs, id) or stored
        local same = without_time(stored) == without_time(spec) or redis.call('HGET', replaced, id) == digest(spec)
        earlier, fingerprint, done = id, same and '-' or '!', 'returned'
    elseif repeated and was_removed(id, spec) then
        earlier, fingerprint, done = id, '-', 'returned'
    else
        local absorbed = redis.call('HGET', answers, 'job:' .. id)
        local other, was, did, mark = match(absorbed or '', '^(%S+)\n(%S*)\n(%S+)\n(%S+)\n$')
        if other and mark == digest(spec) then earlier, fingerprint, state, done = other, '-', was, did end
        if not earlier and job.request then
            earlier, fingerprint, state = holder(job.request, 'enqueued', 0)
            done = 'returned'
        end
        if not earlier and job.key then
            earlier, state, done = resolve(job)
            fingerprint = done == 'full' and done or '-'
            if earlier and done ~= 'full' then
                -- The first sending of a repeated call has counted it, if it was executed.
                if not repeated then duplicates = duplicates + 1 end
                if done == 'replaced' or done == 'extended' then remember(job, earlier, state, done) end
                if done ~= 'fail' and job.request then
                    redis.call('HSET', unique, job.request, earlier .. ' ' .. job.fingerprint)
                    redis.call('ZADD', unique_until, now + job.ttl, job.request)
                end
            end
        end
    end
    if not earlier and no_room(job) then earlier, fingerprint, state, done = '', 'full', '', 'full' end
    -- Jobs that always go first would starve the others.
    if not earlier and l == '1' and fifo > 2199023255552 then earlier, fingerprint, state, done = '', 'lifo', '', 'lifo' end
    if earlier then
        known_jobs = known_jobs + 1
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = i, earlier, fingerprint
        reply[n + 4], reply[n + 5] = state or state_of(earlier) or '', done
        if earlier == id and fingerprint == '-' and acts_on(under or '') then tell_over(i) end
    else
        seen[id] = spec
        local priority, lifo = tonumber(p or 0), l == '1'
        if priority ~= 0 or lifo then redis.call('HSET', priorities, id, lifo and p .. 'L' or p) end
        if under ~= '' then redis.call('HSET', limits, id, under) end
        if weight ~= '' then redis.call('HSET', weights, id, weight) end
        -- From now on claims and completions come with more keys.
        if set_life(id, life) or under ~= '' or weight ~= '' or job.conflict == 'keep_last' then redis.call('HSET', meta, 'limited', 1) end
        redis.call('HSET', jobs, id, spec)
        take_keys(job)
        if job.behind or job.ready > now then later = later + 1 end
        if job.behind then
            redis.call('ZADD', blocked, math.max(now, job.ready), id)
        elseif job.ready > now then
            local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
            redis.call('ZADD', delayed, job.ready, id)
            -- An idle worker sleeps until the earliest due time that it knows. Wake one if this due time is earlier.
            if not first[2] or job.ready <= tonumber(first[2]) then redis.call('ZADD', wake, 0, 't') end
        else
            local place = score_of(priority, lifo and -turn('lifo', 1) or fifo + i)
            if under ~= '' then hold(id, under, place) else redis.call('ZADD', waiting, format('%d', place), id) end
            if under ~= '' and acts_on(under) then
                redis.call('ZADD', undecided, format('%.0f', place), id)
                tell_over(i)
            end
            redis.call('ZADD', wake, 0, 't')
        end
    end
end
if duplicates > 0 then count('duplicates', duplicates) end
if known_jobs > 0 then add_up('moved', known_jobs) end
if known_jobs + later > 0 then add_up('later', known_jobs + later) end
return reply
