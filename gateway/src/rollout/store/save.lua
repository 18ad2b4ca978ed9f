-- Writes the state of a rollout, if the gateway leads it and nothing newer is there.
-- KEYS: lead, state, history, decided, times of decisions.
-- ARGV: gateway, fencing number, document, most entries of the history, seconds to keep, identity, decision or an empty text,
--   time of the decision, most decisions, entries of the history.
-- Returns 1 if it was written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'fence') or '0') > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], 'fence', ARGV[2], 'document', ARGV[3])
for i = 10, #ARGV do redis.call('RPUSH', KEYS[3], ARGV[i]) end
redis.call('LTRIM', KEYS[3], -tonumber(ARGV[4]), -1)
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[4], ARGV[6], ARGV[7])
  redis.call('ZADD', KEYS[5], ARGV[8], ARGV[6])
  for _, old in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1 - tonumber(ARGV[9]))) do
    redis.call('HDEL', KEYS[4], old)
    redis.call('ZREM', KEYS[5], old)
  end
end
for i = 2, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
return 1
