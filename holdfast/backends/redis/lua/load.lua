#!lua flags=no-writes
-- Reads sessions, all as of one moment.
--
-- KEYS: the head of each session; more may follow, see keys.py.
-- ARGV: 1 bytes of answer after which the rest is left for another call
--       2 for each: incarnation and version that the caller knows, whether it wants the head alone
-- Returns for each: a frame with the head (empty: no such session), then for a head the number of state
-- keys (NONE: not asked for) and frames with key and value in turn. Instead of a head: NONE (ask again), or
-- FOREIGN (a key is of another type: this must not keep the others from being read).

local pcall, pack, unpack = redis.pcall, struct.pack, struct.unpack
local ROW_START, ROW_SIZE, REQUEST, REQUEST_SIZE = '>c8Bd', 69, '>c8dB', 17
local NONE, FOREIGN = '\255\255\255\255', '\255\255\255\254'

local budget = tonumber(ARGV[1])
local answer, size, position = {}, 0, 1

local function put(text)
  answer[#answer + 1] = text
  size = size + #text
end

local function put_state(fields)
  put(pack('>I4', #fields / 2))
  for n = 1, #fields do
    put(pack('>I4', #fields[n]))
    put(fields[n])
  end
end

local function put_session(key, incarnation, version, head_only)
  local head = pcall('GET', key)
  if not head then return put(pack('>I4', 0)) end
  if type(head) == 'table' or #head < ROW_SIZE then return put(FOREIGN) end
  local found, _, found_version = unpack(ROW_START, head)
  local fields
  if head_only == 0 and (found ~= incarnation or found_version ~= version) then
    fields = pcall('HGETALL', string.sub(key, 1, -2) .. 's')
    if fields.err then return put(FOREIGN) end
  end
  put(pack('>I4', #head))
  put(head)
  if fields then put_state(fields) else put(NONE) end
end

for i = 1, #ARGV[2] / REQUEST_SIZE do
  local incarnation, version, head_only
  incarnation, version, head_only, position = unpack(REQUEST, ARGV[2], position)
  if size > budget then put(NONE) else put_session(KEYS[i], incarnation, version, head_only) end
end
return table.concat(answer)
