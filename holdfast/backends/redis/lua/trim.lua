#!lua flags=allow-oom
-- Raises first_seq by age and size, and deletes events below it, oldest first.
--
-- KEYS: the head of each session; more may follow, see keys.py.
-- ARGV: 1 min_time_us (-1: any), max_bytes (-1: any), events to delete at most
--       2 for each: its incarnation, and how far the look at its sizes got in an earlier call: the seq below which to
--         go on (0: it begins), and the bytes from there on
-- Returns for each how many were deleted, -1 if there is no such session, or -2 if another call is to go on, and
-- how far the look at its sizes got.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, ROW_SIZE, FIRST_AT, CHUNK = '>c8Bddd', 69, 17, 128
local REQUEST, REQUEST_SIZE, ANSWER = '>c8dd', 24, '>ddd'

local min_time, max_bytes, room = unpack('>ddd', ARGV[1])
local sights = 5000 -- events whose sizes one call looks at, about: others wait for the server meanwhile

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

-- The lowest seq from `first` on such that it and all later ones fit; nil if there are more to look at. Behind it, how
-- far it got. Events that were appended since an earlier call are not counted; the next trim sees them.
local function first_fitting(key, first, last, below, size)
  local seq = below > 0 and math.min(below - 1, last) or last
  while seq >= first do
    if sights <= 0 then return nil, seq + 1, size end
    local low = math.max(first, seq - CHUNK + 1)
    local entries = call('LRANGE', key, low - last - 1, seq - last - 1)
    sights = sights - #entries
    for n = #entries, 1, -1 do
      local _, length = unpack('>dI4', entries[n])
      size = size + length
      if size > max_bytes then return low + n, 0, 0 end
    end
    seq = low - 1
  end
  return first, 0, 0
end

local function trim(head_key, incarnation, below, size)
  local head = call('GETRANGE', head_key, 0, ROW_SIZE - 1)
  if head == '' then return -1, 0, 0 end
  local found, _, _, first, last = unpack(ROW_START, head)
  if found ~= incarnation then return -1, 0, 0 end
  if room <= 0 then return 0, 0, 0 end
  local key, kept_from = string.sub(head_key, 1, -2) .. 'e', first
  if min_time >= 0 then kept_from = first_young(key, kept_from, last) end
  if max_bytes >= 0 then
    kept_from, below, size = first_fitting(key, kept_from, last, below, size)
    if not kept_from then return -2, below, size end
  end
  if kept_from > first then call('SETRANGE', head_key, FIRST_AT, pack('>d', kept_from)) end
  local surplus = math.min(room, call('LLEN', key) - (last - kept_from + 1))
  if surplus <= 0 then return 0, 0, 0 end
  call('LTRIM', key, surplus, -1)
  room = room - surplus
  return surplus, 0, 0
end

local answers = {}
for i = 1, #ARGV[2] / REQUEST_SIZE do
  answers[i] = pack(ANSWER, trim(KEYS[i], unpack(REQUEST, ARGV[2], REQUEST_SIZE * (i - 1) + 1)))
end
return table.concat(answers)
