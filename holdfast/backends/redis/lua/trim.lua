#!lua flags=allow-oom
-- Raises first_seq by age and size, and deletes events below it, oldest first.
--
-- KEYS: the head of each session; more may follow, see keys.py.
-- ARGV: 1 min_time_us (-1: any), max_bytes (-1: any), events to delete at most
--       2 the incarnation of each
-- Returns for each how many were deleted, or -1 if there is no such session.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, ROW_SIZE, FIRST_AT, CHUNK = '>c8Bddd', 69, 17, 128

local min_time, max_bytes, room = unpack('>ddd', ARGV[1])

-- The first seq from `first` on that is young enough.
local function first_young(key, first, last)
  while first <= last do
    local entries = call('LRANGE', key, first - last - 1, math.min(first + CHUNK - 1, last) - last - 1)
    if #entries == 0 then return first end
    for _, entry in ipairs(entries) do
      if unpack('>d', entry) >= min_time then return first end
      first = first + 1
    end
  end
  return first
end

-- The lowest seq from `first` on such that it and all later ones fit.
local function first_fitting(key, first, last)
  local size, seq = 0, last
  while seq >= first do
    local low = math.max(first, seq - CHUNK + 1)
    local entries = call('LRANGE', key, low - last - 1, seq - last - 1)
    for n = #entries, 1, -1 do
      local _, length = unpack('>dI4', entries[n])
      size = size + length
      if size > max_bytes then return low + n end
    end
    seq = low - 1
  end
  return first
end

local function trim(head_key, incarnation)
  local head = call('GETRANGE', head_key, 0, ROW_SIZE - 1)
  if head == '' then return -1 end
  local found, _, _, first, last = unpack(ROW_START, head)
  if found ~= incarnation then return -1 end
  if room <= 0 then return 0 end
  local key, kept_from = string.sub(head_key, 1, -2) .. 'e', first
  if min_time >= 0 then kept_from = first_young(key, kept_from, last) end
  if max_bytes >= 0 then kept_from = first_fitting(key, kept_from, last) end
  if kept_from > first then call('SETRANGE', head_key, FIRST_AT, pack('>d', kept_from)) end
  local surplus = math.min(room, call('LLEN', key) - (last - kept_from + 1))
  if surplus <= 0 then return 0 end
  call('LTRIM', key, surplus, -1)
  room = room - surplus
  return surplus
end

local counts = {}
for i = 1, #ARGV[2] / 8 do
  counts[i] = pack('>d', trim(KEYS[i], string.sub(ARGV[2], 8 * i - 7, 8 * i)))
end
return table.concat(counts)
