#!lua flags=no-writes
-- page: lists ids of one state in order, starting after a cursor.
-- KEYS set jobs
-- ARGV reverse (1: highest score first), limit, scan (largest number of jobs to read), prefix of the spec ('': any),
--   highest score to return ('': any), cursor score ('': from the start), cursor id
-- RETURNS a list of ids, shorter than `limit` if 1 MB of specs was read; then score and id of the next cursor, '' and '' at the end
local set, jobs = unpack(KEYS)
local reverse, limit, scan, prefix = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local start = 0
if ARGV[6] ~= '' then
    -- Continue by rank, because thousands of jobs may share one score. If the id has left the set, continue with the first job
    -- of its score: some jobs may be listed twice, but none is skipped.
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
    -- Read one by one up to the bound. A thousand jobs of 1 MB would block Redis for a second.
    local spec = prefix ~= '' and (redis.call('HGET', jobs, id) or '')
    if not spec or string.sub(spec, 1, #prefix) == prefix then ids[#ids + 1] = id end
    bytes = bytes + #(spec or '')
    if #ids == limit or bytes > 1000000 then break end
end
if last == 0 or (2 * last == #found and last < scan) then return { ids, '', '' } end
return { ids, found[2 * last], found[2 * last - 1] }
