#!lua
-- schedule_fire: enqueues the jobs of slots and advances their schedules, in one step. The jobs go to delayed and are due at once,
-- so forward puts them where jobs with their limits and priorities belong.
-- KEYS schedules schedule_rows jobs delayed waiting active blocked held priorities limits weights keys unique unique_until meta wake
-- ARGV now; then groups: name, head of the row that was read, the new head and state if a job is enqueued, when it is due then
--   (unix ms, '': never), the new head and state if none is, when it is due then, overlap ("skip": no job while an earlier one is
--   unfinished; "queue_one": no job while an earlier one has not started; "allow"), number of earlier jobs, their ids, number of
--   jobs; per job id, spec, options as for enqueue
-- RETURNS per group "fired", "skipped" (because of overlap or a key; the schedule has advanced), or "stale" (another caller was
--   first, or the schedule was changed; nothing changed)
-- It does not enqueue a job whose id is known: the ids of slots derive from the schedule and the slot.
-- This script does not have allow-oom: at maxmemory no slot is lost, because no schedule advances.
local schedules, schedule_rows, jobs, delayed, waiting, active, blocked, held, priorities, limits, weights, keys, unique, unique_until, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: holder
-- A job holds a key until the ttl of the key is over or, without a ttl, while the job is unfinished. A job that is gone holds
-- no key. A key with a fingerprint is that of a request, whose client gets the same answer for the whole ttl, job or no job.
local function holder(key)
    local id, fingerprint = string.match(redis.call('HGET', unique, key) or '', '^(%S+) (%S+)$')
    if not id then return nil end
    local till = redis.call('ZSCORE', unique_until, key)
    if till then
        if tonumber(till) > now and (fingerprint ~= '-' or redis.call('HEXISTS', jobs, id) == 1) then return id, fingerprint end
    elseif redis.call('ZSCORE', waiting, id) or redis.call('ZSCORE', delayed, id)
        or redis.call('ZSCORE', active, id) or redis.call('ZSCORE', blocked, id) or redis.call('ZSCORE', held, id) then
        return id, fingerprint
    end
    return nil
end
-- end

local function unstarted(id)
    return redis.call('ZSCORE', waiting, id) or redis.call('ZSCORE', delayed, id) or redis.call('ZSCORE', held, id)
        or redis.call('ZSCORE', blocked, id)
end

-- Returns false if another job holds the key of this one.
local function enqueue(id, spec, options)
    if redis.call('HEXISTS', jobs, id) == 1 then return true end
    local head, lines, under, weight = string.match(options, '^([^\n\v]*)\n?([^\v]*)\v?([^\v]*)\v?(.*)$')
    local priority, lifo, delay = string.match(head, '^(%S+) (%S+) (%d+)$')
    local ttl, key = string.match(lines, '^(%S+) %S+ ([^\n]+)')
    if key then
        if holder(key) then return false end
        -- The tab marks a key with a ttl. The ttl runs from now on, and does not end with the job.
        redis.call('HSET', keys, id, tonumber(ttl) >= 0 and '\t' .. key or key)
        redis.call('HSET', unique, key, id .. ' -')
        if tonumber(ttl) >= 0 then
            redis.call('ZADD', unique_until, now + tonumber(ttl), key)
        else
            redis.call('ZREM', unique_until, key)
        end
    end
    redis.call('HSET', jobs, id, spec)
    redis.call('ZADD', delayed, string.format('%.0f', now + (tonumber(delay) or 0)), id)
    if priority and (priority ~= '0' or lifo == '1') then
        redis.call('HSET', priorities, id, lifo == '1' and priority .. 'L' or priority)
    end
    if under ~= '' or weight ~= '' then
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
            for at = first + 1, first + 3 * count, 3 do added = enqueue(ARGV[at], ARGV[at + 1], ARGV[at + 2]) or added end
            if not added then answer = 'skipped' end
            any = any or added
        end
        if answer == 'skipped' then chosen, due = ARGV[i + 4], ARGV[i + 5] end
        redis.call('HSET', schedule_rows, name, chosen .. definitions)
        if due == '' then redis.call('ZREM', schedules, name) else redis.call('ZADD', schedules, due, name) end
    end
    answers[#answers + 1] = answer
    i = first + 1 + 3 * count
end
if (tonumber(redis.call('HGET', meta, 'scheduled_at') or 0) or 0) < now then
    redis.call('HSET', meta, 'scheduled_at', string.format('%.0f', now))
end
if any then redis.call('ZADD', wake, 0, 't') end
return answers
