#!lua flags=allow-oom
-- share: tells how much a partition uses of the queue's own rule, and sets how much it may use.
-- KEYS meta rules waiting held active admitted spent wake
-- ARGV now, fence of the caller, share ('': only look; otherwise a rule's text), the whole rule of which it is a share, tokens for each band
-- RETURNS {} if another caller has a later fence. Otherwise: slots of running jobs, waiting jobs, the share, the whole rule of which it
--   is one, the whole rule as it is stored, then for each band of the earlier share the tokens that the new one has no room for
-- Claims obey `rule` in meta, which is the share. Two callers with different fences never both set shares: the later one looks at
-- all partitions before it sets one, and from then on the earlier one is refused. Tokens only move. So all partitions together never
-- have more of them than the whole rule allows.
local meta, rules, waiting, held, active, admitted, spent, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local fence, share, whole = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local facts = redis.call('HMGET', meta, 'rule', 'balanced', 'whole')
local before, of = facts[1] or '', facts[3] or ''
if (tonumber(facts[2]) or 0) > fence then return {} end
redis.call('HSET', meta, 'balanced', ARGV[2])

local function bands_of(text)
    local bands = {}
    for count, per, burst in string.gmatch(text, ' (%d+)/(%d+)/(%d+)') do
        bands[#bands + 1] = { interval = tonumber(per) / tonumber(count), burst = tonumber(burst) }
    end
    return bands
end

-- The rule may have been changed or removed since the caller read it. A removed rule leaves no share behind.
local set, declared = string.match(redis.call('HGET', rules, 'queue') or '', '^([^\n]*)\n?(.*)$')
local stored = (set or '') ~= '' and set or declared or ''
if stored ~= whole then share = '' end
if stored == '' and of ~= '' then
    redis.call('HDEL', meta, 'rule', 'whole')
    redis.call('ZADD', wake, 0, 't')
    before, of = '', ''
end

local back = {}
-- A call whose reply was lost must not grant its tokens twice.
if share ~= '' and not (share == before and whole == of) then
    -- A queue that had one partition has no share yet. Then its rule is the whole.
    local known = of == whole or of == '' and before == whole
    local old, new = known and bands_of(before) or {}, bands_of(share)
    for i = 1, math.max(#old, #new, #ARGV - 4) do
        local field, tokens = 'queue\0' .. i, tonumber(ARGV[i + 4]) or 0
        if old[i] then
            -- GCRA: a band has all its tokens once its theoretical arrival time has passed.
            local ahead = math.max(0, (tonumber(redis.call('ZSCORE', spent, field)) or 0) - now)
            tokens = tokens + math.max(0, old[i].burst - ahead / old[i].interval)
        end
        local kept = math.min(tokens, new[i] and new[i].burst or 0)
        if new[i] then
            redis.call('ZADD', spent, string.format('%.4f', now + (new[i].burst - kept) * new[i].interval), field)
        else
            redis.call('ZREM', spent, field)
        end
        back[i] = string.format('%.6f', tokens - kept)
    end
    redis.call('HSET', meta, 'rule', share, 'whole', whole, 'limited', 1)
    if share ~= before then redis.call('ZADD', wake, 0, 't') end
    before, of = share, whole
end
local running = redis.call('ZCARD', active) + redis.call('ZLEXCOUNT', admitted, '[queue\0', '(queue\1')
-- Held jobs may wait for other limits. So they count as no more than run now, and one.
local jobs = redis.call('ZCARD', waiting) + math.min(redis.call('ZCARD', held), running + 1)
return { running, jobs, before, of, stored, unpack(back) }
