#!lua flags=allow-oom
-- log: appends log lines of leased jobs. The column keeps the last 64 KiB of each job.
-- KEYS leases logs
-- ARGV per job: id, token, number of lines that the run wrote before these, the same number with these, lines (one JSON object
--   per line)
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
-- The first line of the value is "fence number": how many lines of that run were received. A line that was received is not stored
-- again, although it comes again because a reply was lost, alone or together with newer ones.
local leases, logs = unpack(KEYS)
local MOST = 65536
local lost = {}

-- The lines behind the first `received` of a run, or nil if all were received.
local function newer(lines, first, all, received)
    if received <= first then return lines end
    if received >= all then return nil end
    local at = 1
    for _ = first + 1, received do at = (string.find(lines, '\n', at, true) or #lines) + 1 end
    return string.sub(lines, at)
end

for i = 1, #ARGV, 5 do
    local id, token, all, lines = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3]), ARGV[i + 4]
    if redis.call('HGET', leases, id) == token then
        local stored, run = redis.call('HGET', logs, id) or '', string.match(token, '^%S+')
        local fence, received, start = string.match(stored, '^(%d+) (%d+)\n()')
        received, start = fence == run and tonumber(received) or 0, start or 1
        lines = newer(lines, tonumber(ARGV[i + 2]), all, received)
        if lines then
            -- Find the cut first, and copy only what is kept: a call may carry many jobs with full logs.
            local over = #stored - start + 2 + #lines - MOST
            if over > 0 then
                local cut = string.find(stored, '\n', start + over - 1, true)
                start = cut and cut + 1 or #stored + 1
            end
            if #lines > MOST then lines = string.sub(lines, (string.find(lines, '\n', #lines - MOST, true) or 0) + 1) end
            local earlier = start <= #stored and string.sub(stored, start) .. '\n' or ''
            redis.call('HSET', logs, id, string.format('%s %.0f\n', run, all) .. earlier .. lines)
        end
    else
        lost[#lost + 1] = id
    end
end
return lost
