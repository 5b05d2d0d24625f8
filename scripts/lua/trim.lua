#!lua flags=allow-oom
-- trim: removes finished jobs beyond the retention, oldest first, one page per call.
-- KEYS completed failed expires start_by end_by unique unique_until keys jobs priorities attempts errors results progress logs unserved replaced limits weights reruns
-- ARGV now, completed to keep, failed to keep, age to keep ms, page, young ms, young jobs to keep
--   A caller may wait for the result of a job that has just finished, or repeat its enqueue. So a job stays for `young` ms
--   after its end, or after its own retention. In each set this holds only for the newest `young` jobs.
-- RETURNS the number of removed jobs; a number below `page` means done
local completed, failed, expires, start_by, end_by, unique, unique_until, keys = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local page = tonumber(ARGV[5])
for i = 2, 7 do
    -- A negative number would remove every job.
    if not ((tonumber(ARGV[i]) or -1) >= 0) then
        return redis.error_reply('ERR trim: argument ' .. i .. ' is "' .. ARGV[i] .. '"; give a number from 0 on')
    end
end

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

local old, many = string.format('%.0f', now - tonumber(ARGV[6])), tonumber(ARGV[7])
local over_since = redis.call('ZCOUNT', expires, '-inf', now) > many and now or old
local ids = redis.call('ZRANGE', expires, '-inf', over_since, 'BYSCORE', 'LIMIT', 0, page)
if #ids > 0 then
    -- Remove these first. Then they do not count against the number of jobs to keep.
    redis.call('ZREM', completed, unpack(ids))
    redis.call('ZREM', failed, unpack(ids))
    redis.call('ZREM', expires, unpack(ids))
end
for i, set in ipairs({ completed, failed }) do
    local count = redis.call('ZCARD', set)
    local aged = redis.call('ZCOUNT', set, '-inf', now - tonumber(ARGV[4]))
    local over = math.max(count - tonumber(ARGV[1 + i]), aged)
    if over > 0 then
        over = math.min(page - #ids, over, math.max(redis.call('ZCOUNT', set, '-inf', old), count - many))
    end
    if over > 0 then
        local oldest = redis.call('ZRANGE', set, 0, over - 1)
        redis.call('ZREMRANGEBYRANK', set, 0, over - 1)
        if redis.call('EXISTS', expires) == 1 then redis.call('ZREM', expires, unpack(oldest)) end
        for _, id in ipairs(oldest) do ids[#ids + 1] = id end
    end
end
if #ids == 0 then return 0 end
if redis.call('EXISTS', start_by, end_by) > 0 then
    redis.call('ZREM', start_by, unpack(ids))
    redis.call('ZREM', end_by, unpack(ids))
end
if redis.call('EXISTS', keys) == 1 then
    release(ids)
end
-- From `keys` on, KEYS are the columns. Most of them do not exist, and EXISTS costs less than an HDEL of a page.
for i = 8, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('HDEL', KEYS[i], unpack(ids)) end
end
return #ids
