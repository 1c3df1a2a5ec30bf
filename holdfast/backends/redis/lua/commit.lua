#!lua
-- Commits writes, all of them at once, each wholly or not at all. A second call for the same flush of
-- the same lane changes nothing and gives the first one's answer; an older flush is refused.
--
-- The server takes nothing back of a script that fails. So everything that can fail for a reason of the server's (a
-- type of a key, a right of the user) is looked at before the first change; and a server that is out of memory,
-- read-only, or moving the slot refuses the script before its first line.
--
-- KEYS: the lane's marker, then the head of each write's session; more may follow, see keys.py.
-- ARGV: 1 the backend's instance (flushes of another one say nothing of ours), flush, now_us, marker's life
--         in ms, reaping margin in us (-1: none), max_events (-1: none)
--       2 how many writes, 3 the writes: each a header and, as its flags say: head, metadata, removes, sets, events
-- Returns for each write: status, base_version, base_seq, base_first_seq, first_seq. Or an error: FOREIGN, NOPERM
-- (nothing was done), SUPERSEDED, or BROKEN and which write it was (it may be done in part; the ones before it are done).
--
-- The layouts are those of rows.py and writes.py. Numbers are doubles; see there.

local call, pack, unpack, list, band = redis.call, struct.pack, struct.unpack, unpack, bit.band

local ROW, ROW_SIZE = '>c8BdddddddI4', 69
local WRITE = '>c8I2ddddI4I4I4I4I4'
local OUTCOME = '>Bi8i8i8i8'
local COMMITTED, MISSING, EXISTS, CONFLICT, CLOSED = 0, 1, 2, 3, 4
local FENCED, CHANGES, CLEARED, CLOSE, DELETE, CREATE, METADATA = 1, 2, 4, 8, 16, 32, 64
local SURPLUS = 1000  -- dropped events that are left for the trimmer, at most, if it keeps up
local AT_ONCE = 5000  -- of them, at most so many go with one write
local LONGEST = 1e15  -- ms: the server takes no life that is much longer
local CHUNK = 4000    -- arguments of one command, an even number
-- In a marker, in place of outcomes, which begin with a small number: refused for good (so a packet of this flush that
-- comes late is, too), or begun. Behind the latter: at which write it failed.
local REFUSED, BROKEN = 'F', 'B'

local instance, flush, now, marker_ms, margin, max_events = unpack('>c16ddddd', ARGV[1])
local count, writes, position = tonumber(ARGV[2]), ARGV[3], 1

local function refuse(status)
  return pack(OUTCOME, status, 0, 0, 0, 0)
end

local function expiry(active, ttl, deadline)
  if ttl < 0 then return deadline end
  if deadline < 0 then return active + ttl end
  return math.min(active + ttl, deadline)
end

local function lapsed(active, ttl, deadline, at)
  local ends = expiry(active, ttl, deadline)
  return ends >= 0 and ends <= at
end

-- A command with any number of arguments: the sum of its replies, and the last one.
local function in_chunks(command, key, values)
  local sum, reply = 0, 0
  for first = 1, #values, CHUNK do
    reply = call(command, key, list(values, first, math.min(first + CHUNK - 1, #values)))
    sum = sum + reply
  end
  return sum, reply
end

-- The next `count` frames of the writes, from `at` on.
local function frames(count, at)
  local values = {}
  for n = 1, count do values[n], at = unpack('>I4c0', writes, at) end
  return values, at
end

-- Whether the key may be new.
local function set_keys(key, count, at, base)
  local values = {}
  for n = 1, count do
    local offset, name, raw
    offset, name, raw, at = unpack('>dI4c0I4c0', writes, at)
    values[2 * n - 1], values[2 * n] = name, pack('>d', base + offset) .. raw
  end
  return in_chunks('HSET', key, values) == count, at
end

-- Whether the key is new.
local function append(key, count, at, kept)
  local values = frames(count, at)
  local _, length = in_chunks('RPUSH', key, values)
  local surplus = length - kept
  if surplus >= SURPLUS then
    if kept > 0 then call('LTRIM', key, math.min(surplus, AT_ONCE), -1) else call('UNLINK', key) end
  end
  return length == count
end

local function apply(head_key, found)
  local incarnation, flags, expected, accepted, touched, floor, units, removes, sets, events, length
  incarnation, flags, expected, accepted, touched, floor, units, removes, sets, events, length, position =
    unpack(WRITE, writes, position)
  local at = position
  position = position + length

  local state_key, event_key = string.sub(head_key, 1, -2) .. 's', string.sub(head_key, 1, -2) .. 'e'
  local owner, closed, version, first, last, active, ttl, deadline, native, fixed
  if found ~= '' then
    owner, closed, version, first, last, active, ttl, deadline, native, fixed = unpack(ROW, found)
  end

  local created
  if band(flags, CREATE) ~= 0 then
    if found ~= '' and not lapsed(active, ttl, deadline, accepted) then return refuse(EXISTS) end
    created, at = unpack('>I4c0', writes, at)
    owner, closed, version, first, last, active, ttl, deadline, native, fixed = unpack(ROW, created)
    call('UNLINK', state_key, event_key)
  else
    if found == '' or owner ~= incarnation or lapsed(active, ttl, deadline, accepted) then return refuse(MISSING) end
    if band(flags, FENCED) ~= 0 and version ~= expected then return refuse(CONFLICT) end
    if closed == 1 and band(flags, CHANGES) ~= 0 then return refuse(CLOSED) end
  end

  local base_version, base_last, base_first = version, last, first
  last = last + events
  if floor > first then first = math.min(floor, last + 1) end
  if max_events >= 0 and last - max_events >= first then first = last - max_events + 1 end
  version = version + units
  active = math.max(active, touched)
  if band(flags, CLOSE) ~= 0 then closed = 1 end
  local outcome = pack(OUTCOME, COMMITTED, base_version, base_last, base_first, first)

  if band(flags, DELETE) ~= 0 then
    call('UNLINK', head_key, state_key, event_key)
    return outcome
  end

  local metadata
  if band(flags, METADATA) ~= 0 then metadata, at = unpack('>I4c0', writes, at) end
  if band(flags, CLEARED) ~= 0 then call('UNLINK', state_key) end
  if removes > 0 then
    local names
    names, at = frames(removes, at)
    in_chunks('HDEL', state_key, names)
  end
  local new_state, new_events = false, false
  if sets > 0 then new_state, at = set_keys(state_key, sets, at, base_version) end
  if events > 0 then new_events = append(event_key, events, at, last - first + 1) end

  -- The server's own expiry, a margin behind ours. It is moved only when half of the margin is used up.
  local ends, renewed = expiry(active, ttl, deadline), false
  if margin >= 0 and ends >= 0 then
    if native < ends + margin / 2 then native, renewed = ends + margin, true end
  elseif native > 0 then
    call('PERSIST', head_key)
    call('PERSIST', state_key)
    call('PERSIST', event_key)
    native = 0
  end

  local row = pack(ROW, owner, closed, version, first, last, active, ttl, deadline, native, fixed)
  if created then
    local rest = string.sub(created, ROW_SIZE + 1)
    if metadata then rest = string.sub(rest, 1, fixed) .. metadata end
    call('SET', head_key, row .. rest)
  elseif metadata then
    local rest = call('GETRANGE', head_key, ROW_SIZE, ROW_SIZE + fixed - 1)
    call('SET', head_key, row .. rest .. metadata, 'KEEPTTL')
  else
    call('SETRANGE', head_key, 0, row)
  end

  if native > 0 and (renewed or new_state or new_events) then
    local ms = string.format('%.0f', math.min(math.max(math.max(native - now, margin) / 1000, 1), LONGEST))
    if renewed then call('PEXPIRE', head_key, ms) end
    if renewed or new_state then call('PEXPIRE', state_key, ms) end
    if renewed or new_events then call('PEXPIRE', event_key, ms) end
  end
  return outcome
end

local function is_free_or(kind, key)
  local actual = call('TYPE', key).ok
  return actual == kind or actual == 'none'
end

-- Whether apply() can use the keys that the next write is about.
local function is_ours(head_key, found)
  local _, flags, _, _, _, _, _, removes, sets, events, length
  _, flags, _, _, _, _, _, removes, sets, events, length, position = unpack(WRITE, writes, position)
  position = position + length
  if type(found) == 'table' or (found ~= '' and #found < ROW_SIZE) then return false end
  local created, base = band(flags, CREATE) ~= 0, string.sub(head_key, 1, -2)
  if (created or removes + sets > 0) and not is_free_or('hash', base .. 's') then return false end
  return not (created or events > 0) or is_free_or('list', base .. 'e')
end

-- Whether the server's user may do what apply() does.
local function may_write(head_key)
  local base = string.sub(head_key, 1, -2)
  local function may(...)
    local known, allowed = pcall(redis.acl_check_cmd, ...)
    return known and allowed
  end
  return may('SET', head_key, '') and may('SETRANGE', head_key, '0', '') and may('UNLINK', head_key)
    and may('HSET', base .. 's', '', '') and may('HDEL', base .. 's', '')
    and may('RPUSH', base .. 'e', '') and may('LTRIM', base .. 'e', '0', '0')
    and may('PEXPIRE', head_key, '1') and may('PERSIST', head_key)
end

local function foreign()
  return redis.error_reply('FOREIGN a key of ours is of another type')
end

local function broken(where)
  return redis.error_reply('BROKEN ' .. where)
end

local known = redis.pcall('GETRANGE', KEYS[1], 0, 23)
if type(known) == 'table' then return redis.error_reply('MARKER the key of a marker is of another type') end
if known ~= '' and string.sub(known, 1, 16) == instance then
  local stored = unpack('>d', known, 17)
  if stored > flush then return redis.error_reply('SUPERSEDED a later flush of this lane is stored') end
  if stored == flush then
    local answer = call('GETRANGE', KEYS[1], 32, -1)
    local kind = string.sub(answer, 1, 1)
    if kind == REFUSED then return foreign() end
    if kind == BROKEN then return broken(string.sub(answer, 2)) end
    return answer
  end
end

-- All keys first: what is not ours is refused here, before anything is changed.
if count > 0 and not may_write(KEYS[2]) then return redis.error_reply('NOPERM this user may not use all commands of a commit') end
local marker, life = instance .. pack('>dd', flush, now), string.format('%.0f', marker_ms)
local rows, outcomes = {}, {}
for i = 1, count do
  rows[i] = redis.pcall('GETRANGE', KEYS[i + 1], 0, ROW_SIZE - 1)
  if not is_ours(KEYS[i + 1], rows[i]) then
    call('SET', KEYS[1], marker .. REFUSED, 'PX', life)
    return foreign()
  end
end

-- A marker that has no outcomes yet: if a write fails in its middle all the same, it must not be done again.
call('SET', KEYS[1], marker .. BROKEN, 'PX', life)
position = 1
for i = 1, count do
  local done, outcome = pcall(apply, KEYS[i + 1], rows[i])
  if not done then
    local reason = type(outcome) == 'table' and outcome.err or tostring(outcome)
    local where = string.format('%d %s', i, reason)
    call('SET', KEYS[1], marker .. BROKEN .. where, 'PX', life)
    return broken(where)
  end
  outcomes[i] = outcome
end

local answer = table.concat(outcomes)
call('SET', KEYS[1], marker .. answer, 'PX', life)
return answer
