"""
What a step costs on paper: memory of each GPU, bytes on each link, idle time, seconds and MFU of a layout on a cluster. data/layouts.py
searches with it, data/cluster.py runs the same times as events on all ranks; `python parallel.py plan` is the command.

The bytes are those that tests/bench/memory.py and comm.py hold the code to; operations are count_flops(). Times: matrix products at
EFFICIENCY of the peak (the one constant that was fitted, to one published run: tests/bench/plan.py), attention at ATTENTION of it,
everything else at the speed of memory, collectives as rings with a latency per step. What overlaps in the code overlaps here: ZeRO's
reductions with the backward pass, its gathers with the forward pass, K and V on their ring with attention. All positions are taken for
text, each row for one document. sp is on wherever tp is: the same bytes, less memory.

Not in it: launches of kernels, what token shift sends with cp, permutations and uneven load of experts, data, checkpoints, evaluation,
failures.
"""
import math, time
from collections import Counter
from copy import copy
from functools import lru_cache
import torch
from model import D, N_FREQ
from parallel import split_layers

# A cluster. flops, flops8: dense operations per second of one GPU in bfloat16, in 8 bits; memory: its bytes; hbm: bytes per second of its
# memory (NVIDIA's data sheets of H100 SXM, H200 SXM, DGX B200). node: GPUs in a node; link, net: bytes per second and GPU of collectives
# inside a node, and of its adapter to the others; near, far: seconds of one step of a ring. link, near and far are what NCCL reckons with:
# 18 links of SM90_NVLINK_BW or SM100_NVLINK_BW (src/graph/topo.h), latencies of ring, simple protocol (src/graph/tuning.cc). net: 400
# Gb/s. B200 has been compared with no measurement.
H100 = dict(flops=989e12, flops8=1979e12, memory=80e9, hbm=3.35e12, node=8, link=370e9, net=50e9, near=3.4e-6, far=14e-6)
GPUS = dict(h100=H100, h200=dict(H100, memory=141e9, hbm=4.8e12),
            b200=dict(H100, flops=2250e12, flops8=4500e12, memory=180e9, hbm=8e12, link=720e9))
EFFICIENCY = 0.506   # of the peak, in matrix products as they are in training: fitted to one published run
ATTENTION = 0.35     # of the peak, in attention: FlashAttention-2 on H100 (Shah et al. 2024, "FlashAttention-3", abstract)
ROOM = 0.90          # of the memory may be planned for; the rest is left to the CUDA context, NCCL and fragmentation (a guess)
LOGIT = 40           # bytes moved per logit: bfloat16 and float32 written and read, softmax, gradient (parallel._LinearCrossEntropy)
ADD = 10             # bytes moved per parameter when a gradient is added in float32
BLOCKS = 'dense', 'moe'


def head(cfg, d, tp=1):
    """Parameters of the head of payloads of d numbers, on one of tp ranks."""
    C, W, mlp = cfg.n_embd, cfg.flow_width, 2 * cfg.flow_depth * cfg.flow_width ** 2 // tp
    if cfg.bins:
        return W * C + mlp + -(-d // tp) * cfg.bins * W
    return W * 2 * d + 64 * 64 + (3 * cfg.flow_depth + 2) * W * (64 + C) + mlp


def count_params(cfg):
    """Parameters by part, from the formulas; 'active' leaves out the experts that a token does not visit."""
    C, L, kv, tables = cfg.n_embd, cfg.n_layer, cfg.n_kv_head * cfg.hd, max(0, cfg.ngram - 1)
    n = 2 if cfg.act == 'swiglu' else 1
    n_moe = max(0, L - cfg.dense_layers) if cfg.n_expert else 0
    out = dict(memory=tables * cfg.ngram_rows * C, embed=((1 + cfg.smear) * C + cfg.value_embed * L * kv) * cfg.vocab_size
               + cfg.image * C * (D + 4 * (2 * N_FREQ + 1)) + cfg.audio * C * 128,
               attention=L * (2 * C * C + 2 * kv * C + (cfg.hd if cfg.qk_norm else 0)),
               mlp=(L - n_moe) * (n + 1) * C * cfg.ff + n_moe * ((n + 1) * C * cfg.shared_ff + cfg.n_expert * C),
               experts=n_moe * cfg.n_expert * (n + 1) * C * cfg.expert_ff, norms=(2 * L + 1 + cfg.token_shift * (L - n_moe)) * C,
               heads=(0 if cfg.tie else cfg.vocab_size * C) + cfg.image * head(cfg, D) + cfg.audio * head(cfg, 128))
    out['total'] = sum(out.values())
    out['active'] = out['total'] - n_moe * (cfg.n_expert - cfg.top_k) * (n + 1) * C * cfg.expert_ff - tables * (cfg.ngram_rows - 1) * C
    return out


def count_flops(cfg, positions, txt, img, aud, attended, draws=4, xin_img=0, xin_aud=0, rc=0):
    """
    Floating-point operations of the matrix products of one forward pass (a backward pass takes twice that): `positions` through the blocks,
    `attended` pairs (query, key) in the scores, and the numbers of targets and of payloads of each kind. Two operations per multiply-add;
    tables take about 6 per number that is looked up (add, sum of gradients, squares, scale, subtract), a third of it counted here.
    """
    p, C, W = count_params(cfg), cfg.n_embd, cfg.flow_width
    n = 2 if cfg.act == 'swiglu' else 1
    n_moe = max(0, cfg.n_layer - cfg.dense_layers) if cfg.n_expert else 0
    blocks = p['attention'] - cfg.n_layer * (cfg.hd if cfg.qk_norm else 0) + p['mlp'] + n_moe * cfg.top_k * (n + 1) * C * cfg.expert_ff
    n_mod = (3 * cfg.flow_depth + 2) * W
    flow = lambda d: head(cfg, d) if cfg.bins else n_mod * C + draws * (head(cfg, d) - n_mod * C)
    return 2 * (positions * blocks + attended * 2 * C * cfg.n_layer + txt * cfg.vocab_size * C + img * flow(D) * cfg.image
                + aud * flow(128) * cfg.audio
                + positions * ((max(0, cfg.ngram - 1) + cfg.smear) * C + cfg.value_embed * cfg.n_layer * cfg.n_kv_head * cfg.hd)
                + C * (cfg.image * (xin_img * D + rc * 4 * (2 * N_FREQ + 1)) + cfg.audio * xin_aud * 128))


def count_activations(cfg, rows, T, txt, img, aud, xin_img=0, xin_aud=0, rc=0, draws=4, width=4, recompute=False, layers=None, tp=1,
                      sp=False):
    """
    Bytes kept from one microbatch's forward pass for its backward pass, by part: rows * T positions on this rank, numbers of targets and of
    payloads of each kind, `width` bytes per number of the compute type; attention by a fused kernel, which keeps q, k, v, its output and a
    log-sum-exp. layers: of this stage. With tp each rank keeps its heads and hidden units, with sp also its T-slice of what lies between.
    """
    C, hd, kv, W, n = cfg.n_embd, cfg.hd, cfg.n_kv_head * cfg.hd, cfg.flow_width, rows * T
    layers = range(cfg.n_layer) if layers is None else layers
    between = n // tp if sp and tp > 1 else n                                  # positions of what is not split over heads or hidden units
    heads, kvs = cfg.n_head // tp, max(1, cfg.n_kv_head // tp) * hd
    norm = (C + 1) * between                                                   # what RMSNorm keeps: its input, 1 / rms
    # v is a view of the projection of both, or with value embeddings a tensor of its own; log-sum-exp: float32
    attention = norm + (C + 2 * heads * hd + (3 - cfg.value_embed) * kvs) * n + heads * n * 4 // width
    if cfg.qk_norm:
        attention += (heads * hd + heads + 2 * cfg.value_embed * kvs + kvs // hd) * n          # k is a view of that projection, too
    mlp = lambda ff: norm + (1 + cfg.token_shift) * C * n + ((2 if cfg.act == 'relu2' else 4) * ff // tp) * n
    head = lambda d: C + (2 * W + 2 * W // tp + 2) * cfg.flow_depth + 2 * W + 2 if cfg.bins else 2 * C + draws * (
        3 * 64 + (3 * cfg.flow_depth + 2) * W + (5 * W + 2 * W // tp + 2) * cfg.flow_depth + 4 * W + 2 + 2 * d + 1)
    out = dict(blocks=sum(C * between if recompute else attention + mlp(cfg.ff) for _ in layers) * width)
    if not layers or layers[0] == 0:
        out['embed'] = (cfg.image * (xin_img * C + rc * (C + 4 * (2 * N_FREQ + 1))) + cfg.audio * xin_aud * C) // tp * width
    if not layers or layers[-1] == cfg.n_layer - 1:
        made = cfg.vocab_size // tp * C + cfg.bins * W * (cfg.image * -(-D // tp) + cfg.audio * -(-128 // tp))
        out['heads'] = (norm + txt * C + img * head(D) + aud * head(128)) * width + made * 4          # made: gradients of weights
    return out


# ---------------------------------------------------------------- what a rank holds
# A layout l is a dict: dp, tp, pp, cp, ep, zero, recompute (share of the forward pass that is run again), rows (of a microbatch), m
# (microbatches), schedule ('' without a pipeline), v (chunks per rank), fp8. A rank holds parts of four kinds: embed, dense and moe
# (blocks), heads.

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
    """Parameters of a part on one rank: those sharded over dp * cp, those of experts. As in optim_zero.make_units, without padding."""
    C, t, g = cfg.n_embd, l['tp'], 3 if cfg.act == 'swiglu' else 2
    V = -(-cfg.vocab_size // t) * C
    if part == 'embed':
        return (1 + cfg.smear) * V + cfg.image * C * (D + 4 * (2 * N_FREQ + 1)) + cfg.audio * C * 128, 0
    if part == 'heads':                                            # of several stages the last holds a copy of a tied embedding
        return C + (V if not cfg.tie or l['pp'] > 1 else 0) + cfg.image * head(cfg, D, t) + cfg.audio * head(cfg, 128, t), 0
    kv = max(cfg.n_kv_head // t, 1) * cfg.hd
    attention = 2 * C * C // t + (2 * C + cfg.value_embed * cfg.vocab_size) * kv + cfg.qk_norm * cfg.hd + 2 * C
    if part == 'dense':
        return attention + g * C * cfg.ff // t + cfg.token_shift * C, 0
    return attention + g * C * cfg.shared_ff // t + cfg.n_expert * C, cfg.n_expert // l['ep'] * g * C * cfg.expert_ff


def kept(cfg, l, T, part, width=2, again=0):
    """
    Bytes that a part keeps from one microbatch's forward pass for the backward pass: count_activations(), and for a MoE block what it
    keeps beside its shared expert. again: the share that is run again and not kept.
    """
    n, t, c = l['rows'] * T // l['cp'], l['tp'], copy(cfg)         # the last of three layers: it is counted with heads, without embedding
    c.n_layer, c.ff, c.token_shift = 3, cfg.shared_ff if part == 'moe' else cfg.ff, cfg.token_shift and part == 'dense'

    def count(inputs):
        return count_activations(c, l['rows'], T // l['cp'], n, 0, 0, width=width, recompute=inputs, layers=[2], tp=t, sp=t > 1)
    if part in ('embed', 'heads'):
        return count(True).get(part, 0)
    whole = count(False)['blocks']
    if part == 'moe':      # a token: itself and its scores in float32; top_k times: sorted, its hidden units, as it left, three indices
        k = cfg.top_k * ((2 * cfg.n_embd + (4 if cfg.act == 'swiglu' else 2) * cfg.expert_ff + 1) * width + 24)
        whole += n // t * (4 * cfg.n_embd + 4 * cfg.n_expert + k)
    return again * count(True)['blocks'] + (1 - again) * whole if again else whole


def alive(l, rank):
    """
    Microbatches, of one chunk each, whose activations a pipeline rank holds at most: what parallel.simulate finds (tests/test_plan.py).
    After B zbh1 holds only what W needs, of up to `rank` more: memory() adds that.
    """
    pp, m, v = l['pp'], l['m'], l['v']
    return {'': 1, 'gpipe': m, '1f1b': min(pp - rank, m), 'zbh1': min(pp - rank, m),
            'interleaved': min(2 * (pp - 1 - rank) + (v - 1) * pp + 1, m * v)}[l['schedule']]


def memory(cfg, l, T, rank=0, width=2):
    """
    Bytes on a GPU of a pipeline rank, by kind. width: bytes of the compute type (with 4 parameters are their own masters). working: the two
    largest parts as whole parameters (ZeRO-3) and whole gradients (2, 3), and what a block or the heads make for a moment in the backward
    pass.
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
        for part, ff in (('dense', cfg.ff), ('moe', cfg.shared_ff)):
            split = 2 * C + 2 * cfg.n_kv_head * cfg.hd + (3 if cfg.act == 'swiglu' else 2) * ff
            out['activations'] += min(rank, l['m']) * have[part] * n * (4 * C + split / t) * width
    f = (4 if cfg.act == 'swiglu' else 2) * cfg.ff // t            # a block run again has its own activations, and by then half of the rest
    blocks = [kept(cfg, l, T, part, width) + (2 * C + f / 2) * n * width if l['recompute'] else (3 * C + f) * n * width
              for part in have if part in BLOCKS]
    V = -(-cfg.vocab_size // t)
    logits = (min(4096, n) * V * (8 + width) + V * C * width) * ('heads' in have)
    out['working'] = sum(sorted(whole)[-2:]) * (width * (z == 3) + 4 * (z > 1)) + max(*blocks, logits)
    return out


# ---------------------------------------------------------------- what it takes

def product_peak(dtype, device):
    """Operations per second, measured, of one large matrix product in this process: what the mfu of a training is a fraction of."""
    n, best = 1024 if device == 'cpu' else 8192, math.inf
    x, y = torch.randn(n, n, dtype=dtype, device=device), torch.empty(n, n, dtype=dtype, device=device)
    for _ in range(5):
        t = time.perf_counter()
        torch.mm(x, x, out=y)
        if device != 'cpu':
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - t)
    return 2 * n ** 3 / best


def ring(c, size, stride, nbytes, steps=None):
    """
    Seconds of a collective of `size` ranks, `stride` apart, each of which sends nbytes in `steps` (size - 1). One that leaves the node uses
    the adapters of all its members there.
    """
    if size == 1 or not nbytes:
        return 0.0
    far, inside = size * stride > c['node'], max(1, min(size, c['node'] // stride))
    return (steps or size - 1) * c['far' if far else 'near'] + nbytes / (min(c['link'], c['net'] * inside) if far else c['link'])


def all_to_all(c, size, stride, nbytes):
    """Seconds in which each of `size` ranks sends nbytes to the others in equal parts; out of the node through its own adapter."""
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
        F = dict(products=6 * n * V * C / c['flops'] / EFFICIENCY, elementwise=n * V * LOGIT / c['hbm'],
                 tp=ring(c, t, 1, dh, 4 * (t - 1)) + ring(c, t, 1, bsh))
        return F, dict(tp=0.0), dict(tp=bsh + dh)
    moe, g, H = part == 'moe', 3 if cfg.act == 'swiglu' else 2, cfg.n_kv_head * cfg.hd
    ff = cfg.shared_ff if moe else cfg.ff
    W, E = (2 * C * C + 2 * H * C + g * C * ff) / t, moe * k * g * C * cfg.expert_ff / t       # of experts tp splits the tokens
    rate, moved = c['flops'], 2 * kept(cfg, l, T, part, width)     # each number that is kept is written once and read once
    if l.get('fp8'):       # not experts; inputs, weights, output gradients: read for the largest magnitude, read and written for the cast
        rate, moved = c['flops8'], moved + 5 * (n * (4 * C + 2 * ff / t) + W)
    way = (l['ep'] - 1) / l['ep'] * n / t * k * C * width * moe
    hops = 2 * (cp - 1) * n * H / t * width                        # K and V, to a neighbour: through one adapter
    travel = ring(dict(c, net=c['net'] / max(1, min(cp, c['node'] // t))), cp, t, hops)
    F = dict(products=2 * n * (W / rate + E / c['flops']) / EFFICIENCY, elementwise=moved / c['hbm'],
             attention=2 * l['rows'] * T * T / cp * C / t / c['flops'] / ATTENTION,            # causal: half of the scores
             tp=ring(c, t, 1, 4 * bsh, 4 * (t - 1)), ep=2 * all_to_all(c, l['ep'], 1, way) if moe else 0.0)
    B = {kind: s * ({'products': 2, 'attention': 2.5, 'elementwise': 2}.get(kind, 1) + again) for kind, s in F.items()}
    F['cp'], B['cp'] = max(0.0, travel - F['attention']), max(0.0, (2 + again) * travel - B['attention'])
    return F, B, dict(tp=4 * bsh * (2 + again), ep=2 * way * (2 + again), cp=hops * (3 + again))


def zero_times(cfg, l, c, part, width=2):
    """
    Of a part: seconds to gather and to reduce it and to fetch it again for the backward pass (ZeRO-3; the softmax and embeddings are not
    read again), bytes of a gather and of a reduction, parameters that this rank updates and that it computes with.
    """
    z, t, d, out = l['zero'], l['tp'], l['dp'] * l['cp'], Counter()
    for p, size, stride in zip(weights(cfg, l, part), (d, d * t // l['ep']), (t, l['ep'])):
        twice = 1 if z else 2
        g, r = (size - 1) / size * p * width * (z > 0), (size - 1) / size * p * 4 * twice
        out.update(gather=ring(c, size, stride, g), reduce=ring(c, size, stride, r, twice * (size - 1)), g=g, r=r,
                   own=p / (size if z else 1), whole=p)
    for x, y in (('again', 'gather'), ('g again', 'g')):
        out[x] = out[y] * (part in BLOCKS)
    return out


def fullest(cfg, l, T, width=2):
    """memory() of the pipeline rank that needs most: one of the first two or the last."""
    return max((memory(cfg, l, T, r, width) for r in {0, 1 % l['pp'], l['pp'] - 1}), key=lambda x: sum(x.values()))


def bubble_theory(name, pp, m, v=1, F=1, B=1, W=1):
    """Idle time of each rank, stages even, messages free. F, B, W: time of one microbatch on one rank, all its chunks.
    ZB-H1: (pp-1)(F+B-W) for W <= B, m >= pp, as in the paper; exact where W <= F and W <= B, else at least this."""
    zb = (pp - 1) * F + max(0, (pp - 1) * B - (min(pp, m) - 1) * W)
    return zb if name == 'zbh1' else (pp - 1) * (F + B + W) / v


def cost(cfg, l, c, T, width=2, full=None):
    """
    One step of layout l on cluster c, rows of T positions -> dict: seconds; mfu (attention counted in full, as is usual); tokens per second
    and GPU; idle (share of the pipeline); by: seconds of the slowest rank by kind, zero: what is left of what overlaps; sent: bytes per
    step by group, the most of any rank; memory: of the fullest rank by kind.
    """
    pp, m, z, v = l['pp'], l['m'], l['zero'], l['v']
    C, t, d, n = cfg.n_embd, l['tp'], l['dp'] * l['cp'], l['rows'] * T // l['cp']
    ranks = Counter(tuple(sorted(Counter(sum(chunks(cfg, l, r), [])).items())) for r in range(pp))     # most of them hold the same
    every = {part for have in ranks for part, _ in have}
    took, moved = {p: times(cfg, l, c, T, p, width) for p in every}, {p: zero_times(cfg, l, c, p, width) for p in every}
    mean, most, sent, slow, top, over, update = [0.0] * 3, [0.0] * 3, Counter(), {}, 0.0, 0.0, 0.0
    for have, number in ranks.items():
        by, bytes_, u, F, W = Counter(), Counter(), Counter(), 0.0, 0.0
        for part, k in have:
            f, b, s = took[part]
            F += k * sum(f.values())
            W += k * f['products'] if l['schedule'] == 'zbh1' and part in BLOCKS else 0.0
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
        mean, most = [x + number / pp * y for x, y in zip(mean, (F, B - W, W))], [max(x, y) for x, y in zip(most, (F, B - W, W))]
        some = [moved[part] for part, _ in have]                   # the last reduction and the first gather have nothing to hide behind
        over = max(over, max((u['reduce'] - B) * (z < 2), max(x['reduce'] for x in some))
                   + max((u['gather'] - F) * (z < 3), min(x['gather'] for x in some)))
        update = max(update, u['own'] * (32 + width) / c['hbm'])   # masters, moments and the gradient: 16 bytes read and written
        bytes_ = {**{x: m * y for x, y in bytes_.items()},
                  'dp': (u['g'] if z < 3 else m * (u['g'] + u['g again'])) + u['r'] * (1 if z < 2 else m)}
        sent = Counter({x: max(sent[x], y) for x, y in bytes_.items()})
        if F + B > top:
            top, slow = F + B, by
    top = sum(most) if l['schedule'] == 'gpipe' else top           # all forwards, then all backwards: each phase has its slowest stage
    hop = n * C * width / t * (pp > 1)
    sent['pp'] = hop * m * (2 * v - (pp == 2))                     # first and last stage send one way; of two ranks each has one of them
    hop = hop / c['net'] + c['far'] if d * t >= c['node'] else hop / c['link'] + c['near']
    bubble = bubble_theory(l['schedule'], pp, m, v, *mean) + 2 * (pp - 1) * hop if pp > 1 else 0.0
    seconds, positions = m * top + bubble + over + update, l['rows'] * T * m * l['dp']
    by = {**{k: m * s for k, s in slow.items()}, 'zero': m * slow.get('zero', 0) + over, 'bubble': bubble, 'optimizer': update}
    mfu = 3 * count_flops(cfg, positions, positions, 0, 0, positions * T) / seconds / (d * t * pp) / c['flops']
    return dict(layout=l, seconds=seconds, mfu=mfu, tokens=positions / seconds / (d * t * pp), idle=1 - m * sum(mean) / (m * top + bubble),
                by=by, sent=+sent, memory=full or fullest(cfg, l, T, width))
