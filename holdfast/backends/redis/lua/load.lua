#!lua flags=no-writes
-- Reads sessions, all as of one moment.
--
-- KEYS: the head of each session; more may follow, see keys.py.
-- ARGV: 1 bytes of answer after which the rest is left for another call
--       2 for each: incarnation and version that the caller knows, whether it wants the head alone
-- Returns for each: a frame with the head (empty: no such session), then for a head the number of state
-- keys (NONE: not asked for) and frames with key and value in turn. NONE for a head: ask again.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW_START, REQUEST, REQUEST_SIZE, NONE = '>c8Bd', '>c8dB', 17, '\255\255\255\255'

local budget = tonumber(ARGV[1])
local answer, size, position = {}, 0, 1

local function put(text)
  answer[#answer + 1] = text
  size = size + #text
end

local function put_state(key)
  local fields = call('HGETALL', key)
  put(pack('>I4', #fields / 2))
  for n = 1, #fields do
    put(pack('>I4', #fields[n]))
    put(fields[n])
  end
end

for i = 1, #ARGV[2] / REQUEST_SIZE do
  local incarnation, version, head_only
  incarnation, version, head_only, position = unpack(REQUEST, ARGV[2], position)
  if size > budget then
    put(NONE)
  else
    local head = call('GET', KEYS[i])
    if not head then
      put(pack('>I4', 0))
    else
      put(pack('>I4', #head))
      put(head)
      local found, _, found_version = unpack(ROW_START, head)
      if head_only == 1 or (found == incarnation and found_version == version) then
        put(NONE)
      else
        put_state(string.sub(KEYS[i], 1, -2) .. 's')
      end
    end
  end
end
return table.concat(answer)
