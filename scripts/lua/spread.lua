#!lua flags=allow-oom
-- spread: sets over how many partitions a queue is spread. The keys are those of its first partition.
-- KEYS meta control
-- ARGV partitions, homes ('': as many, or 1 if the queue was used before), who says so ("code" or "operator")
-- RETURNS what is stored now, four words: partitions, homes, the most partitions that it ever had, and who said so
-- What code says is stored only if nothing is. Jobs with keys are in the first `homes` partitions. So there are never fewer, and
-- in a queue that was used before all of them stay in the first one, where the earlier jobs with the same keys are.
local meta, control = unpack(KEYS)
local facts = redis.call('HMGET', meta, 'partitions', 'layout')
local count, homes, most = string.match(facts[1] or '', '^(%d+) (%d+) (%d+) %l+$')
local wanted = tonumber(ARGV[1])
if count and (ARGV[3] == 'code' or wanted < tonumber(homes)) then return facts[1] end
if not count then
    most, homes = 1, ARGV[2]
    if homes == '' then homes = facts[2] and 1 or wanted end
end
local stored = string.format('%d %d %d %s', wanted, homes, math.max(wanted, most), ARGV[3])
redis.call('HSET', meta, 'partitions', stored)
redis.call('PUBLISH', control, 'partitions')
return stored
