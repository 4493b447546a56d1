-- Applies changes. KEYS: session, messages, values, inflight, received of each session.
-- ARGV: records and bytes that a session may hold, then each change: its letter, which session, epoch (20 digits), and
--   A expires (16 digits), value
--   K through, how many, settled ..., how many, {seq, packet id, stage} ...
--   Q how many, taken ..., how many, released ...
--   W has will, due, value
--   C, R
-- Answers for each change: 'D' done, 'X' full, 'U' unknown, 'F<epoch>' fenced, '<seq> <dropped>' appended.
local records_max, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = 3
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local function text(number)
  return string.format('%.0f', number)
end

local FIELDS = { 'last', 'through', 'sent', 'dropped', 'records', 'bytes' }

-- Sessions that were looked at; false: not there.
local sessions = {}

local function load(i)
  if sessions[i] == nil then
    local f = redis.call('HMGET', KEYS[5 * i - 4], 'epoch', unpack(FIELDS))
    if f[1] then
      local s = {
        epoch = f[1], session = KEYS[5 * i - 4], messages = KEYS[5 * i - 3], values = KEYS[5 * i - 2],
        inflight = KEYS[5 * i - 1], received = KEYS[5 * i],
      }
      for n, field in ipairs(FIELDS) do
        s[field] = tonumber(f[n + 1] or 0)
      end
      sessions[i] = s
    else
      sessions[i] = false
    end
  end
  return sessions[i]
end

-- Bytes of a record's value; nil: it is not there.
local function size_of(s, seq)
  local length = redis.call('HSTRLEN', s.values, seq)
  return length > 0 and length - 16 or nil
end

local function forget(s, seq, size)
  redis.call('ZREM', s.messages, seq)
  redis.call('HDEL', s.values, seq)
  if tonumber(seq) <= s.sent then
    redis.call('HDEL', s.inflight, seq)
  end
  s.records = s.records - 1
  s.bytes = s.bytes - size
end

local function append(s, expires, value)
  local records, missing = s.records + 1, #value - (bytes_max - s.bytes)
  local victims, skipped = {}, 0
  local from = text(math.max(s.sent, s.dropped) + 1)
  while records > records_max or missing > 0 do
    local chunk = redis.call('ZRANGEBYSCORE', s.messages, from, '+inf', 'LIMIT', skipped, 128)
    if #chunk == 0 then
      return 'X'
    end
    skipped = skipped + 128
    for _, seq in ipairs(chunk) do
      local size = size_of(s, seq)
      victims[#victims + 1] = { seq, size }
      records, missing = records - 1, missing - size
      if records <= records_max and missing <= 0 then
        break
      end
    end
  end
  local seq = text(s.last + 1)
  -- First, so that a server without memory refuses before anything is changed.
  redis.call('HSET', s.values, seq, expires .. value)
  redis.call('ZADD', s.messages, seq, seq)
  for _, victim in ipairs(victims) do
    forget(s, victim[1], victim[2])
    s.dropped = tonumber(victim[1])
  end
  s.last = s.last + 1
  s.records = s.records + 1
  s.bytes = s.bytes + #value
  return seq .. ' ' .. #victims
end

local function acknowledge(s)
  local through = math.min(tonumber(take()), s.last)
  if through > s.through then
    for _, seq in ipairs(redis.call('ZRANGEBYSCORE', s.messages, '-inf', text(through))) do
      forget(s, seq, size_of(s, seq))
    end
    s.through = through
    s.sent = math.max(s.sent, through)
  end
  for _ = 1, tonumber(take()) do
    local seq = take()
    local size = size_of(s, seq)
    if size then
      forget(s, seq, size)
    end
  end
  for _ = 1, tonumber(take()) do
    local seq, packet_id, stage = take(), take(), take()
    local size = size_of(s, seq)
    if size then
      redis.call('HSET', s.inflight, seq, packet_id .. stage)
      if stage == 'R' then
        redis.call('HSET', s.values, seq, '9999999999999999')
        s.bytes = s.bytes - size
      end
      s.sent = math.max(s.sent, tonumber(seq))
    end
  end
end

local function received(s)
  for _, command in ipairs({ 'SADD', 'SREM' }) do
    for _ = 1, tonumber(take()) do
      redis.call(command, s.received, take())
    end
  end
end

local function clear(s)
  redis.call('UNLINK', s.messages, s.values, s.inflight, s.received)
  redis.call('HDEL', s.session, 'will', 'due')
  s.through, s.sent, s.dropped, s.records, s.bytes = s.last, s.last, 0, 0, 0
end

-- Passes over what belongs to a change that is refused.
local function skip(letter)
  if letter == 'A' then
    at = at + 2
  elseif letter == 'K' then
    at = at + 1
    at = at + 1 + tonumber(ARGV[at])
    at = at + 1 + 3 * tonumber(ARGV[at])
  elseif letter == 'Q' then
    at = at + 1 + tonumber(ARGV[at])
    at = at + 1 + tonumber(ARGV[at])
  elseif letter == 'W' then
    at = at + 3
  end
end

local answers = {}
while at <= #ARGV do
  local letter, i, epoch = take(), tonumber(take()), take()
  local s, answer = load(i), 'D'
  if not s then
    answer = 'U'
    skip(letter)
  elseif s.epoch > epoch then
    answer = 'F' .. s.epoch
    skip(letter)
  else
    s.epoch = epoch
    if letter == 'A' then
      local expires = take()
      answer = append(s, expires, take())
    elseif letter == 'K' then
      acknowledge(s)
    elseif letter == 'Q' then
      received(s)
    elseif letter == 'W' then
      local has, due, value = take(), take(), take()
      if has == '1' then
        redis.call('HSET', s.session, 'will', value, 'due', due)
      else
        redis.call('HDEL', s.session, 'will', 'due')
      end
    else
      clear(s)
      if letter == 'R' then
        redis.call('UNLINK', s.session)
        sessions[i] = false
      end
    end
  end
  answers[#answers + 1] = answer
end

for _, s in pairs(sessions) do
  if s then
    local row = { 'epoch', s.epoch }
    for _, field in ipairs(FIELDS) do
      row[#row + 1] = field
      row[#row + 1] = text(s[field])
    end
    redis.call('HSET', s.session, unpack(row))
  end
end
return answers
