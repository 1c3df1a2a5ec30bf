#!lua flags=no-writes
-- Reads a part of a page of one session's events, and looks at a bounded number of them: others wait for the server
-- meanwhile. They are a list without gaps that ends with last_seq, so an event's place from the end follows from
-- its number.
--
-- KEYS: the session's head; more may follow, see keys.py.
-- ARGV: 1 incarnation, after_seq, limit, max_bytes, bytes that earlier parts of the page have, the newest instead (1)
--         or not (0), seq below which to look (0: any; only for the newest), events to look at, bytes to answer with
--         (only for the newest, about)
--       2 what follows the header of an entry of the stream that is asked for; empty: any
--       3 length of that header
-- Returns nothing if there is no such session, else whether the page is full (1) or goes on behind what was looked
-- at (0), the last seq that was looked at, first_seq, last_seq, and for each event its seq and a frame with its entry,
-- the newest first if these are asked for.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, ROW_SIZE = '>c8Bddd', 69
local LEAST, MOST = 16, 512 -- events that one LRANGE reads

local incarnation, after, limit, max_bytes, earlier, newest, below, sights, max_answer = unpack('>c8ddddBddd', ARGV[1])
local names, from = ARGV[2], tonumber(ARGV[3]) + 1
local to = from + #names - 1

local head = call('GETRANGE', KEYS[1], 0, ROW_SIZE - 1)
if head == '' then return '' end
local found, _, _, first, last = unpack(ROW_START, head)
if found ~= incarnation then return '' end

local event_key = string.sub(KEYS[1], 1, -2) .. 'e'
local start = math.max(after + 1, first)
if start <= last and call('LLEN', event_key) <= last - start then
  return redis.error_reply('DAMAGED events of a session are missing')
end
local answer, size = {}, 0

local function wanted(entry)
  return names == '' or string.sub(entry, from, to) == names
end

local function put(seq, entry)
  answer[#answer + 1] = pack('>dI4', seq, #entry) .. entry
  size = size + #entry
end

local function entries(low, high)
  sights = sights - (high - low + 1)
  return call('LRANGE', event_key, low - last - 1, high - last - 1)
end

-- As many as a page is likely to take, so that large ones are not read in vain.
local function stride(bytes)
  if #answer == 0 then return LEAST end
  return math.max(LEAST, math.min(MOST, math.floor((bytes - size) * #answer / size)))
end

-- Whether the page is full, and the last seq that was looked at.
local function next_part()
  local seq, scanned, room = start, math.max(after, start - 1), max_bytes - earlier
  while seq <= last and sights > 0 do
    for _, entry in ipairs(entries(seq, math.min(seq + stride(room) - 1, last))) do
      if wanted(entry) then
        if earlier + size > 0 and size + #entry > room then return 1, scanned end
        put(seq, entry)
      end
      scanned, seq = seq, seq + 1
      if #answer >= limit then return 1, scanned end
    end
  end
  return scanned >= last and 1 or 0, scanned
end

-- The same from the end backwards, whatever their size.
local function newest_part()
  local high = below > 0 and math.min(below - 1, last) or last
  while high >= start and #answer < limit do
    if sights <= 0 or size >= max_answer then return 0, high + 1 end
    local low = math.max(start, high - math.min(stride(max_answer), limit - #answer + LEAST) + 1)
    local part = entries(low, high)
    for n = #part, 1, -1 do
      if #answer < limit and wanted(part[n]) then put(low + n - 1, part[n]) end
    end
    high = low - 1
  end
  return 1, high + 1
end

local full, scanned
if newest == 1 then full, scanned = newest_part() else full, scanned = next_part() end
return pack('>Bddd', full, scanned, first, last) .. table.concat(answer)
