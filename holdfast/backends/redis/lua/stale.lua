#!lua flags=allow-oom
-- Takes note of index entries whose session was not found, and removes those of which that was noted
-- long ago. Not at once: the entry is written before its session, which may be on its way.
--
-- KEYS: the shard's indexes: created, expiring, stale.
-- ARGV: 1 ms after which an entry is removed, 2 the score that it gets in `expiring` until then,
--       3 … the entries
-- Returns the entries that were removed.

local call = redis.call
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local grace, removed = tonumber(ARGV[1]), {}

for i = 3, #ARGV do
  local entry = ARGV[i]
  local noted = call('ZSCORE', KEYS[3], entry)
  if noted and now - tonumber(noted) >= grace then
    call('ZREM', KEYS[1], entry)
    call('ZREM', KEYS[2], entry)
    call('ZREM', KEYS[3], entry)
    removed[#removed + 1] = entry
  elseif call('ZSCORE', KEYS[1], entry) or call('ZSCORE', KEYS[2], entry) then
    if not noted then call('ZADD', KEYS[3], string.format('%.0f', now), entry) end
    call('ZADD', KEYS[2], 'XX', ARGV[2], entry)
  end
end
return removed
