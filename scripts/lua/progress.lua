#!lua flags=allow-oom
-- progress: stores the progress of leased jobs. The last value replaces earlier ones.
-- KEYS leases progress
-- ARGV per job: id, token, value (JSON)
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local leases, progress = unpack(KEYS)
local lost = {}
for i = 1, #ARGV, 3 do
    if redis.call('HGET', leases, ARGV[i]) == ARGV[i + 1] then
        redis.call('HSET', progress, ARGV[i], ARGV[i + 2])
    else
        lost[#lost + 1] = ARGV[i]
    end
end
return lost
