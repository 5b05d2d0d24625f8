#!lua flags=no-writes
-- numbers: reads what was counted of types, and how many jobs were enqueued and have arrived.
-- KEYS metrics history meta
-- ARGV now, then types ('': all types together); without any, it lists the types
-- RETURNS now; how many jobs were enqueued; how many have arrived; when how many had arrived, "ms:number", the latest first;
--   the types, or flat pairs row of history (or nil), flat pairs of what is not in the history yet ("s:interval:what" -> count)
local metrics, history, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local facts = redis.call('HMGET', meta, 'fifo', 'moved', 'later', 'arrived')
local fifo = tonumber(facts[1]) or 0
local found, types, counts = {}, {}, {}
for i = 2, #ARGV do counts[ARGV[i]] = {} end
local flat = redis.call('HGETALL', metrics)
for i = 1, #flat, 2 do
    local what, kind = string.match(flat[i], '^(s:%d+:[%l_]+%d*):(.+)$')
    if what then
        types[kind] = true
        for _, name in ipairs({ kind, '' }) do
            if counts[name] then counts[name][what] = (counts[name][what] or 0) + (tonumber(flat[i + 1]) or 0) end
        end
    end
end
if #ARGV == 1 then
    for _, kind in ipairs(redis.call('HKEYS', history)) do types[kind] = kind ~= '' or nil end
    for kind in pairs(types) do found[#found + 1] = kind end
end
for i = 2, #ARGV do
    local pairs_of = {}
    for what, n in pairs(counts[ARGV[i]]) do pairs_of[#pairs_of + 1], pairs_of[#pairs_of + 2] = what, string.format('%.0f', n) end
    found[#found + 1], found[#found + 2] = redis.call('HGET', history, ARGV[i]) or '', pairs_of
end
return {
    now, string.format('%.0f', fifo - (tonumber(facts[2]) or 0)), string.format('%.0f', fifo - (tonumber(facts[3]) or 0)),
    facts[4] or '', found,
}
