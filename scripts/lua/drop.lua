#!lua flags=allow-oom
-- drop: removes the queue with all its keys in one step. Redis frees the memory in the background, so a large queue blocks nobody.
-- KEYS waiting delayed active completed failed blocked workers jobs leases priorities attempts errors results progress logs unserved keys unique unique_until expires meta wake claims requests answers events workers_info types types_seen metrics
-- ARGV now, alive ms (a worker counts as alive for this long after a heartbeat), 1 to drop a queue that has jobs or workers
-- RETURNS the number of jobs, the number of living workers, and 1 if the queue was dropped (0: refused, nothing changed)
local waiting, delayed, active, completed, failed, blocked, workers = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local jobs = 0
for _, set in ipairs({ waiting, delayed, active, completed, failed, blocked }) do
    jobs = jobs + redis.call('ZCARD', set)
end
local alive = redis.call('ZCOUNT', workers, now - tonumber(ARGV[2]), '+inf')
if jobs + alive > 0 and ARGV[3] ~= '1' then return { jobs, alive, 0 } end
redis.call('UNLINK', unpack(KEYS, 1, #KEYS))
return { jobs, alive, 1 }
