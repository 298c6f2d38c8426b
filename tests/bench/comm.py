"""
What a step sends, beside the least that it must send: bytes per rank of one training step in float32, as parallel.COMM counts them.

    python tests/bench/comm.py                           every dimension alone, and dp2 * tp2 * pp2; half a minute on 2 cores
    python tests/bench/comm.py --zero=1,2,3              dp2, dp4, experts and dp2 * tp2 * pp2 under ZeRO
    python tests/bench/comm.py --these="moe dp2 ep2; dense tp2 sp; dense dp4 zero3 shard2"

The formulas stand in formula(), term by term: the least volume of the blocks, and beside it embedding, heads, the statistics of the
cross-entropy, gradients of what is used on a part of the work, counts and the norm. b rows, s positions, h width, H width of the kv heads;
d = dp * cp, t = tp, c = cp, e = ep. Each operation of each group must be equal to the byte, on every rank (printed for rank 0).
The calls of torch.distributed that send must be as many as parallel.COMM was told of. P is what the units hold, padding included (their
parameters are counted on paper too). With --zero a second table shows from the times of a dp2 run that the collectives of one unit are
under way while another computes.
"""
import json, sys, time
from collections import Counter
from pathlib import Path
import torch
import torch.distributed as dist
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import grid, model, optim_zero, parallel, toy
from configurator import configure
from model import D, N_FREQ, ModelConfig, build
from optim_zero import Optimizer
from parallel import add_messages, forward_backward, make_mesh, schedule
from test_parallel import ranks

these = ('dense dp2; dense dp4; dense tp2; dense tp2 sp; dense cp2 ring; dense cp4 ring; dense cp2 allgather; dense cp4 allgather; '
         'dense cp2 ulysses; dense cp4 ulysses; dense pp2 1f1b; dense pp4 1f1b; dense pp2 zbh1; moe dp2 ep2; moe dp4 ep4; moe dp4 ep2; '
         'moe tp2 ep2; moe tp2 ep2 sp; dense dp2 tp2 pp2 1f1b; dense dp2 tp2 pp2 sp 1f1b')    # layouts, as tests/grid.py names them
zero = ''        # stages, such as 1,2,3: then each of them for ZERO
ZERO = ('dense dp2', 'dense dp4', 'moe dp2 ep2', 'moe dp4 ep2', 'dense dp2 cp2', 'dense dp2 tp2 pp2 1f1b')
T, ROWS, MICRO, BYTES = 64, 8, 2, 4
MOVES = ('all_reduce all_gather all_gather_single all_gather_into_tensor all_gather_object reduce reduce_scatter reduce_scatter_single '
         'reduce_scatter_tensor all_to_all all_to_all_single broadcast broadcast_object_list gather scatter send isend').split()


def config(kind):
    """Sizes that every layout divides: what does not divide is rounded up, which is the grid's business."""
    moe = dict(n_expert=8, top_k=2, expert_ff=16, shared_ff=32) if kind == 'moe' else {}
    return ModelConfig(vocab_size=364, n_layer=4, n_head=8, n_kv_head=4, n_embd=32, ff=64, flow_width=32, flow_depth=2, **moe)


def formula(l, cfg, mesh, layers, batches, routed, units):
    """
    [(operation, group, term, bytes that this rank sends)]. layers: those of this rank's stage; batches: its microbatches; routed: of every
    MoE layer and microbatch, (tokens that this rank sends to others, tokens that others send here). units: (where, sums, padded length,
    parameters).
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
    assert sum(n for *_, n in units) == dense + partial + experts
    for where, sums, n, _ in units:
        size, name, P = (mesh.edp.size, 'edp', 'experts') if sums[0] == 'edp' else (d, 'dpcp', 'P')
        part = (size - 1) / size * n
        if l['zero'] == 0 or size == 1:
            out += [('all_reduce', name, f'2(d-1)/d {P}', 2 * part)]
        else:
            # embeddings and the softmax head are not read by the backward pass
            reads = 2 if where[0] == 'b' or where == 'heads' else 1
            out += [('reduce_scatter', name, f'{"(d-1)/d" if l["zero"] == 1 else "M(d-1)/d"} {P}', part * (1 if l['zero'] == 1 else M)),
                    ('all_gather', name, f'M(d-1)/d {P}, twice where the backward pass reads them' if l['zero'] == 3 else f'(d-1)/d {P}',
                     part * (M * reads if l['zero'] == 3 else 1))]
        out += [('all_reduce', g, 'gradients of what is used on a part', twice * n // (size if l['zero'] else 1)) for g in sums[1:]]
    out += [('all_reduce', 'world', 'the norm', 2 * (mesh.world.size - 1) / mesh.world.size)]
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
    total = Counter()
    for op, g, say, n in out:
        total[op, g, say] += n
    return [(op, g, say, round(n * BYTES)) for (op, g, say), n in total.items() if n]


def worker(rank, l):
    """One step -> what was counted, calls of torch.distributed and of _count, what formula() needs."""
    cfg, sent, calls = config(l['kind']), [], Counter()
    mesh = make_mesh(**{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}, n_kv_head=cfg.n_kv_head)
    models = build(cfg, mesh, 7, l['v'])
    opt = Optimizer(models, mesh, torch.float32, zero=l['zero'])
    units = [(u.name.partition('[')[0], u.sums, u.n, sum(p.numel() for p in u.params)) for u in opt.units]
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
    return dict(parallel.COMM), dict(calls), mine, [int(i) for m in models for i in m.blocks], batches, units, mesh


def overlap(rank, stage):
    """
    One step of dp2 -> [(what, unit, begin, end)]: 'gather' and 'reduce' from issue to wait, 'wait' the wait itself, 'forward' and
    'backward' of each part.
    """
    torch.set_num_threads(1)
    cfg = ModelConfig(vocab_size=364, n_layer=4, n_head=4, n_embd=256, flow_width=64, flow_depth=1)
    mesh, log, issued = make_mesh(dp=2), [], {}
    models = build(cfg, mesh, 7)
    opt = Optimizer(models, mesh, torch.float32, zero=stage)
    batch = toy.micros([toy.shards(toy.documents())], 0, rows=32, micro=16, T=T, dp=2, dp_rank=rank, dtype=torch.float32)
    now = lambda: 1000 * (time.perf_counter() - start)

    def timed(name, key, waits):
        old = getattr(optim_zero.Unit, name)

        def new(u, *a):
            on_way, t = (u.coming, u.moving)[key == 'reduce'], now()
            old(u, *a)
            if waits and on_way:
                log.extend([(key, u.name, issued.pop((key, u.name)), t), ('wait', u.name, t, now())])
            elif not waits and not on_way and (u.coming, u.moving)[key == 'reduce']:
                issued[key, u.name] = t
        setattr(optim_zero.Unit, name, new)
    for args in (('gather', 'gather', False), ('ready', 'gather', True), ('reduce', 'reduce', False), ('land', 'reduce', True)):
        timed(*args)
    for i, block in models[0].blocks.items():
        block.register_forward_pre_hook(lambda *_, i=i: issued.update({('forward', i): now()}))
        block.register_forward_hook(lambda *_, i=i: log.append(('forward', f'blocks.{i}', issued.pop(('forward', i)), now())))
        block.register_full_backward_pre_hook(lambda *_, i=i: issued.update({('backward', i): now()}))
        block.register_full_backward_hook(lambda *_, i=i: log.append(('backward', f'blocks.{i}', issued.pop(('backward', i)), now())))
    start = time.perf_counter()
    for _ in range(3):
        log.clear()
        dist.barrier()
        begin = now()
        opt.start(1)
        forward_backward(models, batch, mesh)
        opt.step(1e-3)
    return [(what, unit, a - begin, b - begin) for what, unit, a, b in log]


def show_overlap(stage):
    """
    A line per collective of a block; whether each was under way while another block computed (but for the first gather and the last
    reduction).
    """
    log = ranks(2, overlap, stage)[0]
    print(f'\nZeRO-{stage}, dp2, rank 0: {"":9s} {"issued, ms":>10s} {"waited for":>10s} {"for, ms":>8s}  meanwhile')
    hidden = total = 0
    for what, unit, a, b in sorted((x for x in log if x[0] in ('gather', 'reduce') and x[1][0] == 'b'), key=lambda x: x[2]):
        wait = next(e - s for k, u, s, e in log if k == 'wait' and u == unit and s == b)
        meanwhile = [f'{k} {u}' for k, u, s, e in log if k in ('forward', 'backward') and s < b - .05 and e > a + .05
                     and u != unit.partition('[')[0]]
        total, hidden = total + 1, hidden + bool(meanwhile)
        print(f'{what:7s} {unit:22s} {a:10.1f} {b:10.1f} {wait:8.2f}  {", ".join(meanwhile)}')
    return hidden, total


def strip(mesh):
    """A mesh without its process groups, so that it can travel."""
    from dataclasses import fields, replace
    return replace(mesh, host=None, **{f.name: replace(g, pg=None) for f in fields(mesh)
                                       if isinstance(g := getattr(mesh, f.name), parallel.Group)})


def job(rank, l):
    *rest, mesh = worker(rank, l)
    return *rest, strip(mesh)


if __name__ == '__main__':
    configure(globals())
    good, figures = True, {}
    torch.set_num_threads(1)
    print(f'{"layout":30s} {"rank":>4s} {"operation":15s} {"group":6s} {"measured":>12s} {"formula":>12s}')
    for text in [f'{x} zero{z}' for z in zero.split(',') for x in ZERO] if zero else these.split(';'):
        l = grid.parse(text)
        results, cfg = ranks(grid.size(l), job, l), config(l['kind'])
        for rank, (comm, calls, ep, layers, batches, units, mesh) in enumerate(results):
            routed = []
            for i, row in enumerate(ep['sent']):
                others = [r for j, r in enumerate(ep['mesh']) if j != ep['at']] if l['ep'] > 1 else []
                routed.append((sum(row) - row[ep['at']], sum(results[r][2]['sent'][i][ep['at']] for r in others)) if others else (0, 0))
            terms, want = formula(l, cfg, mesh, layers, batches, routed, units), Counter()
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
    shown = {}
    for z in sorted(set(zero.split(',')) & {'1', '2', '3'}):
        shown[z] = hidden, total = show_overlap(int(z))
        # the first gather, the last reduction; ZeRO-3: the last block's gather for backward
        good &= hidden >= total - (3 if z == '3' else 2)
    print(json.dumps(dict(bench='comm', ok=good, overlapped=shown, layouts=len(figures), bytes_per_rank=figures)))
    sys.exit(not good)
