#!lua flags=allow-oom
-- settings: counts the changes of what operators set of a queue, in its first partition, or notes in another one how many have
--   reached it. Workers copy the settings to partitions that are behind, so a call that was cut between two partitions is finished.
-- KEYS meta
-- ARGV before ('': count one more change), after
-- RETURNS the number that is stored now
-- It is stored only if `before` is: somebody who copied older settings must not say that newer ones have arrived. A repeated count
-- costs one more copy.
local meta = unpack(KEYS)
local number = tonumber(redis.call('HGET', meta, 'settings')) or 0
if ARGV[1] == '' then
    number = number + 1
elseif number == tonumber(ARGV[1]) then
    number = tonumber(ARGV[2])
end
redis.call('HSET', meta, 'settings', string.format('%.0f', number))
return number
