#!lua flags=allow-oom
-- progress: what held jobs say of how far they are; the last word counts.
-- KEYS leases progress
-- ARGV per job: id, token, value (JSON)
-- RETURNS the ids that were not held (they changed nothing)
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
