#!lua flags=allow-oom
-- drop: the queue goes, all of its keys in one step. Redis frees their memory in the background, so size does not matter.
-- KEYS waiting delayed active completed failed blocked workers jobs leases priorities attempts errors results progress logs unserved keys unique unique_until expires meta wake claims requests answers events workers_info metrics
-- ARGV now, alive ms (workers heard of since then count), 1 to drop it although it has jobs or workers
-- RETURNS how many jobs it has, how many workers are alive, and 1 when it was dropped (0: refused, nothing changed)
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
