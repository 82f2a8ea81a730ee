-- What the scripts share. All times are microseconds of the server's clock, all amounts millionths of a call or of a cost's unit,
-- all of them whole numbers below 2^53, so that they are exact.
--
-- A count is a hash: `t` what is counted in slices, `o` the oldest slice that may hold something, `l` what is leased to pods,
-- `x` when the first lease is over, a field for each slice with its amount, and `L<pod>.<number>` for each lease: its amount
-- and its end. Slices are those of sidecar/engine/src/window.rs: 128 of a window, each counting until slice + 130 begins.
local T = redis.call('TIME')
local now = T[1] * 1000000 + T[2]

local function slice_of(t, w)
  local rest = math.fmod(t, w)
  return (t - rest) / w * 128 + math.floor(rest * 128 / w)
end

local function end_of(slice, w)
  local at = slice + 130
  local rest = math.fmod(at, 128)
  return (at - rest) / 128 * w + math.ceil(rest * w / 128)
end

-- Counts an amount in a slice; one that is over already counts no longer.
local function add(c, slice, amount)
  -- Nothing fits beside so much, and beyond it numbers are not exact.
  amount = math.min(amount, 9007199254740991 - c.t)
  if amount <= 0 or slice <= c.cur - 130 then return end
  if redis.call('HINCRBY', c.key, slice, amount) == amount then
    redis.call('PEXPIRE', c.key, math.ceil(c.w * 130 / 128000) + 60000)
  end
  c.t = c.t + amount
  if c.o == 0 or slice < c.o then c.o = slice end
  c.changed = true
end

-- Takes an amount out of a slice, as far as it is there.
local function remove(c, slice, amount)
  local held = tonumber(redis.call('HGET', c.key, slice) or 0)
  amount = math.min(amount, held)
  if amount <= 0 then return end
  if amount == held then redis.call('HDEL', c.key, slice) else redis.call('HINCRBY', c.key, slice, -amount) end
  c.t = c.t - amount
  c.changed = true
end

-- Reads a count, and forgets what is over in it.
local function read(key, w)
  local h = redis.call('HMGET', key, 't', 'o', 'l', 'x')
  local c = {
    key = key, w = w, cur = slice_of(now, w), changed = false,
    t = tonumber(h[1] or 0), o = tonumber(h[2] or 0), l = tonumber(h[3] or 0), x = tonumber(h[4] or 0),
  }
  local last = c.cur - 130
  if c.o > 0 and c.o <= last then
    if last - c.o > 200 then
      local all = redis.call('HGETALL', key)
      for i = 1, #all, 2 do
        local slice = tonumber(all[i])
        if slice and slice <= last then remove(c, slice, tonumber(all[i + 1])) end
      end
    else
      for slice = c.o, last do remove(c, slice, 9007199254740991) end
    end
    c.o = last + 1
    c.changed = true
  end
  if c.x > 0 and now >= c.x then
    -- What a pod holds and has not told about by the end of its lease counts as used at that moment.
    local all, first = redis.call('HGETALL', key), 0
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 1) == 'L' then
        local amount, over = string.match(all[i + 1], '^(%d+) (%d+)$')
        amount, over = tonumber(amount), tonumber(over)
        if over <= now then
          redis.call('HDEL', key, all[i])
          c.l = c.l - amount
          add(c, slice_of(over, w), amount)
        elseif first == 0 or over < first then
          first = over
        end
      end
    end
    c.x = first
    c.changed = true
  end
  return c
end

local function write(c)
  if c.changed then redis.call('HSET', c.key, 't', c.t, 'o', c.o, 'l', c.l, 'x', c.x) end
end

-- When so much fits, if nothing else is taken before.
local function wait(c, amount, max)
  if amount > max then return -1 end
  local left = c.t + c.l
  for slice = math.max(c.o, c.cur - 129), c.cur + 1 do
    local held = redis.call('HGET', c.key, slice)
    if held then
      left = left - tonumber(held)
      if left + amount <= max then return math.max(end_of(slice, c.w) - now, 1) end
    end
  end
  -- Others hold the rest in leases.
  if c.x > now then return c.x - now end
  return 1
end

-- Places are a hash: `n` all that are taken, `x` when the first pod's are over, and for each pod what it holds: the number of the
-- message that said so, how many, and until when. The greatest number is the newest, in whatever order messages come.
local function places(key)
  local h = redis.call('HMGET', key, 'n', 'x')
  local p = { key = key, n = tonumber(h[1] or 0), x = tonumber(h[2] or 0) }
  if p.x > 0 and now >= p.x then
    local all = redis.call('HGETALL', key)
    p.n, p.x = 0, 0
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 1) == 'P' then
        local held, over = string.match(all[i + 1], '^%d+ (%d+) (%d+)$')
        held, over = tonumber(held), tonumber(over)
        if over <= now then
          redis.call('HDEL', key, all[i])
        else
          p.n = p.n + held
          if p.x == 0 or over < p.x then p.x = over end
        end
      end
    end
    redis.call('HSET', key, 'n', p.n, 'x', p.x)
  end
  return p
end

local function own(p, pod)
  local number, held = string.match(redis.call('HGET', p.key, 'P' .. pod) or '0 0 0', '^(%d+) (%d+) ')
  return tonumber(number), tonumber(held)
end

-- Says what a pod holds, unless something newer was said.
local function hold(p, pod, number, held, life)
  local known, before = own(p, pod)
  if number < known then return end
  local over = now + life
  p.n = p.n - before + held
  -- Also of none: an older message may come later.
  redis.call('HSET', p.key, 'P' .. pod, string.format('%.0f %.0f %.0f', number, held, over))
  if p.x == 0 or over < p.x then p.x = over end
  redis.call('HSET', p.key, 'n', p.n, 'x', p.x)
  redis.call('PEXPIRE', p.key, math.ceil(life / 1000) + 60000)
end
