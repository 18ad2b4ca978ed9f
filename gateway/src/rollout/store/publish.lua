-- Writes the counts of one gateway.
-- KEYS: counts. ARGV: gateway, document, most gateways, seconds to keep.
-- Returns 1 if they were written, 0 where those of too many gateways are there.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
