-- Counts (or, with a negative amount, takes back) what a pod did. KEYS: the epoch, a count.
-- ARGV: epoch, window; slice and amount, as often as there are.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return { 1, now } end
local c = read(KEYS[2], tonumber(ARGV[2]))
for i = 3, #ARGV, 2 do
  local slice, amount = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if amount > 0 then add(c, slice, amount) else remove(c, slice, -amount) end
end
write(c)
return { 0, now }
