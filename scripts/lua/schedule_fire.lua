#!lua
-- schedule_fire: enqueues the jobs of slots and advances their schedules, in one step. The jobs go to delayed and are due at once,
-- so forward puts them where jobs with their limits and priorities belong.
-- KEYS schedules schedule_rows jobs delayed waiting active blocked held completed failed priorities limits weights keys unique unique_until meta wake running start_by end_by reruns
-- ARGV now; then groups: name, head of the row that was read, the new head and state if a job is enqueued, when it is due then
--   (unix ms, '': never), the new head and state if none is, when it is due then, overlap ("skip": no job while an earlier one is
--   unfinished; "queue_one": no job while an earlier one has not started; "allow"), number of earlier jobs, their ids, number of
--   jobs; per job id, spec, options as for enqueue, uniqueness as for enqueue_unique. A held key is not waited for, and its holder is
--   not changed.
-- RETURNS per group "fired", "skipped" (because of overlap or a key; the schedule has advanced), or "stale" (another caller was
--   first, or the schedule was changed; nothing changed)
-- It does not enqueue a job whose id is known: the ids of slots derive from the schedule and the slot.
-- This script does not have allow-oom: at maxmemory no slot is lost, because no schedule advances.
local schedules, schedule_rows, jobs, delayed, waiting, active, blocked, held, completed, failed, priorities, limits, weights, keys, unique, unique_until, meta, wake, running, start_by, end_by, reruns = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

local match = string.match

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

local function unstarted(id)
    return redis.call('ZSCORE', waiting, id) or redis.call('ZSCORE', delayed, id) or redis.call('ZSCORE', held, id)
        or redis.call('ZSCORE', blocked, id)
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

-- Returns false if another job holds the key of this one.
local function enqueue(id, spec, options, uniqueness)
    if redis.call('HEXISTS', jobs, id) == 1 then return true end
    local head, under, weight, life = match(options, '^([^\v]*)\v?([^\v]*)\v?([^\v]*)\v?(.*)$')
    local priority, lifo, delay = match(head, '^(%S+) (%S+) (%d+)$')
    local mode, time, key = match(uniqueness, '^(%S+) (%d+) %S+ %S+ %S+ %S+ ([^\n]+)')
    if key then
        if mode == 'running' and running_with(key)[1] or mode ~= 'running' and holder(key, mode, tonumber(time)) then return false end
        take_key(id, key, mode, tonumber(time), '-')
    end
    redis.call('HSET', jobs, id, spec)
    redis.call('ZADD', delayed, string.format('%.0f', now + (tonumber(delay) or 0)), id)
    -- It gets its place from forward, which takes it for a job that was moved.
    add_up('moved', -1)
    if priority and (priority ~= '0' or lifo == '1') then
        redis.call('HSET', priorities, id, lifo == '1' and priority .. 'L' or priority)
    end
    if set_life(id, life) or under ~= '' or weight ~= '' then
        if under ~= '' then redis.call('HSET', limits, id, under) end
        if weight ~= '' then redis.call('HSET', weights, id, weight) end
        -- From now on claims come with the keys of limits.
        redis.call('HSET', meta, 'limited', 1)
    end
    return true
end

local answers, any, i = {}, false, 2
while i <= #ARGV do
    local name, head, overlap, earlier = ARGV[i], ARGV[i + 1], ARGV[i + 6], tonumber(ARGV[i + 7])
    local chosen, due, answer = ARGV[i + 2], ARGV[i + 3], 'fired'
    local first = i + 8 + earlier
    local count = tonumber(ARGV[first])
    local stored, definitions = string.match(redis.call('HGET', schedule_rows, name) or '', '^([^\n]*)\n[^\n]*(\n.*)$')
    if stored ~= head then
        answer = 'stale'
    else
        for at = i + 8, first - 1 do
            local id = ARGV[at]
            if overlap ~= 'allow' and (unstarted(id) or overlap == 'skip' and redis.call('ZSCORE', active, id)) then answer = 'skipped' end
        end
        if answer == 'fired' and count > 0 then
            local added = false
            for at = first + 1, first + 4 * count, 4 do
                added = enqueue(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]) or added
            end
            if not added then answer = 'skipped' end
            any = any or added
        end
        if answer == 'skipped' then chosen, due = ARGV[i + 4], ARGV[i + 5] end
        redis.call('HSET', schedule_rows, name, chosen .. definitions)
        if due == '' then redis.call('ZREM', schedules, name) else redis.call('ZADD', schedules, due, name) end
    end
    answers[#answers + 1] = answer
    i = first + 1 + 4 * count
end
if (tonumber(redis.call('HGET', meta, 'scheduled_at') or 0) or 0) < now then
    redis.call('HSET', meta, 'scheduled_at', string.format('%.0f', now))
end
if any then redis.call('ZADD', wake, 0, 't') end
return answers
