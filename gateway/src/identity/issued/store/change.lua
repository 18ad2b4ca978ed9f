-- Makes, replaces or removes a key, if the document that is there is the expected one.
-- KEYS: documents by id, revision.
-- ARGV: id, document that is there or an empty text, document that replaces it or an empty text, most keys, first revision.
-- Returns 0 and the new revision, 1 if there are as many keys as may exist, 2 if another document is there.
local there = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if there ~= ARGV[2] then return {2, 0} end
if there == '' and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return {1, 0} end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('SET', KEYS[2], ARGV[5], 'NX')
return {0, redis.call('INCR', KEYS[2])}
