#!lua flags=allow-oom
-- drop: removes the queue with all its keys in one step. Redis frees the memory in the background, so a large queue blocks nobody.
-- KEYS requests answers waiting delayed active completed failed blocked held workers schedule_rows jobs leases priorities attempts errors results progress logs unserved parked replaced keys running unique unique_until expires meta wake claims removed events workers_info types types_seen metrics history limits start_by end_by reruns weights held_by admitted unspent spent debts openings reopens closed arrivals lines open_lines full_lines turns finish groups billing undecided seats rules breakers schedules schedule_failures schedule_seen webhooks webhook_facts
-- ARGV now, request, alive ms (a worker counts as alive for this long after a heartbeat), 1 to drop a queue that has jobs, workers or schedules
-- RETURNS the number of jobs, the number of living workers, that of schedules, and 1 if the queue was dropped (0: refused, nothing changed)
-- Only the recorded answers stay, for two minutes: a request that a frozen server executes late must not drop a new queue of this name.
local requests, answers, waiting, delayed, active, completed, failed, blocked, held, workers, schedule_rows = unpack(KEYS)
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

local jobs = 0
for _, set in ipairs({ waiting, delayed, active, completed, failed, blocked, held }) do
    jobs = jobs + redis.call('ZCARD', set)
end
local alive = redis.call('ZCOUNT', workers, now - tonumber(ARGV[3]), '+inf')
local planned = redis.call('HLEN', schedule_rows)
local unused = jobs + alive + planned == 0 or ARGV[4] == '1'
-- From `waiting` on, KEYS are what goes.
if unused then redis.call('UNLINK', unpack(KEYS, 3, #KEYS)) end
local states = { jobs, alive, planned, unused and 1 or 0 }
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
if unused then
    redis.call('PEXPIRE', answers, 120000)
    redis.call('PEXPIRE', requests, 120000)
end
return states
