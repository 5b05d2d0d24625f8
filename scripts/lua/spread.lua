#!lua flags=allow-oom
-- spread: sets over how many partitions a queue is spread. The keys are those of its first partition.
-- KEYS meta control
-- ARGV partitions (0: as many as there are, and their number is that of the homes from now on), who says so ("code" or "operator")
-- RETURNS what is stored now, four words: partitions, homes (0: not decided yet), the most partitions that it ever had, and who said so;
--   '' if nothing is
-- What code says is stored only if nothing is. Jobs with keys are in the first `homes` partitions, which the first of these jobs decides.
-- So there are never fewer, and in a queue that was used before all of them stay in the first one, where the earlier jobs with the same
-- keys are.
local meta, control = unpack(KEYS)
local facts = redis.call('HMGET', meta, 'partitions', 'layout')
local count, homes, most = string.match(facts[1] or '', '^(%d+) (%d+) (%d+) %l+$')
local wanted, who = tonumber(ARGV[1]), ARGV[2]
if wanted == 0 then
    if not count or homes ~= '0' then return facts[1] or '' end
    wanted, homes, who = count, count, string.match(facts[1], '%l+$')
elseif count then
    if who == 'code' or wanted < tonumber(homes) then return facts[1] end
else
    most, homes = 1, facts[2] and 1 or 0
end
local stored = string.format('%d %d %d %s', wanted, homes, math.max(wanted, most), who)
redis.call('HSET', meta, 'partitions', stored)
redis.call('PUBLISH', control, 'partitions')
return stored
