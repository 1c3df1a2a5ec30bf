#!lua flags=no-writes
-- Reads a page of one session's events. They are a list without gaps that ends with last_seq, so an
-- event's place from the end follows from its number.
--
-- KEYS: the session's head; more may follow, see keys.py.
-- ARGV: 1 incarnation, after_seq, limit, max_bytes, the newest instead (1) or not (0), events to look at
--       2 what follows the header of an entry of the stream that is asked for; empty: any
--       3 length of that header
-- Returns nothing if there is no such session, else scanned_seq, first_seq, last_seq, and for each event
-- its seq and a frame with its entry.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, ROW_SIZE = '>c8Bddd', 69

local incarnation, after, limit, max_bytes, newest, window = unpack('>c8dddBd', ARGV[1])
local names, from = ARGV[2], tonumber(ARGV[3]) + 1
local to = from + #names - 1

local head = call('GETRANGE', KEYS[1], 0, ROW_SIZE - 1)
if head == '' then return '' end
local found, _, _, first, last = unpack(ROW_START, head)
if found ~= incarnation then return '' end

local event_key = string.sub(KEYS[1], 1, -2) .. 'e'
local start = math.max(after + 1, first)
local answer, size = {}, 0

local function wanted(entry)
  return names == '' or string.sub(entry, from, to) == names
end

local function put(seq, entry)
  answer[#answer + 1] = pack('>dI4', seq, #entry) .. entry
  size = size + #entry
end

local function entries(low, high)
  return call('LRANGE', event_key, low - last - 1, high - last - 1)
end

-- As many as a page is likely to take, so that large ones are not read in vain.
local function stride()
  if #answer == 0 then return 16 end
  return math.max(16, math.min(512, math.floor((max_bytes - size) * #answer / size)))
end

local function next_page()
  local seq, scanned = start, math.max(after, start - 1)
  while seq <= last and seq - start < window do
    local page = entries(seq, math.min(seq + stride() - 1, last))
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      if wanted(entry) then
        if #answer > 0 and size + #entry > max_bytes then return scanned end
        put(seq, entry)
      end
      scanned, seq = seq, seq + 1
      if #answer >= limit then return scanned end
    end
  end
  return scanned
end

local function newest_page()
  local high = last
  while high >= start and #answer < limit do
    local low = math.max(start, high - math.max(16, math.min(512, limit - #answer)) + 1)
    local page = entries(low, high)
    for n = #page, 1, -1 do
      if #answer < limit and wanted(page[n]) then put(low + n - 1, page[n]) end
    end
    high = low - 1
  end
  for n = 1, math.floor(#answer / 2) do
    answer[n], answer[#answer - n + 1] = answer[#answer - n + 1], answer[n]
  end
  return last
end

local scanned = newest == 1 and newest_page() or next_page()
return pack('>ddd', scanned, first, last) .. table.concat(answer)
