-- The rest of read_clean.lua: some register is missing or has intents.

local kind, last = 'busy', 0
head = string.sub(KEYS[1], -40)
clean = true
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[2])
  if register[3] then
    clean = false
    for id, deadline in string.gmatch(register[3], '([^=,]+)=(%d+)') do
      if string.sub(id, 1, 1) == '@' and tonumber(deadline) <= clock() then
        kind = 'overdue'
      elseif string.match(id, '^@?Q!?%d*$') and kind ~= 'overdue' then
        kind = 'quarantine'
      end
      last = math.max(last, tonumber(deadline))
    end
  end
  head = head .. ';' .. register[1] .. ':' .. (register[2] or '')
end
if not clean then
  return {'', kind, last - clock()}
end

head = head .. '|'
local entry = redis.pcall('GET', KEYS[1])
if type(entry) == 'string' and string.sub(entry, 1, #head) == head then
  return entry
end
return {head}
