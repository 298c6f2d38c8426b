"""
A cluster on paper: one training step of all ranks of a layout, event by event, so that the planner's step time is not only a formula.

Each rank runs its own list of parallel.schedule with the messages of parallel.add_messages, part by part (block, embedding, heads), with
the times of data/plan.py. A collective begins when the last of its ranks has come to it, a message when both sides have posted it and the
one before it on its link is there; ZeRO's collectives go beside the computation, as in optim_zero.py. python parallel.py plan
--simulate=true runs it: about 100,000 events a second, so 1,024 ranks take 20 seconds with 32 microbatches, and minutes with hundreds.
"""
import math, random
from collections import defaultdict, deque
from data.plan import ADD, BLOCKS, chunks, times, zero_times
from parallel import add_messages, message, schedule


def program(cfg, l, c, T, rank, width, lists, took, moved):
    """
    What a rank does in a step: ('work', seconds), ('start', key, ranks, seconds, channel), ('wait', key). All collectives and messages are
    started and waited for by keys; those of one channel go one after the other.
    """
    pp, m, v, z, t, ep, d = l['pp'], l['m'], l['v'], l['zero'], l['tp'], l['ep'], l['dp'] * l['cp']
    here = d * t                                                   # ranks of a stage
    p, at = rank // here, rank % here
    mine, shards, flying = chunks(cfg, l, p), ('dp', p, at % t), []            # shards: the ranks with which this one shares its parameters
    hop = l['rows'] * T // l['cp'] * cfg.n_embd * width / t
    hop = hop / c['net'] + c['far'] if here >= c['node'] else hop / c['link'] + c['near']

    def go(kind, chunk, i, when):
        return 'start', (kind, chunk, i, when, shards), d, moved[mine[chunk][i]][kind], shards

    def one_pass(kind, chunk, mb):
        order = range(len(mine[chunk])) if kind == 'F' else range(len(mine[chunk]) - 1, -1, -1)
        reads = [i for i in order if kind == 'F' or mine[chunk][i] in BLOCKS]       # parts whose parameters this pass reads
        for i in order:
            part = mine[chunk][i]
            f, b, _ = took[part]
            s = f if kind == 'F' else b
            if z == 3 and i in reads:                              # parameters are sent for one part ahead
                if i == reads[0]:
                    yield go('gather', chunk, i, (kind, mb))
                yield 'wait', ('gather', chunk, i, (kind, mb), shards)
                for nxt in reads[reads.index(i) + 1:][:1]:
                    yield go('gather', chunk, nxt, (kind, mb))
            elif z in (1, 2) and kind == 'F' and mb == 0:
                yield 'wait', ('gather', chunk, i, 0, shards)
            later = f['products'] if kind == 'B' and part in BLOCKS else 0.0             # left for W
            add = (kind != 'F') * ADD * moved[part]['whole'] / c['hbm']
            yield 'work', sum(y for x, y in s.items() if x not in ('tp', 'ep')) - later + add
            for group, size in (('tp', t), ('ep', ep)):
                if size > 1 and s.get(group):
                    key = group, kind, chunk, i, mb, rank // size
                    yield 'start', key, size, s[group], (group, rank // size)
                    yield 'wait', key
            if kind == 'BW' and d > 1 and (z > 1 or mb == m - 1):
                if z > 1 and len(flying) > 1:                      # at most two whole gradients at once
                    yield 'wait', flying.pop(0)
                yield go('reduce', chunk, i, mb)
                flying.append(('reduce', chunk, i, mb, shards))

    for chunk in range(v) if z in (1, 2) else ():                  # what the step before has sent for
        for i in range(len(mine[chunk])):
            yield go('gather', chunk, i, 0)
    for kind, chunk, mb in lists[p]:
        if kind in ('F', 'B', 'BW'):
            before = ('F', chunk * pp + p - 1, mb) if kind == 'F' else ('B', chunk * pp + p + 1, mb)
            if pp > 1 and 0 <= before[1] < pp * v:
                yield 'wait', (before, at)
            yield from one_pass(kind, chunk, mb)
        elif kind == 'W':
            yield 'work', sum(took[part][0]['products'] for part in mine[chunk] if part in BLOCKS)
        else:
            a, b, msg = message((kind, chunk, mb), p, pp)
            yield 'start', (msg, at), 2, hop, (a, b, at)
    if d > 1 and l['schedule'] == 'zbh1':                          # gradients are whole when the last W is done
        for i in range(len(mine[0])):
            yield go('reduce', 0, i, m - 1)
    for chunk in range(v) if d > 1 else ():
        for i in range(len(mine[chunk])):
            yield 'wait', ('reduce', chunk, i, m - 1, shards)
    yield 'start', 'norm', pp * here, 2 * math.log2(max(2, pp * here)) * c['far'], 'norm'          # one number, by a tree
    yield 'wait', 'norm'
    yield 'work', sum(moved[part]['own'] for parts in mine for part in parts) * (32 + width) / c['hbm']


def simulate_cluster(cfg, l, c, T, width=2, spread=0.0, seed=0):
    """
    -> dict: seconds of a step of layout l on cluster c; computing: mean share of it in which a rank computes; events. spread: standard
    deviation of the ranks' slowness; nobody is faster than planned. ValueError if the ranks would wait for ever.
    """
    ranks = l['dp'] * l['cp'] * l['tp'] * l['pp']
    parts = {part for r in range(l['pp']) for chunk in chunks(cfg, l, r) for part in chunk}
    took, moved = {p: times(cfg, l, c, T, p, width) for p in parts}, {p: zero_times(cfg, l, c, p, width) for p in parts}
    lists = add_messages(schedule(l['schedule'] or '1f1b', l['pp'], l['m'], l['v']), l['m'], l['v'])
    rng = random.Random(seed)
    slower = [1 + abs(rng.gauss(0, spread)) for _ in range(ranks)]
    runs, now, busy = [program(cfg, l, c, T, r, width, lists, took, moved) for r in range(ranks)], [0.0] * ranks, [0.0] * ranks
    ready, come, done, free, waiting, events = deque(range(ranks)), {}, {}, defaultdict(float), defaultdict(list), 0
    while ready:
        rank = ready.popleft()
        for op in runs[rank]:
            events += 1
            if op[0] == 'work':
                now[rank] += op[1] * slower[rank]
                busy[rank] += op[1] * slower[rank]
            elif op[0] == 'wait':
                if op[1] not in done:
                    waiting[op[1]].append(rank)
                    break
                now[rank] = max(now[rank], done[op[1]])
            else:
                _, key, size, s, channel = op
                number, latest = come.pop(key, (0, 0.0))
                latest = max(latest, now[rank])
                if number + 1 < size:
                    come[key] = number + 1, latest
                    continue
                done[key] = free[channel] = max(latest, free[channel]) + s
                for r in waiting.pop(key, ()):
                    now[r] = max(now[r], done[key])
                    ready.append(r)
    if come or waiting:
        raise ValueError(f'the ranks wait for ever: {len(waiting)} keys, such as {next(iter(waiting or come))}')
    return dict(seconds=max(now), computing=sum(busy) / ranks / max(now), events=events)
