"""
What a step sends, beside the least that it must send: bytes per rank of one training step in float32, as parallel.COMM counts them.

    python tests/bench/comm.py                           every dimension alone, and dp2 * tp2 * pp2; half a minute on 2 cores
    python tests/bench/comm.py --these="moe dp2 ep2; dense tp2 sp"

The formulas stand in formula(), term by term: the least volume of the blocks, and beside it embedding, heads, the statistics of the
cross-entropy, gradients of what is used on a part of the work, counts and the norm. b rows, s positions, h width, H width of the kv heads;
d = dp * cp, t = tp, c = cp, e = ep. Each operation of each group must be equal to the byte, on every rank (printed for rank 0).
The calls of torch.distributed that send must be as many as parallel.COMM was told of.
"""
import json, sys
from collections import Counter
from pathlib import Path
import torch
import torch.distributed as dist
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import grid, model, parallel, toy
from configurator import configure
from model import D, N_FREQ, ModelConfig, build
from optim_zero import Optimizer
from parallel import add_messages, forward_backward, make_mesh, schedule
from test_parallel import ranks

these = ('dense dp2; dense dp4; dense tp2; dense tp2 sp; dense cp2 ring; dense cp4 ring; dense cp2 allgather; dense cp4 allgather; '
         'dense cp2 ulysses; dense cp4 ulysses; dense pp2 1f1b; dense pp4 1f1b; dense pp2 zbh1; moe dp2 ep2; moe dp4 ep4; moe dp4 ep2; '
         'moe tp2 ep2; moe tp2 ep2 sp; dense dp2 tp2 pp2 1f1b; dense dp2 tp2 pp2 sp 1f1b')    # layouts, as tests/grid.py names them
T, ROWS, MICRO, BYTES = 64, 8, 2, 4
MOVES = ('all_reduce all_gather all_gather_single all_gather_into_tensor all_gather_object reduce reduce_scatter reduce_scatter_single '
         'reduce_scatter_tensor all_to_all all_to_all_single broadcast broadcast_object_list gather scatter send isend').split()


def config(kind):
    """Sizes that every layout divides: what does not divide is rounded up, which is the grid's business."""
    moe = dict(n_expert=8, top_k=2, expert_ff=16, shared_ff=32) if kind == 'moe' else {}
    return ModelConfig(vocab_size=364, n_layer=4, n_head=8, n_kv_head=4, n_embd=32, ff=64, flow_width=32, flow_depth=2, **moe)


def formula(l, cfg, mesh, layers, batches, routed):
    """
    [(operation, group, term, bytes that this rank sends)]. layers: those of this rank's stage; batches: its microbatches; routed: of every
    MoE layer and microbatch, (tokens that this rank sends to others, tokens that others send here).
    """
    t, c, d, p, e, M = l['tp'], l['cp'], l['dp'] * l['cp'], l['pp'], l['ep'], len(batches)
    C, L, W, kv, hd, b = cfg.n_embd, len(layers), cfg.flow_width, cfg.n_kv_head * cfg.hd, cfg.hd, MICRO
    first, last, moe = layers[0] == 0, layers[-1] == cfg.n_layer - 1, sum(i >= cfg.dense_layers for i in layers) if cfg.n_expert else 0
    bsh, bsH = b * T // c * C, b * T * kv // t                                # of this rank's positions; of the whole row
    N = Counter({k: sum(len(x[f'{k}_i']) for x in batches) for k in ('txt', 'img', 'aud')})
    R = batches[0]['img_t'].shape[1]
    ring, twice, out = (t - 1) / t, 2 * (t - 1) / t, []

    # parameters of this rank: those whose gradient is summed over dpcp alone, those over tp too, experts
    partial = L * hd + first * (C * D + C * 4 * (2 * N_FREQ + 1) + C * 128) + moe * cfg.n_expert * C
    norms = 2 * L * C + last * C
    flow = sum(2 * W * w + 64 * 64 + (3 * cfg.flow_depth + 2) * W * (64 + C) + 2 * cfg.flow_depth * W * W // t for w in (D, 128))
    dense = L * (2 * C * C + 2 * kv * C) // t + (L - moe) * 2 * C * cfg.ff // t + moe * 2 * C * cfg.shared_ff // t + norms \
        + first * cfg.vocab_size * C // t + last * (cfg.vocab_size * C // t + flow)
    experts = moe * cfg.n_expert // e * 2 * C * cfg.expert_ff
    edp = mesh.edp.size
    out += [('all_reduce', 'dpcp', 'gradients 2(d-1)/d P', 2 * (d - 1) / d * (dense + partial)),
            ('all_reduce', 'edp', 'gradients of experts 2(d/e-1)/(d/e) P', 2 * (edp - 1) / edp * experts),
            ('all_reduce', 'tp', 'gradients of what is used on a part', twice * (partial + (norms if l['sp'] else 0))),
            ('all_reduce', 'world', 'the norm', 2 * (mesh.world.size - 1) / mesh.world.size)]
    if l['sp']:
        out += [('all_gather', 'tp', 'blocks: half of 8(t-1)/t bsh', 4 * ring * bsh * L * M),
                ('reduce_scatter', 'tp', 'blocks: half of 8(t-1)/t bsh', 4 * ring * bsh * L * M),
                ('reduce_scatter', 'tp', 'embedding (t-1)/t bsh', first * ring * bsh * M),
                ('all_gather', 'tp', 'embedding backward, into the heads, 2(t-1)/t bsh', (first + last) * ring * bsh * M)]
    else:
        out += [('all_reduce', 'tp', 'blocks: 8(t-1)/t bsh', 4 * twice * bsh * L * M),
                ('all_reduce', 'tp', 'embedding 2(t-1)/t bsh', first * twice * bsh * M),
                ('all_gather', 'tp', 'experts see T-slices: 2(t-1)/t bsh', twice * bsh * moe * M)]
    out += [('all_reduce', 'tp', 'cross-entropy: 3 figures and dh per target', last * twice * N['txt'] * (3 + C)),
            ('all_reduce', 'tp', 'flow heads, forward and backward', last * 2 * twice * (N['img'] + N['aud']) * R * W * cfg.flow_depth)]
    out += {'ring': [('p2p', 'cp', '6(c-1)/c bsH', 6 * (c - 1) / c * bsH * L * M)],
            'allgather': [(op, 'cp', '2(c-1)/c bsH', 2 * (c - 1) / c * bsH * L * M) for op in ('all_gather', 'reduce_scatter')],
            'ulysses': [('all_to_all', 'cp', '4(c-1)/c^2 bs(h+H)', 4 * (c - 1) / c ** 2 * (b * T * C // t + bsH) * L * M)]}[l['cp_mode']]
    out += [('p2p', 'pp', 'bsh per boundary and direction', ((not first) + (not last)) * bsh // (t if l['sp'] else 1) * M),
            ('all_to_all', 'ep', 'tokens there, back, and both again backward', 2 * C * sum(map(sum, routed))),
            ('all_to_all', 'ep', 'counts, 8 bytes each', 2 * (e > 1) * (e - 1) * (cfg.n_expert // e) * moe * M)]
    return [(op, g, say, round(n * BYTES)) for op, g, say, n in out if n]


def worker(rank, l):
    """One step -> what was counted, calls of torch.distributed and of _count, what formula() needs."""
    cfg, sent, calls = config(l['kind']), [], Counter()
    mesh = make_mesh(**{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}, n_kv_head=cfg.n_kv_head)
    models = build(cfg, mesh, 7, l['v'])
    opt = Optimizer(models, mesh, torch.float32)
    batches = toy.micros([toy.shards(toy.documents())], 0, rows=ROWS, micro=MICRO, T=T, dp=mesh.dp.size, dp_rank=mesh.dp.rank,
                         cp=mesh.cp.size, cp_rank=mesh.cp.rank, dtype=torch.float32, experts=cfg.n_expert > 0)
    todo = add_messages(schedule(l['schedule'], l['pp'], len(batches)), len(batches))[mesh.pp.rank] if l['pp'] > 1 else None

    def counted(owner, name, key):
        old = getattr(owner, name)

        def new(*a, **k):
            calls[key] += 1
            return old(*a, **k)
        setattr(owner, name, new)
        if name == 'isend':                                                   # batch_isend_irecv looks that it is this very function
            dist.distributed_c10d.isend = new

    def moe(x, top, *a, old=model.moe):
        sent.append(torch.bincount(top.flatten() // (cfg.n_expert // l['ep']), minlength=l['ep']).tolist())
        return old(x, top, *a)
    model.moe = moe
    for name in MOVES:
        if hasattr(dist, name):
            counted(dist, name, 'moved')
    counted(parallel, '_count', 'counted')
    parallel.COMM.clear()
    opt.start(len(batches))
    forward_backward(models, batches, mesh, todo, (MICRO, T // l['cp'] // (l['tp'] if l['sp'] else 1), cfg.n_embd), torch.float32)
    opt.step(1e-3)
    mine = dict(mesh=mesh.ep.ranks, at=mesh.ep.rank, sent=sent)
    return dict(parallel.COMM), dict(calls), mine, [int(i) for m in models for i in m.blocks], batches, mesh


def strip(mesh):
    """A mesh without its process groups, so that it can travel."""
    from dataclasses import fields, replace
    return replace(mesh, **{f.name: replace(g, pg=None) for f in fields(mesh) if isinstance(g := getattr(mesh, f.name), parallel.Group)})


def job(rank, l):
    *rest, mesh = worker(rank, l)
    return *rest, strip(mesh)


if __name__ == '__main__':
    configure(globals())
    good, figures = True, {}
    torch.set_num_threads(1)
    print(f'{"layout":30s} {"rank":>4s} {"operation":15s} {"group":6s} {"measured":>12s} {"formula":>12s}')
    for text in these.split(';'):
        l = grid.parse(text)
        results, cfg = ranks(grid.size(l), job, l), config(l['kind'])
        for rank, (comm, calls, ep, layers, batches, mesh) in enumerate(results):
            routed = []
            for i, row in enumerate(ep['sent']):
                others = [r for j, r in enumerate(ep['mesh']) if j != ep['at']] if l['ep'] > 1 else []
                routed.append((sum(row) - row[ep['at']], sum(results[r][2]['sent'][i][ep['at']] for r in others)) if others else (0, 0))
            terms, want = formula(l, cfg, mesh, layers, batches, routed), Counter()
            for op, g, _, n in terms:
                want[op, g] += n
            equal = {k: n for k, n in comm.items() if n} == want
            all_told = calls.get('moved', 0) == calls.get('counted', 0)
            good &= equal and all_told
            figures.setdefault(text.strip(), []).append(sum(comm.values()))
            for op, g in sorted(want.keys() | comm.keys()) if rank == 0 or not equal else ():
                n = comm.get((op, g), 0)
                print(f'{text.strip():30s} {rank:4d} {op:15s} {g:6s} {n:12,d} {want[op, g]:12,d}{"  DIFFERENT" * (n != want[op, g])}')
                for *_, say, n in (x for x in terms if x[:2] == (op, g)):
                    print(f'{"":72s}{n:12,d}  {say}')
            if not all_told:
                print(f'{text.strip():30s} {rank:4d} calls: {calls.get("moved", 0)}, counted: {calls.get("counted", 0)}  DIFFERENT')
    print(json.dumps(dict(bench='comm', ok=good, layouts=len(figures), bytes_per_rank=figures)))
    sys.exit(not good)
