#!lua flags=allow-oom
-- webhook_write: writes or removes a webhook, if nobody has changed it since it was read.
-- KEYS webhooks webhook_facts
-- ARGV name, the row that was read ('': there was none), the new row ('': remove the webhook), forget (1: also what jobq has noted of it),
--   largest number of webhooks
-- RETURNS "ok"; "stale" if it has another row, or "full" if there are too many webhooks (nothing changed)
local webhooks, webhook_facts = unpack(KEYS)
local name, before, row, forget, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local stored = redis.call('HGET', webhooks, name) or ''
-- The call may be repeated because its reply was lost.
if stored ~= row then
    if stored ~= before then return 'stale' end
    if stored == '' and redis.call('HLEN', webhooks) >= most then return 'full' end
    if row ~= '' then redis.call('HSET', webhooks, name, row) else redis.call('HDEL', webhooks, name) end
end
if row == '' or forget == '1' then
    redis.call('HDEL', webhook_facts, 'disabled:' .. name, 'failures:' .. name, 'failing:' .. name)
end
-- The next webhook has a place of its own. Without this one, nobody reads what came before it.
if row == '' and redis.call('EXISTS', webhooks) == 0 then redis.call('HDEL', webhook_facts, 'cursor') end
return 'ok'
