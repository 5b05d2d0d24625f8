#!lua flags=allow-oom
-- log: appends log lines of held jobs. The column keeps the last 64 KiB of each job.
-- KEYS leases logs
-- ARGV per job: id, token, lines (one JSON object per line)
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local leases, logs = unpack(KEYS)
local lost = {}
for i = 1, #ARGV, 3 do
    if redis.call('HGET', leases, ARGV[i]) == ARGV[i + 1] then
        local text = redis.call('HGET', logs, ARGV[i])
        text = text and text .. '\n' .. ARGV[i + 2] or ARGV[i + 2]
        if #text > 65536 then
            local cut = string.find(text, '\n', #text - 65536, true)
            text = cut and string.sub(text, cut + 1) or text
        end
        redis.call('HSET', logs, ARGV[i], text)
    else
        lost[#lost + 1] = ARGV[i]
    end
end
return lost
