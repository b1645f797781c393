"""The queue's Lua scripts. Redis runs each as a whole, so what a script has checked still holds when it writes.

Every one may run twice for the same request, as when a client has lost its connection before the answer.
"""

from __future__ import annotations

# KEYS: requests, job. ARGV: limit, job as JSON, seconds to remember it. The entry; false if the queue is full.
SUBMIT = """
local entry = redis.call('HGET', KEYS[2], 'entry')
if entry then return entry end
if redis.call('HEXISTS', KEYS[2], 'cancelled') == 1 then return 'cancelled' end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
entry = redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
redis.call('HSET', KEYS[2], 'entry', entry)
redis.call('EXPIRE', KEYS[2], ARGV[3])
return entry
"""

# KEYS: requests, job, cancellations. ARGV: group, job id, seconds to remember it.
CANCEL = """
local entry = redis.call('HGET', KEYS[2], 'entry')
redis.call('HSET', KEYS[2], 'cancelled', 1)
redis.call('EXPIRE', KEYS[2], ARGV[3])
if not entry then return 0 end
if #redis.call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1) == 0 then
    return redis.call('XDEL', KEYS[1], entry)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'id', ARGV[2])
return 1
"""

# KEYS: requests. ARGV: group, worker, lease in ms, room, whether the worker is idle, tries allowed.
# {taken, parked: both {entry, job, tries}; number of suspects}
CLAIM = """
local taken, parked, suspects = {}, {}, 0
local room, alone, tries_allowed = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6])
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', 100)) do
    local entry, tries = pending[1], pending[4]
    local found = redis.call('XRANGE', KEYS[1], entry, entry)
    local take = false
    if #found == 0 then
        redis.call('XACK', KEYS[1], ARGV[1], entry)
    elseif tries >= tries_allowed then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
        table.insert(parked, {entry, found[1][2][2], tries})
    elseif tries == tries_allowed - 1 and tries > 0 then
        suspects = suspects + 1
        take = alone and room > 0 and #taken == 0
        if take then room = 0 end
    elseif room > 0 then
        take, room, alone = true, room - 1, false
    end
    if take then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry)
        table.insert(taken, {entry, found[1][2][2], tries + 1})
    end
end
return {taken, parked, suspects}
"""

_OWNED = """
local function owned(requests, group, consumer, entry)
    local pending = redis.call('XPENDING', requests, group, entry, entry, 1)
    return #pending > 0 and pending[1][2] == consumer and pending[1]
end
"""

# KEYS: requests, a job each. ARGV: group, worker, an entry each. {entries lost, entries cancelled}
RENEW = (
    _OWNED
    + """
local lost, cancelled = {}, {}
for i = 3, #ARGV do
    local entry = ARGV[i]
    if owned(KEYS[1], ARGV[1], ARGV[2], entry) then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
    else
        table.insert(lost, entry)
    end
    if redis.call('HEXISTS', KEYS[i - 1], 'cancelled') == 1 then table.insert(cancelled, entry) end
end
return {lost, cancelled}
"""
)

# KEYS: requests, replies, parked. ARGV: group, worker, entry, reply, job to park, why, how many to keep parked.
FINISH = (
    _OWNED
    + """
if not owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
if ARGV[4] ~= '' then redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'reply', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'job', ARGV[5], 'why', ARGV[6]) end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
return 1
"""
)

# KEYS: requests. ARGV: group, worker, entry, how many tries to take back.
RELEASE = (
    _OWNED
    + """
local pending = owned(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if not pending then return 0 end
local tries = math.max(0, pending[4] - tonumber(ARGV[4]))
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', 86400000, 'RETRYCOUNT', tries, 'JUSTID')
return 1
"""
)
