#!lua flags=no-writes
-- sample: counts the types of some jobs of a state, chosen at random; of all jobs, if there are not more.
-- KEYS set jobs
-- ARGV number of jobs, bytes of specs after which large ones are left out
-- RETURNS the size of the set; then flat pairs type, number of the chosen jobs ('': their type was not read)
local set, jobs = unpack(KEYS)
local left, found, reply = tonumber(ARGV[2]), {}, { redis.call('ZCARD', set) }
for _, id in ipairs(redis.call('ZRANDMEMBER', set, ARGV[1])) do
    local size, kind = redis.call('HSTRLEN', jobs, id), ''
    if size <= left then
        left = left - size
        kind = string.match(redis.call('HGET', jobs, id) or '', '^{"type":"([^"\\]*)"') or ''
    end
    found[kind] = (found[kind] or 0) + 1
end
for kind, n in pairs(found) do reply[#reply + 1], reply[#reply + 2] = kind, n end
return reply
