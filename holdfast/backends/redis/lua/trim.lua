#!lua flags=allow-oom
-- Raises first_seq by age and size, and deletes events below it, oldest first. It looks at and deletes a bounded
-- number of events: others wait for the server meanwhile.
--
-- KEYS: the head of each session; more may follow, see keys.py.
-- ARGV: 1 min_time_us (-1: any), max_bytes (-1: any), events to delete at most, events to look at (and to delete) now
--       2 for each: its incarnation, and how far the look at its sizes got in an earlier call: the seq below which to
--         go on (0: it begins), and the bytes from there on
-- Returns for each how many were deleted, or -1 if there is no such session, or -2 if a key is of another type; whether
-- another call is to go on (1) or not (0), and how far the look at its sizes got.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, ROW_SIZE, FIRST_AT, CHUNK = '>c8Bddd', 69, 17, 128
local REQUEST, REQUEST_SIZE, ANSWER = '>c8dd', 24, '>dBdd'

local min_time, max_bytes, room, sights = unpack('>dddd', ARGV[1])
local drops = sights

local function entries(key, low, high, last)
  sights = sights - (high - low + 1)
  return call('LRANGE', key, low - last - 1, high - last - 1)
end

-- The first seq from `first` on that is young enough, or up to which it looked; and whether there are more to look at.
local function first_young(key, first, last)
  while first <= last do
    if sights <= 0 then return first, true end
    for _, entry in ipairs(entries(key, first, math.min(first + CHUNK - 1, last), last)) do
      if unpack('>d', entry) >= min_time then return first, false end
      first = first + 1
    end
  end
  return first, false
end

-- The lowest seq from `first` on such that it and all later ones fit; nil if there are more to look at. Behind it, how
-- far it got. Events that were appended since an earlier call are not counted; the next trim sees them.
local function first_fitting(key, first, last, below, size)
  local seq = below > 0 and math.min(below - 1, last) or last
  while seq >= first do
    if sights <= 0 then return nil, seq + 1, size end
    local low = math.max(first, seq - CHUNK + 1)
    local found = entries(key, low, seq, last)
    for n = #found, 1, -1 do
      local _, length = unpack('>dI4', found[n])
      size = size + length
      if size > max_bytes then return low + n, 0, 0 end
    end
    seq = low - 1
  end
  return first, 0, 0
end

local function trim(head_key, incarnation, below, size)
  local head = call('GETRANGE', head_key, 0, ROW_SIZE - 1)
  if head == '' then return -1, 0, 0, 0 end
  local found, _, _, first, last = unpack(ROW_START, head)
  if found ~= incarnation then return -1, 0, 0, 0 end
  if room <= 0 then return 0, 0, 0, 0 end

  local key, kept_from, more, fitting = string.sub(head_key, 1, -2) .. 'e', first, false, nil
  local length = call('LLEN', key)
  if length < last - first + 1 then return -2, 0, 0, 0 end
  if min_time >= 0 then kept_from, more = first_young(key, kept_from, last) end
  if max_bytes >= 0 and not more then
    fitting, below, size = first_fitting(key, kept_from, last, below, size)
    kept_from, more = fitting or kept_from, fitting == nil
  end
  if kept_from > first then call('SETRANGE', head_key, FIRST_AT, pack('>d', kept_from)) end

  local surplus = length - (last - kept_from + 1)
  local now = math.max(0, math.min(room, surplus, drops))
  if now > 0 then call('LTRIM', key, now, -1) end
  room, drops = room - now, drops - now
  return now, (more or now < surplus) and 1 or 0, below, size
end

local answers = {}
for i = 1, #ARGV[2] / REQUEST_SIZE do
  -- What is another program's must not keep the others from being trimmed.
  local at = REQUEST_SIZE * (i - 1) + 1
  local done, deleted, more, below, size = pcall(trim, KEYS[i], unpack(REQUEST, ARGV[2], at))
  answers[i] = done and pack(ANSWER, deleted, more, below, size) or pack(ANSWER, -2, 0, 0, 0)
end
return table.concat(answers)
