#!lua flags=allow-oom
-- Removes a lane's marker, unless a flush has changed it since it was looked at.
--
-- KEYS: the marker.
-- ARGV: 1 its beginning as it was seen: instance, flush, now_us
-- Returns whether there is no such marker now.

local known = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
if known == ARGV[1] then redis.call('UNLINK', KEYS[1]) end
return (known == '' or known == ARGV[1]) and 1 or 0
