-- What counts now; nothing is taken. KEYS: the epoch, counts, then places. ARGV: epoch, counts; for each count: window, max, amount.
-- Gives 0, now; for each count: used, wait; for each place: taken.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return { 1, now } end
local counts, out = tonumber(ARGV[2]), { 0, now }
for i = 1, counts do
  local c = read(KEYS[1 + i], tonumber(ARGV[3 * i]))
  local max, amount = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  write(c)
  out[#out + 1] = c.t + c.l
  out[#out + 1] = c.t + c.l + amount <= max and 0 or wait(c, amount, max)
end
for i = 2 + counts, #KEYS do out[#out + 1] = places(KEYS[i]).n end
return out
