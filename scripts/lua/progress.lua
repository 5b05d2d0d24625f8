#!lua flags=allow-oom
-- progress: stores the progress of leased jobs. The last value replaces earlier ones.
-- KEYS leases progress meta events
-- ARGV per job: id, token, value (JSON)
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local leases, progress, meta, events = unpack(KEYS)
-- The stream is capped by its number of entries. So a value of more than 1,024 bytes is left out of its event.
local told, lost = {}, {}
for i = 1, #ARGV, 3 do
    local id, value = ARGV[i], ARGV[i + 2]
    if redis.call('HGET', leases, id) == ARGV[i + 1] then
        redis.call('HSET', progress, id, value)
        local n = #told
        told[n + 1], told[n + 2], told[n + 3], told[n + 4] = 'progress', id, 'value', #value <= 1024 and value or ''
    else
        lost[#lost + 1] = ARGV[i]
    end
end
if #told > 0 and redis.call('HGET', meta, 'events') == 'all' then
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', unpack(told))
end
return lost
