-- Takes what a call wants, one group of limits after another: all of a group or nothing.
-- KEYS: the epoch, then the counts and places in the order of the arguments.
-- ARGV: epoch, pod, groups; for each group: counts, places; for each count: window, max, amount, asked ahead, length of a lease,
-- the lease's number, whether it is closed, how many of its uses are told, and for each: slice, amount; for each place: max,
-- number, held with this one, life. Gives: 0, now; for each group 1 (taken), 0 (refused) or 2 (not asked), and for each count: used,
-- wait (0 fits, -1 never), leased anew; for each place 1 or 0. Or 1, now: the epoch is another.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return { 1, now } end
local pod = ARGV[2]
local a, k, out = 4, 2, { 0, now }
local function arg()
  a = a + 1
  return tonumber(ARGV[a - 1])
end

-- Brings what the pod tells of its lease into the count.
local function settle(c, field, close, uses)
  local text = redis.call('HGET', c.key, field)
  for _ = 1, uses do
    local slice, amount = arg(), arg()
    if text then
      local amount_left, over = string.match(text, '^(%d+) (%d+)$')
      amount = math.min(amount, tonumber(amount_left))
      add(c, slice, amount)
      c.l = c.l - amount
      text = string.format('%.0f %s', tonumber(amount_left) - amount, over)
    end
  end
  if text and (close == 1 or uses > 0) then
    local amount_left = tonumber(string.match(text, '^(%d+)'))
    if close == 1 or amount_left == 0 then
      redis.call('HDEL', c.key, field)
      c.l = c.l - amount_left
    else
      redis.call('HSET', c.key, field, text)
    end
    c.changed = true
  end
end

local function lease(c, field, amount, length)
  local text = redis.call('HGET', c.key, field)
  local before = text and tonumber(string.match(text, '^(%d+)')) or 0
  local over = now + length
  redis.call('HSET', c.key, field, string.format('%.0f %.0f', before + amount, over))
  redis.call('PEXPIRE', c.key, math.ceil(c.w * 130 / 128000 + length / 1000) + 60000)
  c.l = c.l + amount
  if c.x == 0 or over < c.x then c.x = over end
  c.changed = true
end

local refused = false
for group = 1, tonumber(ARGV[3]) do
  local counts, holds = arg(), arg()
  local fits, takes, held = true, {}, {}
  for i = 1, counts do
    local c = read(KEYS[k], arg())
    k = k + 1
    c.max, c.amount, c.ask, c.length = arg(), arg(), arg(), arg()
    c.field = 'L' .. pod .. '.' .. ARGV[a]
    a = a + 1
    local close, uses = arg(), arg()
    settle(c, c.field, close, uses)
    if c.amount > 0 and c.t + c.l + c.amount > c.max then
      fits = false
      c.wait = wait(c, c.amount, c.max)
    end
    takes[i] = c
  end
  for i = 1, holds do
    local p = places(KEYS[k])
    k = k + 1
    p.max, p.number, p.mine, p.life = arg(), arg(), arg(), arg()
    local _, before = own(p, pod)
    p.fits = p.n - before + p.mine <= p.max
    fits = fits and p.fits
    held[i] = p
  end
  -- After the first group, which is enforced, each decides for itself.
  local asked = group == 1 or not refused
  local taken = fits and asked
  out[#out + 1] = not asked and 2 or taken and 1 or 0
  for _, c in ipairs(takes) do
    local leased = 0
    if taken and c.amount > 0 then
      add(c, c.cur, c.amount)
      if c.ask > 0 then
        -- At most a quarter of what is left, so that others find some; in whole amounts.
        leased = math.min(c.ask, (c.max - c.t - c.l) / 4)
        leased = math.floor(leased / c.amount) * c.amount
        if leased > 0 then lease(c, c.field, leased, c.length) end
      end
    end
    write(c)
    out[#out + 1] = c.t + c.l
    out[#out + 1] = c.wait or 0
    out[#out + 1] = leased
  end
  for _, p in ipairs(held) do
    if taken then hold(p, pod, p.number, p.mine, p.life) end
    out[#out + 1] = p.fits and 1 or 0
  end
  if group == 1 and not taken then refused = true end
end
return out
