#!lua flags=allow-oom
-- settings: notes in a partition that it has what operators have set in the first one.
-- KEYS meta
-- ARGV the changes that the first partition has counted, those that this one has counted
-- RETURNS 1 if it was noted, 0 if this partition was changed meanwhile (nothing changed)
-- Each partition counts the changes of its settings, in the scripts that make them. The note holds until one of the two counts changes.
-- So workers find a partition that a call did not reach, or reached too late, and copy the settings of the first one to it.
local meta = unpack(KEYS)
if (redis.call('HGET', meta, 'changes') or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', meta, 'settled', ARGV[1] .. ' ' .. ARGV[2])
return 1
