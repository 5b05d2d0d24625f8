#!lua flags=allow-oom
-- schedule_seen: notes that a program's code declares these schedules. The others, which no program has declared for a while, are orphans.
-- KEYS schedule_rows schedule_seen
-- ARGV now, names
-- RETURNS the number of schedules; then the names of those given that have no row
local schedule_rows, schedule_seen = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local reply = { redis.call('HLEN', schedule_rows) }
for i = 2, #ARGV do
    if redis.call('HEXISTS', schedule_rows, ARGV[i]) == 1 then
        redis.call('ZADD', schedule_seen, now, ARGV[i])
    else
        reply[#reply + 1] = ARGV[i]
    end
end
-- When any program said which schedules its code declares. Without it all would be orphans while no program runs.
if reply[1] > 0 then redis.call('ZADD', schedule_seen, now, '') end
return reply
