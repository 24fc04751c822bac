-- Answer a read. KEYS: entry, "*", register of each table.
--
-- A hit returns the entry. Its head is its own name and the vector of nonces under which it was
-- made, so that it answers no other query and is valid only while no register has changed. A
-- miss returns {head} to store under. Registers that are not clean give {"", kind, ms left}, with
-- the kind "busy", "quarantine", or "overdue" if settle.lua could help.
--
-- This part comes before the functions that change registers, for hits need none of them.

local head = string.sub(KEYS[1], -40)
local clean = true
for i = 2, #KEYS do
  -- Of another type, it has no nonce; touch() replaces it.
  local register = redis.pcall('HMGET', KEYS[i], 'n', 'x', 'd')
  if not register[1] or register[3] then
    clean = false
    break
  end
  head = head .. ';' .. register[1] .. ':' .. (register[2] or '')
end
if clean then
  head = head .. '|'
  -- A key of another type is as good as none.
  local entry = redis.pcall('GET', KEYS[1])
  if type(entry) == 'string' and string.sub(entry, 1, #head) == head then
    return entry
  end
  return {head}
end
