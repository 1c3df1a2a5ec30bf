#!lua flags=allow-oom
-- Removes those of the sessions that are expired. A second call for the same flush of the same lane
-- changes nothing and gives the first one's answer.
--
-- KEYS: the lane's marker, then the head of each session; more may follow, see keys.py.
-- ARGV: 1 the backend's instance (flushes of another one say nothing of ours), flush, now_us, marker's life in ms
--       2 the incarnation of each
-- Returns for each a frame: nothing (no such session), 'K' and when it expires (it lives; -1: never),
-- 'R' and its head (removed), or 'F' (it cannot be read or removed: nothing was done).

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local ROW = '>c8Bdddddd'

local instance, flush, now, marker_ms = unpack('>c16ddd', ARGV[1])

local function expiry(active, ttl, deadline)
  if ttl < 0 then return deadline end
  if deadline < 0 then return active + ttl end
  return math.min(active + ttl, deadline)
end

local function expire(head_key, incarnation)
  local head = call('GET', head_key)
  if not head then return '' end
  local found, _, _, _, _, active, ttl, deadline = unpack(ROW, head)
  if found ~= incarnation then return '' end
  local ends = expiry(active, ttl, deadline)
  if ends < 0 or ends > now then return 'K' .. pack('>d', ends) end
  local base = string.sub(head_key, 1, -2)
  call('UNLINK', head_key, base .. 's', base .. 'e')
  return 'R' .. head
end

local known = call('GETRANGE', KEYS[1], 0, 23)
if known ~= '' and string.sub(known, 1, 16) == instance then
  local stored = unpack('>d', known, 17)
  if stored == flush then return call('GETRANGE', KEYS[1], 32, -1) end
  if stored > flush then return redis.error_reply('SUPERSEDED a later flush of this lane is stored') end
end

local answers = {}
for i = 1, #ARGV[2] / 8 do
  -- What fails for one must not keep the marker from telling of the others.
  local done, answer = pcall(expire, KEYS[i + 1], string.sub(ARGV[2], 8 * i - 7, 8 * i))
  if not done then answer = 'F' end
  answers[i] = pack('>I4', #answer) .. answer
end
local answer = table.concat(answers)
call('SET', KEYS[1], instance .. pack('>dd', flush, now) .. answer, 'PX', string.format('%.0f', marker_ms))
return answer
