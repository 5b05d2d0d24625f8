-- enqueue: new jobs go to waiting.
-- KEYS waiting jobs meta
-- ARGV per job: id, spec
local waiting, jobs, meta = unpack(KEYS)
local count = #ARGV / 2
local last = redis.call('INCRBY', meta, count)
local places = {}
for i = 1, count do places[2 * i - 1], places[2 * i] = last - count + i, ARGV[2 * i - 1] end
redis.call('HSET', jobs, unpack(ARGV))
redis.call('ZADD', waiting, unpack(places))
return count
