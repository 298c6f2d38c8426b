"""
What a run will cost, before a cluster is rented: memory of each GPU, bytes on each link, idle time, step time and MFU of every layout.

    python parallel.py plan --model=config/dense_7b.py --gpus=8 --gpu=h100
    python parallel.py plan --model=config/moe_30b.py --gpus=512 --gpu=b200 --top=5 --png=plan.png
    python parallel.py plan --model=config/dense_405b.py --gpus=1024 --flops=500e12 --memory=64e9 --link=100e9 --net=25e9 --node=4
    python parallel.py plan --model=config/dense_405b.py --gpus=1024 --simulate=true --spread=0.02       the best layout, event by event

Keys of train.py may follow, as for train.py; a key of the layout given there (--tp=8) holds for all layouts. The layout that the file itself sets
gets a line of its own. All positions are taken for text, each row for one document. sp is on wherever tp is: the same bytes, less memory.

The bytes are those that tests/bench/memory.py and comm.py hold the code to; operations and activations are model.count_*. Times: matrix products
at EFFICIENCY of the peak (the one constant that was fitted, to one published run: tests/bench/plan.py), attention at ATTENTION of it, everything
else at the speed of memory, collectives as rings with a latency per step. What overlaps in the code overlaps here: ZeRO's reductions with the
backward pass, its gathers with the forward pass, K and V on their ring with attention. data/cluster.py runs the same times as events on all ranks.
"""
import ast, math, re
from collections import Counter
from contextlib import redirect_stdout
from copy import copy
from dataclasses import fields
from functools import lru_cache
from io import StringIO
from itertools import product
from pathlib import Path
from configurator import cast, configure
from data.codec import SPECIALS, TIKTOKEN
from model import D, N_FREQ, ModelConfig, count_activations, count_flops, count_params
from parallel import bubble_theory, check_layout, split_layers

# A cluster. flops, fp8: dense operations per second of one GPU; memory: its bytes; hbm: bytes per second of its memory (NVIDIA's data sheets of
# H100 SXM, H200 SXM, DGX B200). node: GPUs in a node; link, net: bytes per second and GPU of collectives inside a node, and of its adapter to the
# others; near, far: seconds of one step of a ring. link, near and far are what NCCL reckons with: 18 links of SM90_NVLINK_BW or SM100_NVLINK_BW
# (src/graph/topo.h), latencies of ring, simple protocol (src/graph/tuning.cc). net: 400 Gb/s. B200 has been compared with no measurement.
H100 = dict(flops=989e12, fp8=1979e12, memory=80e9, hbm=3.35e12, node=8, link=370e9, net=50e9, near=3.4e-6, far=14e-6)
GPUS = dict(h100=H100, h200=dict(H100, memory=141e9, hbm=4.8e12), b200=dict(H100, flops=2250e12, fp8=4500e12, memory=180e9, hbm=8e12, link=720e9))
EFFICIENCY = 0.506   # of the peak, in matrix products as they are in training: fitted to one published run
ATTENTION = 0.35     # of the peak, in attention: FlashAttention-2 on H100 (Shah et al. 2024, "FlashAttention-3", abstract)
ROOM = 0.90          # of the memory may be planned for; the rest is left to the CUDA context, NCCL and fragmentation (a guess)
LOGIT = 40           # bytes moved per logit: bfloat16 and float32 written and read, softmax, gradient (parallel._LinearCrossEntropy)
ADD = 10             # bytes moved per parameter when a gradient is added in float32


# ---------------------------------------------------------------- what a rank holds
# A layout l is a dict: dp, tp, pp, cp, ep, zero, recompute (share of the forward pass that is run again), rows (of a microbatch), m (microbatches),
# schedule ('' without a pipeline), v (chunks per rank), fp8. A rank holds parts of four kinds: embed, dense and moe (blocks), heads.

@lru_cache(None)
def stages(n_layer, stages_, heads):
    return split_layers(n_layer, stages_, 0.1, heads)


def chunks(cfg, l, rank):
    """The parts of each chunk of a pipeline rank, in order, as model.build gives them out."""
    heads = (cfg.vocab_size * cfg.n_embd + (cfg.image + cfg.audio) * 12 * cfg.flow_width ** 2) / (12 * cfg.n_embd ** 2)
    s = stages(cfg.n_layer, l['pp'] * l['v'], min(heads, cfg.n_layer / l['pp']))[rank::l['pp']]
    block = lambda i: 'moe' if cfg.n_expert and i >= cfg.dense_layers else 'dense'
    return [['embed'] * (a == 0) + [block(i) for i in range(a, b)] + ['heads'] * (b == cfg.n_layer) for a, b in s]


def weights(cfg, l, part):
    """Parameters of a part on one rank: those that ZeRO shards over dp * cp, and those of experts. As optim_zero.make_units has them, without padding."""
    C, t, W, g = cfg.n_embd, l['tp'], cfg.flow_width, 3 if cfg.act == 'swiglu' else 2
    V = -(-cfg.vocab_size // t) * C
    if part == 'embed':
        return V + cfg.image * C * (D + 4 * (2 * N_FREQ + 1)) + cfg.audio * C * 128, 0
    if part == 'heads':                                            # of several stages the last holds a copy of a tied embedding
        flow = lambda d: W * 2 * d + 64 * 64 + (3 * cfg.flow_depth + 2) * W * (64 + C) + 2 * cfg.flow_depth * W * W // t
        return C + (V if not cfg.tie or l['pp'] > 1 else 0) + cfg.image * flow(D) + cfg.audio * flow(128), 0
    attention = 2 * C * C // t + 2 * max(cfg.n_kv_head // t, 1) * cfg.hd * C + cfg.qk_norm * cfg.hd + 2 * C
    if part == 'dense':
        return attention + g * C * cfg.ff // t, 0
    return attention + g * C * cfg.shared_ff // t + cfg.n_expert * C, cfg.n_expert // l['ep'] * g * C * cfg.expert_ff


def kept(cfg, l, T, part, width=2, again=0):
    """
    Bytes that a part keeps from one microbatch's forward pass for the backward pass: model.count_activations, and for a MoE block what it keeps beside
    its shared expert. again: the share that is run again and not kept.
    """
    n, t, c = l['rows'] * T // l['cp'], l['tp'], copy(cfg)         # one layer of it, the last of three: so it is counted with the heads, without embedding
    c.n_layer, c.ff = 3, cfg.shared_ff if part == 'moe' else cfg.ff
    count = lambda recompute: count_activations(c, l['rows'], T // l['cp'], n, 0, 0, width=width, recompute=recompute, layers=[2], tp=t, sp=t > 1)
    if part in ('embed', 'heads'):
        return count(True).get(part, 0)
    whole = count(False)['blocks']
    if part == 'moe':      # a token: itself and its scores in float32; top_k times: as it came, sorted, its hidden units, as it left, and three indices
        k = cfg.top_k * ((2 * cfg.n_embd + (4 if cfg.act == 'swiglu' else 2) * cfg.expert_ff + 1) * width + 24)
        whole += n // t * (4 * cfg.n_embd + 4 * cfg.n_expert + k)
    return again * count(True)['blocks'] + (1 - again) * whole if again else whole


def alive(l, rank):
    """
    Microbatches, of one chunk each, whose activations a pipeline rank holds at most: what parallel.simulate finds (tests/test_plan.py). After B zbh1 holds
    only what W needs, of up to `rank` more: memory() adds that.
    """
    pp, m, v = l['pp'], l['m'], l['v']
    return {'': 1, 'gpipe': m, '1f1b': min(pp - rank, m), 'zbh1': min(pp - rank, m),
            'interleaved': min(2 * (pp - 1 - rank) + (v - 1) * pp + 1, m * v)}[l['schedule']]


def memory(cfg, l, T, rank=0, width=2):
    """
    Bytes on a GPU of a pipeline rank, by kind. width: bytes of the compute type (with 4 parameters are their own masters). working: the two largest
    parts as whole parameters (ZeRO-3) and whole gradients (2, 3), and what a block or the heads make for a moment in the backward pass.
    """
    have, z, out, whole = Counter(sum(chunks(cfg, l, rank), [])), l['zero'], Counter(), []
    C, n, t, d = cfg.n_embd, l['rows'] * T // l['cp'], l['tp'], l['dp'] * l['cp']
    for part, number in have.items():
        sizes = [(p, size) for p, size in zip(weights(cfg, l, part), (d, d * t // l['ep'])) if p]
        for p, size in sizes:
            own = p / size
            out['parameters'] += number * (own if z == 3 else p) * width * (width < 4 or 0 < z < 3)
            out['gradients'] += number * (own if z > 1 else p) * 4
            out['masters'] += number * (own if z else p) * 4 * (width < 4 or z in (0, 3))
            out['moments'] += number * (own if z else p) * 8
        whole += [sum(p for p, size in sizes if size > 1)] * min(number, 2)
        out['activations'] += number * kept(cfg, l, T, part, width, l['recompute']) / l['v'] * alive(l, rank)
    out['activations'] += alive(l, rank) * (l['pp'] > 1) * 2 * C * n / t * width       # what came in and what went out
    if l['schedule'] == 'zbh1':                                    # inputs of linears, and gradients of their outputs, that wait for W
        split = lambda ff: 2 * C + 2 * cfg.n_kv_head * cfg.hd + (3 if cfg.act == 'swiglu' else 2) * ff
        waits = sum(number * (4 * C + split(cfg.ff if part == 'dense' else cfg.shared_ff) / t) for part, number in have.items() if part in ('dense', 'moe'))
        out['activations'] += min(rank, l['m']) * n * width * waits
    f = (4 if cfg.act == 'swiglu' else 2) * cfg.ff // t            # a block run again has its own activations, and by then half of the rest
    blocks = [kept(cfg, l, T, part, width) + (2 * C + f / 2) * n * width if l['recompute'] else (3 * C + f) * n * width
              for part in have if part in ('dense', 'moe')]
    V = -(-cfg.vocab_size // t)
    logits = (min(4096, n) * V * (8 + width) + V * C * width) * ('heads' in have)
    out['working'] = sum(sorted(whole)[-2:]) * (width * (z == 3) + 4 * (z > 1)) + max(*blocks, logits)
    return out


# ---------------------------------------------------------------- what it takes

def ring(c, size, stride, nbytes, steps=None):
    """Seconds of a collective of `size` ranks, `stride` apart, each of which sends nbytes. One that leaves the node uses the adapters of all its members there."""
    if size == 1 or not nbytes:
        return 0.0
    far, inside = size * stride > c['node'], max(1, min(size, c['node'] // stride))
    return (steps or size - 1) * c['far' if far else 'near'] + nbytes / (min(c['link'], c['net'] * inside) if far else c['link'])


def all_to_all(c, size, stride, nbytes):
    """Seconds in which each of `size` ranks sends nbytes to the others in equal parts; what leaves the node goes through its own adapter."""
    if size == 1:
        return 0.0
    away = nbytes * (size - max(1, min(size, c['node'] // stride))) / (size - 1)
    return max((nbytes - away) / c['link'], away / c['net']) + c['far' if away else 'near']


def times(cfg, l, c, T, part, width=2):
    """Of one part, microbatch and rank: seconds by kind of the forward and of the backward pass, and bytes sent in both by group."""
    C, t, n, cp, k, again = cfg.n_embd, l['tp'], l['rows'] * T // l['cp'], l['cp'], cfg.top_k, l['recompute']
    bsh = (t - 1) / t * n * C * width
    if part == 'embed':
        once = ring(c, t, 1, bsh)
        return dict(tp=once), dict(tp=once), dict(tp=2 * bsh)
    if part == 'heads':                                            # the loss makes its gradients in the forward pass
        V, dh = cfg.vocab_size / t, 2 * (t - 1) / t * n * (C + 3) * width
        F = dict(products=6 * n * V * C / c['flops'] / EFFICIENCY, elementwise=n * V * LOGIT / c['hbm'], tp=ring(c, t, 1, dh, 4 * (t - 1)) + ring(c, t, 1, bsh))
        return F, dict(tp=0.0), dict(tp=bsh + dh)
    moe, g, H = part == 'moe', 3 if cfg.act == 'swiglu' else 2, cfg.n_kv_head * cfg.hd
    ff = cfg.shared_ff if moe else cfg.ff
    W = (2 * C * C + 2 * H * C + g * C * (ff + moe * k * cfg.expert_ff)) / t       # that a position meets; tokens of experts are split over tp
    rate, moved = c['flops'], 2 * kept(cfg, l, T, part, width)     # each number that is kept is written once and read once
    if l.get('fp8'):       # linears' inputs, weights and output gradients: read for the largest magnitude, read and written for the cast
        rate, moved = c['fp8'], moved + 5 * (n * (4 * C + 2 * ff / t) + W)
    way = (l['ep'] - 1) / l['ep'] * n / t * k * C * width * moe
    hops = 2 * (cp - 1) * n * H / t * width                        # K and V, to a neighbour: through one adapter
    travel = ring(dict(c, net=c['net'] / max(1, min(cp, c['node'] // t))), cp, t, hops)
    F = dict(products=2 * n * W / rate / EFFICIENCY, attention=2 * l['rows'] * T * T / cp * C / t / c['flops'] / ATTENTION,       # causal: half
             elementwise=moved / c['hbm'], tp=ring(c, t, 1, 4 * bsh, 4 * (t - 1)), ep=2 * all_to_all(c, l['ep'], 1, way) if moe else 0.0)
    B = {kind: s * ({'products': 2, 'attention': 2.5, 'elementwise': 2}.get(kind, 1) + again) for kind, s in F.items()}
    F['cp'], B['cp'] = max(0.0, travel - F['attention']), max(0.0, (2 + again) * travel - B['attention'])
    return F, B, dict(tp=4 * bsh * (2 + again), ep=2 * way * (2 + again), cp=hops * (3 + again))


def zero_times(cfg, l, c, part, width=2):
    """
    Of a part: seconds to gather and to reduce it and to fetch it again for the backward pass (ZeRO-3; the softmax and embeddings are not read again), bytes
    of a gather and of a reduction, parameters that this rank updates and that it computes with.
    """
    z, t, d, out = l['zero'], l['tp'], l['dp'] * l['cp'], Counter()
    for p, size, stride in zip(weights(cfg, l, part), (d, d * t // l['ep']), (t, l['ep'])):
        twice = 1 if z else 2
        g, r = (size - 1) / size * p * width * (z > 0), (size - 1) / size * p * 4 * twice
        out.update(gather=ring(c, size, stride, g), reduce=ring(c, size, stride, r, twice * (size - 1)), g=g, r=r, own=p / (size if z else 1), whole=p)
    for x, y in (('again', 'gather'), ('g again', 'g')):
        out[x] = out[y] * (part in ('dense', 'moe'))
    return out


def fullest(cfg, l, T, width=2):
    """memory() of the pipeline rank that needs most: one of the first two or the last."""
    return max((memory(cfg, l, T, r, width) for r in {0, 1 % l['pp'], l['pp'] - 1}), key=lambda x: sum(x.values()))


def cost(cfg, l, c, T, width=2, full=None):
    """
    One step of layout l on cluster c, rows of T positions -> dict: seconds; mfu (attention counted in full, as is usual); tokens per second and GPU; idle
    (share of the pipeline); by: seconds of the slowest rank by kind, zero: what is left of what overlaps; sent: bytes per step by group, the most of any
    rank; memory: of the fullest rank by kind.
    """
    pp, m, z, v = l['pp'], l['m'], l['zero'], l['v']
    C, t, d, n = cfg.n_embd, l['tp'], l['dp'] * l['cp'], l['rows'] * T // l['cp']
    ranks = Counter(tuple(sorted(Counter(sum(chunks(cfg, l, r), [])).items())) for r in range(pp))      # most ranks of a pipeline hold the same
    every = {part for have in ranks for part, _ in have}
    took, moved = {p: times(cfg, l, c, T, p, width) for p in every}, {p: zero_times(cfg, l, c, p, width) for p in every}
    mean, sent, slow, top, over, update = [0.0] * 3, Counter(), {}, 0.0, 0.0, 0.0
    for have, number in ranks.items():
        by, bytes_, u, F, W = Counter(), Counter(), Counter(), 0.0, 0.0
        for part, k in have:
            f, b, s = took[part]
            F += k * sum(f.values())
            W += k * f['products'] if l['schedule'] == 'zbh1' and part in ('dense', 'moe') else 0.0
            by.update({x: k * (f[x] + b.get(x, 0)) for x in f})
            bytes_.update({x: k * y for x, y in s.items()})
            u.update({x: k * y for x, y in moved[part].items()})
        by['elementwise'] += ADD * u['whole'] / c['hbm']
        B = sum(by.values()) - F
        if z == 3:                                                 # each microbatch fetches for both passes and reduces
            by['zero'] = max(0.0, u['gather'] - F) + max(0.0, u['again'] + u['reduce'] - B)
            F, B = max(F, u['gather']), max(B, u['again'] + u['reduce'])
        elif z == 2:
            by['zero'], B = max(0.0, u['reduce'] - B), max(B, u['reduce'])
        mean = [x + number / pp * y for x, y in zip(mean, (F, B - W, W))]
        some = [moved[part] for part, _ in have]                   # the last reduction and the first gather have nothing to hide behind
        over = max(over, max((u['reduce'] - B) * (z < 2), max(x['reduce'] for x in some)) + max((u['gather'] - F) * (z < 3), min(x['gather'] for x in some)))
        update = max(update, u['own'] * (32 + width) / c['hbm'])   # masters, moments and the gradient: 16 bytes read and written
        bytes_ = {**{x: m * y for x, y in bytes_.items()},
                  'dp': (u['g'] if z < 3 else m * (u['g'] + u['g again'])) + u['r'] * (1 if z < 2 else m)}
        sent = Counter({x: max(sent[x], y) for x, y in bytes_.items()})
        if F + B > top:
            top, slow = F + B, by
    hop = n * C * width / t * (pp > 1)
    sent['pp'] = hop * m * (2 * v - (pp == 2))                     # first and last stage send one way only: with two ranks that is each of them
    hop = hop / c['net'] + c['far'] if d * t >= c['node'] else hop / c['link'] + c['near']
    bubble = bubble_theory(l['schedule'], pp, m, v, *mean) + 2 * (pp - 1) * hop if pp > 1 else 0.0
    seconds, positions = m * top + bubble + over + update, l['rows'] * T * m * l['dp']
    by = {**{k: m * s for k, s in slow.items()}, 'zero': m * slow.get('zero', 0) + over, 'bubble': bubble, 'optimizer': update}
    mfu = 3 * count_flops(cfg, positions, positions, 0, 0, positions * T) / seconds / (d * t * pp) / c['flops']
    return dict(layout=l, seconds=seconds, mfu=mfu, tokens=positions / seconds / (d * t * pp), idle=1 - m * sum(mean) / (m * top + bubble), by=by,
                sent=+sent, memory=full or fullest(cfg, l, T, width))


# ---------------------------------------------------------------- the search

def layouts(cfg, T, rows, world, most, fixed, fell):
    """
    Every layout of `world` GPUs for a step of `rows` rows of T positions that parallel.check_layout lets pass. fixed: {key: value} that all must have. fell,
    {reason without its numbers: [count, an example]}, is added to. most: the largest tp. gpipe is not tried: it idles as long as 1f1b and holds more.
    """
    want = lambda key, values: [fixed[key]] if key in fixed else values

    def out(text):
        fell.setdefault(re.sub(r'[\d.]+', '', text), [0, text])[0] += 1
    sizes = [i for i in range(1, world + 1) if world % i == 0]
    experts = [i for i in sizes if cfg.n_expert % i == 0] if cfg.n_expert else [1]
    for tp, pp, cp, ep in product(want('tp', [i for i in sizes if i <= most]), want('pp', [i for i in sizes if i <= cfg.n_layer]),
                                  want('cp', [i for i in sizes if i <= max(1, T // 4096)]), want('ep', experts)):
        try:
            dp = check_layout(world, tp=tp, pp=pp, cp=cp, ep=ep, sp=tp > 1, n_layer=cfg.n_layer, n_head=cfg.n_head, n_kv_head=cfg.n_kv_head, ff=cfg.ff,
                              n_expert=cfg.n_expert, shared_ff=cfg.shared_ff, flow_width=cfg.flow_width * (cfg.image or cfg.audio), T=T, rows=rows)
        except ValueError as e:
            out(str(e))
            continue
        if fixed.get('dp') not in (None, 0, dp):
            continue
        for zero, again, micro, v in product(want('zero', [0, 1, 2, 3] if dp * cp > 1 else [0]), want('recompute', [0, 1]),
                                             want('rows', [i for i in (1, 2, 4, 8, 16) if i <= rows // dp]), want('v', sorted({1, 2, 4, cfg.n_layer // pp}) if pp > 1 else [1])):
            if rows // dp % micro:
                out(f'{micro} rows of a microbatch do not divide the {rows // dp} of a rank: take a divisor')
                continue
            m = rows // dp // micro
            for name in want('schedule', ['1f1b', 'zbh1'] if v == 1 else ['interleaved']) if pp > 1 else ['']:
                if pp * v > cfg.n_layer:
                    out(f'pp={pp} times {v} chunks exceeds n_layer={cfg.n_layer}: use up to {cfg.n_layer // pp} chunks')
                elif name == 'interleaved' and (m % pp or v == 1):
                    out(f'interleaved with {m} microbatches, pp={pp}: their number must be a multiple, such as {m - m % pp + pp}')
                else:
                    yield dict(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, zero=zero, recompute=again, rows=micro, m=m, schedule=name, v=v, fp8=fixed.get('fp8', False))


def search(cfg, c, T, rows, world, fixed=()):
    """-> (results of cost(), fastest first, the best of each dp, tp, pp, cp, ep; {reason: [layouts that fell out, an example]}; layouts that were looked at)."""
    fell, best, number, least = {}, {}, 0, math.inf
    for l in layouts(cfg, T, rows, world, 2 * c['node'], dict(fixed), fell):
        number += 1
        full = fullest(cfg, l, T)
        need = sum(full.values())
        if need > ROOM * c['memory']:
            least = min(least, need)
            fell.setdefault('memory', [0, ''])[0] += 1
            continue
        r, mesh = cost(cfg, l, c, T, full=full), tuple(l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep'))
        if mesh not in best or (r['seconds'], need) < (best[mesh]['seconds'], sum(best[mesh]['memory'].values())):
            best[mesh] = r
    if 'memory' in fell:
        fell['memory'][1] = f'more than {ROOM * c["memory"] / 1e9:.1f} GB, {ROOM:.0%} of a GPU: the smallest of them needs {least / 1e9:.1f} GB'
    return sorted(best.values(), key=lambda r: r['seconds']), fell, number + sum(n for k, (n, _) in fell.items() if k != 'memory')


# ---------------------------------------------------------------- what is shown

KINDS = ('parameters', 'gradients', 'masters', 'moments', 'activations', 'working')
TIMES = ('products', 'attention', 'elementwise', 'tp', 'cp', 'ep', 'zero', 'bubble', 'optimizer')
COLOURS = ('#4269d0', '#6cc5b0', '#97bbf5', '#ff725c', '#efb118', '#a463f2', '#ff8ab7', '#9c9c9c', '#3ca951')


def label(l):
    words = [f'{k}{l[k]}' for k in ('dp', 'tp', 'pp', 'cp', 'ep') if l[k] > 1] or ['one GPU']
    words += [l['schedule'] + (f' x{l["v"]}' if l['v'] > 1 else '')] * (l['pp'] > 1) + [f'zero{l["zero"]}'] * (l['zero'] > 0)
    return ' '.join(words + ['recompute'] * bool(l['recompute']) + [f'rows{l["rows"]}'] + ['fp8'] * bool(l.get('fp8')))


def table(results):
    print(f'{"":46s} {"GB of a GPU":^49s}  {"GB sent per step":^34s}')
    print(f'{"layout":46s} {"param":>6s} {"grad":>6s} {"master":>6s} {"moment":>6s} {"activ":>6s} {"work":>6s} {"all":>6s}  {"tp":>7s} {"cp":>6s} {"ep":>6s} '
          f'{"dp":>6s} {"pp":>5s}  {"idle":>5s} {"step s":>7s} {"tok/s":>7s} {"MFU":>5s}')
    for r in results:
        print(f'{label(r["layout"]):46s} ' + ' '.join(f'{r["memory"][k] / 1e9:6.2f}' for k in KINDS) + f' {sum(r["memory"].values()) / 1e9:6.1f}  '
              + f'{r["sent"]["tp"] / 1e9:7.1f} ' + ' '.join(f'{r["sent"][k] / 1e9:6.1f}' for k in ('cp', 'ep', 'dp')) + f' {r["sent"]["pp"] / 1e9:5.1f}  '
              + f'{r["idle"]:5.1%} {r["seconds"]:7.3f} {r["tokens"]:7,.0f} {r["mfu"]:5.1%}')


def draw(results, c, title, path):
    """Two rows of bars per layout as a PNG: where a step's seconds go, and what fills the memory of a GPU (the line: what may be planned for)."""
    from PIL import Image, ImageDraw, ImageFont
    font, step = ImageFont.load_default(15), 44
    img = Image.new('RGB', (1500, 130 + step * len(results)), 'white')
    pen, text = ImageDraw.Draw(img), '#222222'
    pen.text((20, 12), title, text, ImageFont.load_default(20))
    for x0, wide, unit, key, names, top in ((360, 560, 's', 'by', TIMES, max(r['seconds'] for r in results)), (1010, 440, 'GB', 'memory', KINDS, c['memory'] / 1e9)):
        x = x0
        for name, colour in zip(names, COLOURS):
            pen.rectangle((x, 54, x + 12, 66), colour)
            pen.text((x + 15, 50), name, text, ImageFont.load_default(12))
            x += 24 + int(pen.textlength(name, ImageFont.load_default(12)))
        for i, r in enumerate(results):
            x, y = float(x0), 84 + step * i
            for name, colour in zip(names, COLOURS):
                w = r[key].get(name, 0) / (1e9 if unit == 'GB' else 1) / top * wide
                pen.rectangle((x, y, max(x, x + w - 1), y + 26), colour) if w >= 1 else None
                x += w
            pen.text((x + 5, y + 4), f'{sum(r[key].values()) / (1e9 if unit == "GB" else 1):.3g} {unit}' + f'  MFU {r["mfu"]:.0%}' * (unit == 's'), text, font)
            pen.text((20, y + 4), label(r['layout']), text, ImageFont.load_default(13)) if unit == 's' else None
    line = 1010 + ROOM * 440
    pen.line((line, 78, line, 84 + step * len(results)), '#cc0000', 2)
    img.save(path)


def read_config(args):
    """Config files and flags as train.py takes them -> ({key: value}, ModelConfig, positions of a row, rows of a step)."""
    root = Path(__file__).resolve().parents[1]
    space = {'__file__': str(root / 'train.py')}
    for a in ast.parse((root / 'train.py').read_text()).body:      # train.py's keys and defaults; configure() takes those above its call
        if isinstance(a, ast.Assign) and isinstance(a.value, ast.Constant):
            space[a.targets[0].id] = a.value.value
    with redirect_stdout(StringIO()):                              # it would say what it overrides
        configure(space, args)
    text = TIKTOKEN.get(space['tokenizer']) or 256 + int('0' + space['tokenizer'].partition(':')[2])
    cfg = ModelConfig(vocab_size=text + len(SPECIALS) + space['n_loc'], **{f.name: space[f.name] for f in fields(ModelConfig) if f.name != 'vocab_size'})
    return space, cfg, space['block_size'], space['tokens_per_step'] // space['block_size']


NAMES = dict(dp='dp', tp='tp', pp='pp', cp='cp', ep='ep', zero='zero', recompute='recompute', rows='micro_rows', schedule='pp_schedule', v='pp_chunks')


def own_layout(space, cfg, gpus):
    """The layout that the keys of train.py set, on so many GPUs; ValueError as train.py would say it."""
    l = {**{name: space[key] for name, key in NAMES.items()}, 'recompute': int(space['recompute']), 'fp8': bool(space.get('fp8', False))}
    rows = space['tokens_per_step'] // space['block_size']
    l['dp'] = check_layout(gpus, **{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'v', 'zero')}, sp=l['tp'] > 1, n_layer=cfg.n_layer, n_head=cfg.n_head,
                           n_kv_head=cfg.n_kv_head, ff=cfg.ff, n_expert=cfg.n_expert, shared_ff=cfg.shared_ff, T=space['block_size'], rows=rows)
    l['rows'] = min(l['rows'], rows // l['dp'])
    if rows // l['dp'] % l['rows']:
        raise ValueError(f'micro_rows={l["rows"]} does not divide the {rows // l["dp"]} rows of a rank')
    return {**l, 'm': rows // l['dp'] // l['rows'], 'schedule': l['schedule'] * (l['pp'] > 1)}


def plan_command(argv):
    """See the top of this file."""
    k = dict(model='', gpus=8, gpu='h100', top=8, png='', simulate=False, spread=0.0, **{x: 0.0 for x in H100})
    own, rest = {}, []
    try:
        for arg in argv:
            key, equals, value = arg.removeprefix('--').partition('=')
            if key not in k or not arg.startswith('--') or not equals:
                rest.append(arg)
                continue
            try:
                own[key] = cast(value, type(k[key]), True)
            except (ValueError, OverflowError):
                raise ValueError(f'{arg}: {key} is like {k[key]!r}') from None
        k.update(own)
        if k['gpu'] not in GPUS or k['gpus'] < 1 or not 1 <= k['top'] <= 100:
            raise ValueError(f'--gpu={k["gpu"]} --gpus={k["gpus"]} --top={k["top"]}: use a gpu of {", ".join(GPUS)}, gpus of 1 and more, top of 1 to 100')
        if any(k[x] <= 0 for x in H100 if x in own):
            raise ValueError(f'a cluster by numbers: {", ".join(H100)} are above 0')
        c = {**GPUS[k['gpu']], **{x: k[x] for x in H100 if x in own}}
        c['node'] = max(1, int(c['node']))
        space, cfg, T, rows = read_config(([k['model']] if k['model'] else []) + rest)
        told = {arg[2:].partition('=')[0] for arg in rest if arg.startswith('--')}
        fixed = {**{name: space[key] for name, key in NAMES.items() if key in told}, 'fp8': bool(space.get('fp8', False))}
        p = count_params(cfg)
        print(f'{p["total"] / 1e9:.2f} B parameters ({p["active"] / 1e9:.2f} B active), {rows} rows of {T} per step, {k["gpus"]} x {k["gpu"]}: '
              f'{c["flops"] / 1e12:.0f} TFLOP/s, {c["memory"] / 1e9:.0f} GB, {c["link"] / 1e9:.0f} GB/s in a node of {c["node"]}, {c["net"] / 1e9:.0f} GB/s across')
        results, fell, number = search(cfg, c, T, rows, k['gpus'], fixed)
        if not results:
            raise ValueError(f'none of {number} layouts can run: ' + '; '.join(f'{n} times: {why}' for n, why in sorted(fell.values(), reverse=True)[:4]))
    except ValueError as e:
        raise SystemExit(f'plan {" ".join(argv)}: {e}')
    try:
        mine, why = [cost(cfg, own_layout(space, cfg, k['gpus']), c, T)], '^'
    except ValueError as e:
        mine, why = [], f'cannot run: {e}'
    table(results[:k['top']] + mine)
    print(f'{why} as set in {k["model"] or "train.py"}')
    print(f'{number:,} layouts looked at; the best of each dp, tp, pp, cp, ep is listed. What fell out, with an example:')
    for n, why in sorted(fell.values(), key=lambda x: -x[0]):
        print(f'{n:8,d}  {why}')
    r = results[0]
    print('of the best step: ' + ', '.join(f'{name} {r["by"].get(name, 0) / r["seconds"]:.1%}' for name in TIMES if r['by'].get(name, 0) > .0005 * r['seconds']))
    if k['png']:
        draw(results[:k['top']], c, f'{k["model"] or "train.py"} on {k["gpus"]} x {k["gpu"]}', k['png'])
        print(f'chart: {k["png"]}')
    if k['simulate']:
        from data import cluster
        for spread in dict.fromkeys((0.0, k['spread'])):
            ran = cluster.simulate_cluster(cfg, r['layout'], c, T, spread=spread)
            print(f'simulated, {k["gpus"]} ranks, {ran["events"]:,} events, speeds spread by {spread:.0%}: {ran["seconds"]:.3f} s, formula {r["seconds"]:.3f} s, '
                  f'difference {ran["seconds"] / r["seconds"] - 1:+.1%}')
    return results
