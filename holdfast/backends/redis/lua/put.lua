#!lua flags=allow-oom
-- Commands that belong to the removal of something, so they are due when the server is out of memory too.
--
-- KEYS: what the command writes to.
-- ARGV: 1 the command, 2 … its arguments behind the key
-- Returns the command's reply.

return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
