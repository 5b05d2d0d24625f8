#!lua flags=no-writes
-- page: ids of one state in order, from a cursor on.
-- KEYS set jobs
-- ARGV reverse (1: highest score first), limit, scan (how many may be looked at), prefix of the spec ('': any),
--   highest score to take ('': any), cursor score ('': from the start), cursor id
-- RETURNS flat ids, fewer than `limit` once 1 MB of specs was read; then score and id to go on from, or '' and '' at the end
local set, jobs = unpack(KEYS)
local reverse, limit, scan, prefix = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local start = 0
if ARGV[6] ~= '' then
    -- by rank, since thousands may share one score; where the id has left, from the first of its score on:
    -- something may be seen twice, nothing is passed over
    local rank = redis.call(reverse and 'ZREVRANK' or 'ZRANK', set, ARGV[7])
    if rank and tonumber(redis.call('ZSCORE', set, ARGV[7])) == tonumber(ARGV[6]) then
        start = rank + 1
    elseif reverse then
        start = redis.call('ZCOUNT', set, '(' .. ARGV[6], '+inf')
    else
        start = redis.call('ZCOUNT', set, '-inf', '(' .. ARGV[6])
    end
elseif reverse and ARGV[5] ~= '' then
    start = redis.call('ZCOUNT', set, '(' .. ARGV[5], '+inf')
end
local found
if reverse then found = redis.call('ZREVRANGE', set, start, start + scan - 1, 'WITHSCORES')
else found = redis.call('ZRANGE', set, start, start + scan - 1, 'WITHSCORES') end
local ids, last, bytes = {}, 0, 0
for i = 1, #found / 2 do
    local id = found[2 * i - 1]
    if not reverse and ARGV[5] ~= '' and tonumber(found[2 * i]) > tonumber(ARGV[5]) then return { ids, '', '' } end
    last = i
    -- read one by one, so that a thousand jobs of a megabyte do not hold Redis for a second
    local spec = prefix ~= '' and (redis.call('HGET', jobs, id) or '')
    if not spec or string.sub(spec, 1, #prefix) == prefix then ids[#ids + 1] = id end
    bytes = bytes + #(spec or '')
    if #ids == limit or bytes > 1000000 then break end
end
if last == 0 or (2 * last == #found and last < scan) then return { ids, '', '' } end
return { ids, found[2 * last], found[2 * last - 1] }
