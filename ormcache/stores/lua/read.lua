-- Answer a read. KEYS: entry, "*", register of each table.
--
-- A hit returns the entry, whose head is the vector of nonces under which it was made. A miss
-- returns {vector} to store under. Registers that are not clean give {"", kind, ms left}.

local parts = {}
local clean = true
for i = 2, #KEYS do
  local register = redis.call('HMGET', KEYS[i], 'n', 'x', 'd')
  if register[1] and not register[3] then
    parts[i - 1] = part(register)
  else
    clean = false
    break
  end
end

if not clean then
  local kind, last = 'busy', 0
  clean = true
  for i = 2, #KEYS do
    local register = touch(KEYS[i], KEYS[2])
    if register[3] then
      clean = false
      for id, deadline in string.gmatch(register[3], '([^=,]+)=(%d+)') do
        if id == 'Q' then
          kind = 'quarantine'
        end
        last = math.max(last, tonumber(deadline))
      end
    else
      parts[i - 1] = part(register)
    end
  end
  if not clean then
    return {'', kind, last - clock()}
  end
end

local vector = table.concat(parts, ';') .. '|'
local entry = redis.call('GET', KEYS[1])
if entry and string.sub(entry, 1, #vector) == vector then
  return entry
end
return {vector}
