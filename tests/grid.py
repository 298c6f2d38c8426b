"""
The grid: every layout against the single process.

    python tests/grid.py                                  a part: every pair of dimensions on 4 processes, dense and MoE
    python tests/grid.py --world=8 --part=all             all layouts of 8 processes
    python tests/grid.py --world=2,4,8 --part=all --dtype=float64
    python tests/grid.py --world=8 --zero=all --part=all      the same at ZeRO 0, 1, 2 and 3
    python tests/grid.py --these="moe dp2 ep2; dense tp2 pp2 sp zbh1 zero3 recompute"         just these

Of each layout, on the same multimodal rows (uneven ignored targets, several documents per row, pictures that straddle chunks): the loss,
every gradient, the gradient norm, and the weights after 3 steps of SGD and 3 of AdamW. Worst relative error of each (of a gradient: max |a
- b| / max |b| over the tensor). Ranks that hold the same slice must hold the same bits, and so must the ZeRO stages of a layout: with one
microbatch all of them, with several 0 and 1, and 2 and 3 (which add up reduced gradients). Every third layout recomputes its blocks.
"""
import gc, hashlib, json, os, sys, tempfile, time, traceback
from pathlib import Path
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import toy
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import SCHEDULES, add_messages, all_reduce, forward_backward, make_mesh, schedule, solo_mesh

T, ROWS, STEPS, LR = 64, 8, 3, 0.05


def config(kind):
    """
    dense: grouped heads (2 kv) of three pairs, so that rows and columns turn, a vocabulary that 2, 4, 8 do not divide; moe: experts, and
    bins; tied: embedding = head, smear, value embeddings, token shift, n-gram memory of few rows.
    """
    n = toy.codec.n_vocab - 1 + 2 * (kind == 'moe')
    base = dict(vocab_size=n + 1 if (n + 1) % 2 else n + 2, n_layer=4, n_head=8, n_kv_head=2, n_embd=48, ff=64, flow_width=32,
                flow_depth=1, zero_init=False, softcap=15.0)
    return ModelConfig(**base, **(dict(n_expert=8, top_k=2, expert_ff=16, shared_ff=32, act='swiglu', token_shift=True, bins=7)
                                  if kind == 'moe'
                                  else dict(tie=True, act='swiglu', smear=2, value_embed=True, token_shift=True, ngram=toy.PAST + 1,
                                            ngram_rows=101)
                                  if kind == 'tied' else {}))


def layouts(world, part, zeros=(0,)):
    """
    Dicts of sizes: all dp*tp*pp*cp of the world with every ep, sp on where tp > 1, schedules in turn; part='pairs': each pair of dimensions
    at least once.
    """
    out, powers = [], [2 ** i for i in range(world.bit_length())]
    for pp in powers[:3]:
        for tp in powers:
            for cp in powers:
                if world % (pp * tp * cp):
                    continue
                dp = world // (pp * tp * cp)
                for kind in ('dense', 'moe', 'tied'):
                    for ep in [e for e in powers if (dp * cp * tp) % e == 0] if kind == 'moe' else [1]:
                        for sp in ([False, True] if tp > 1 else [False]):
                            i = len(out)
                            names = ['1f1b', 'zbh1', 'gpipe', 'interleaved']
                            v = 2 if pp == 2 and names[i % 4] == 'interleaved' else 1
                            name = names[i % 4] if v == 2 or names[i % 4] != 'interleaved' else '1f1b'
                            mode = ['ring', 'ring', 'allgather', 'ulysses'][i // 2 % 4]
                            if mode == 'ulysses' and (8 // tp % cp or max(1, 2 // tp) % cp):
                                mode = 'ring'
                            out.append(dict(kind=kind, dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, sp=sp, schedule=name if pp > 1 else '', v=v,
                                            cp_mode=mode if cp > 1 else 'ring'))
    if part == 'pairs':
        seen, few = set(), []
        for l in out:
            on = [k for k in ('dp', 'tp', 'pp', 'cp', 'ep') if l[k] > 1] + (['sp'] if l['sp'] else []) + ([l['schedule']]
                if l['schedule'] else []) + ([l['cp_mode']] if l['cp'] > 1 else [])
            new = {(l['kind'], a, b) for a in on for b in on} - seen
            if new:
                seen |= new
                few.append(l)
        out = few
    return [dict(l, zero=z, recompute=i % 3 == 2, one=l['pp'] == 1 and i % 2 == 0 and len(zeros) > 1) for i,
            l in enumerate(out) for z in zeros]


def parse(text):
    """The inverse of label(), with the model in front: 'moe dp2 tp2 ep4 sp'."""
    l = dict(kind='dense', dp=1, tp=1, pp=1, cp=1, ep=1, sp=False, schedule='', v=1, cp_mode='ring', zero=0, shard=0, recompute=False)
    for w in text.split():
        words = dict(kind=('dense', 'moe', 'tied'), schedule=SCHEDULES, cp_mode=('ring', 'allgather', 'ulysses'))
        k = next((k for k in words if w in words[k]), w.rstrip('0123456789'))
        l['v' if k == 'x' else k] = True if k in ('sp', 'recompute') else w if k in words else int(w[len(k):])
    return dict(l, schedule=l['schedule'] or '1f1b' * (l['pp'] > 1))


def size(l):
    return l['dp'] * l['tp'] * l['pp'] * l['cp']


def run(layout, dtype, mesh, todo, steps=STEPS, optimizers=('sgd', 'adamw')):
    """
    What one rank sees: {'loss', 'norm', 'grad': {name: (spec, tensor)}, 'weights/sgd': ..., 'weights/adamw': ...}. AdamW with a large eps:
    with 1e-8 it turns the rounding of the smallest gradients into whole steps, and hides any wrong factor.
    """
    cfg, out = config(layout['kind']), {}
    sets = [toy.shards(toy.documents())]
    for which in optimizers:
        models = build(cfg, mesh, 7, layout['v'])
        for model in models:
            model.recompute = layout.get('recompute', False)
        opt = Optimizer(models, mesh, dtype, zero=layout.get('zero', 0), eps=1e-4, weight_decay=0.1, clip=1.0, muon=which == "muon",
                        muon_lr=1.0)
        losses = []
        for step in range(steps):
            batch = toy.micros(sets, step, rows=ROWS, micro=ROWS // mesh.dp.size if layout.get('one') else 1 if ROWS // mesh.dp.size < 4
                               or mesh.pp.size > 2 else 2, T=T, dp=mesh.dp.size, dp_rank=mesh.dp.rank,
                               cp=mesh.cp.size, cp_rank=mesh.cp.rank, dtype=dtype, experts=cfg.n_expert > 0)
            opt.start(len(batch))
            shape = (len(batch[0]['ids']), T // mesh.cp.size // (mesh.tp.size if mesh.sp else 1), cfg.n_embd)
            o = forward_backward(models, batch, mesh, todo(len(batch)), shape, dtype)
            total = sum((x['loss'].double() for x in o), torch.zeros((), dtype=torch.float64))
            losses.append(float(all_reduce(all_reduce(total, mesh.pp), mesh.dpcp)))
            if which == 'sgd':
                opt.reduce()
                norm = float(opt.norm())
                if step == 0:
                    out['grad'] = held(opt, 'due') | {p.spec.name: (p.spec, torch.zeros_like(p).index_add_(0, *touched)) for (p, _),
                                                      touched in zip(opt.tables, opt.touched)}
                    out['norm'] = norm
                for u in opt.units:
                    u.master.add_(u.due, alpha=-LR / max(norm, 1.0))
                for (p, _), (rows, g) in zip(opt.tables, opt.touched):
                    p.data.index_add_(0, rows, g, alpha=-LR / max(norm, 1.0))
                opt.publish()
                opt.zero()
            else:
                opt.step(3e-3)
        out[f'loss/{which}'] = torch.tensor(losses, dtype=torch.float64)
        out[f'weights/{which}'] = held(opt, 'master')
    return out


def held(opt, what):
    """{name: (Spec, this rank's slice of every parameter)}, gathered from the shards."""
    whole = [toy.whole(u, getattr(u, what)) for u in opt.units]
    return {p.spec.name: (p.spec, x[s].view(p.shape).clone()) for u, x in zip(opt.units, whole) for p, s in zip(u.params, u.slices)} \
        | {p.spec.name: (p.spec, p.data.clone()) for p, _ in opt.tables if what == 'master'}


def digests(got):
    """{(name, slice): hash of the gradient, of the weights in the end}."""
    held = [(k, n, spec, x) for k, v in got.items() if isinstance(v, dict) for n, (spec, x) in v.items()]
    return {(k, n, spec.blocks): hashlib.md5(x.numpy().tobytes()).hexdigest() for k, n, spec, x in held}


def compare(got, ref):
    """Worst relative errors of this rank's slices: dict(loss, grad, norm, weights), and the name of the worst tensor."""
    worst, name = dict(loss=0.0, grad=0.0, norm=0.0, weights=0.0), ''
    worst['norm'] = abs(got['norm'] - ref['norm']) / ref['norm']
    for k, v in got.items():
        if k.startswith('loss'):
            worst['loss'] = max(worst['loss'], float(((v - ref[k]).abs() / ref[k].abs()).max()))
        elif isinstance(v, dict):
            for n, (spec, x) in v.items():
                y = spec.local(ref[k][n][1])
                if x.shape != y.shape:
                    raise AssertionError(f'{k} {n}: shape {tuple(x.shape)}, {tuple(y.shape)} expected')
                if x.numel():
                    err = float((x - y).abs().max() / ref[k][n][1].abs().max().clamp(min=1e-30)) if x.dtype == torch.float64 else \
                        float((x - y).norm() / ref[k][n][1].norm() * (ref[k][n][1].numel() / x.numel()) ** 0.5)    # float32: normwise
                    part = 'grad' if k == 'grad' else 'weights'
                    if not err <= worst[part]:                    # also if it is nan
                        worst[part], name = err, f'{k} {n}'
    return worst, name


def worker(rank, world, todo_list, dtype, refs, results, folder):
    torch.set_num_threads(1)
    for i, layout in enumerate(todo_list):
        try:
            dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/{i}', world), rank=rank, world_size=world)
            cfg = config(layout['kind'])
            mesh = make_mesh(**{k: layout[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}, n_kv_head=cfg.n_kv_head,
                             tie=cfg.tie, zero_shard=layout.get('shard', 0))
            lists = lambda m: add_messages(schedule(layout['schedule'], mesh.pp.size, m, layout['v']), m,
                                           layout['v'])[mesh.pp.rank] if mesh.pp.size > 1 else None
            got = run(layout, dtype, mesh, lists, optimizers=refs[layout['kind']]['optimizers'])
            results.put((i, rank, (*compare(got, refs[layout['kind']]), digests(got)), None))
            dist.barrier()
            dist.destroy_process_group()
            del mesh, lists, got
            gc.collect()                                          # groups live as long as what points at them, and each has threads
        except Exception:
            results.put((i, rank, None, traceback.format_exc(limit=-4)))
            os._exit(1)                                           # the others must not wait for this rank


def run_grid(todo_list, world, dtype, optimizers=('sgd', 'adamw'), patience=120):
    """
    Yields (layout, worst errors or None, name of the worst tensor or the traceback), in order. After a failure the ranks start anew behind
    it.
    """
    refs = {}
    torch.set_num_threads(1)
    for kind in {l['kind'] for l in todo_list}:
        refs[kind] = run(dict(kind=kind, v=1), dtype, solo_mesh(), lambda m: None, optimizers=optimizers)
        refs[kind]['optimizers'] = optimizers
        if dead := [n for n, (_, x) in refs[kind]['grad'].items() if not x.abs().max() > 0]:
            raise AssertionError(f'{kind}: gradients that are 0 show nothing: {dead}')
    done, stages, ctx = 0, {}, mp.get_context('fork')
    while done < len(todo_list):
        rest, results = todo_list[done:], ctx.SimpleQueue()          # synchronous: nothing is lost when a rank dies
        with tempfile.TemporaryDirectory() as folder:
            procs = [ctx.Process(target=worker, args=(r, world, rest, dtype, refs, results, folder), daemon=True) for r in range(world)]
            for p in procs:
                p.start()
            for i, layout in enumerate(rest):
                worst, text, bits = None, '', {}
                for _ in range(world):
                    # by the second: while all of us are stopped, patience is too
                    if any(results._reader.poll(1) for _ in range(patience)):
                        _, _, res, error = results.get()
                    else:
                        res, error = None, f'no answer in {patience} s: a rank hangs'
                    if res and (differ := [k for k, h in res[2].items() if bits.setdefault(k, h) != h]):
                        error = f'ranks that hold the same slice differ in {len(differ)}, such as {differ[0]}'
                    if error:
                        worst, text = None, error
                        break
                    if worst is None or any(not res[0][k] <= worst[k] for k in worst):
                        text = res[1] if worst is None or not max(res[0].values()) <= max(worst.values()) else text
                        worst = res[0] if worst is None else {k: res[0][k] if not res[0][k] <= worst[k] else worst[k] for k in worst}
                if worst and layout.get('zero'):
                    base = 0 if layout.get('one') or layout['zero'] == 1 else 2
                    same = stages.get((label(dict(layout, zero=base)), layout['kind']))
                    if differ := [k for k, h in bits.items() if same and same[k] != h]:
                        worst, text = None, f'not the bits of ZeRO {base}: {len(differ)} differ, such as {differ[0]}'
                stages[label(layout), layout['kind']] = bits
                done += 1
                yield layout, worst, text
                if worst is None:
                    break
            for p in procs:
                p.kill() if worst is None else p.join()


def label(l):
    words = [f'{k}{l[k]}' for k in ('dp', 'tp', 'pp', 'cp', 'ep') if l[k] > 1] or ['']
    more = [('sp', l['sp']), (l['schedule'], l['schedule']), (f'x{l["v"]}', l['v'] > 1), (l['cp_mode'], l['cp'] > 1),
            *((f'{k}{l.get(k)}', l.get(k)) for k in ('zero', 'shard')), ('recompute', l.get('recompute'))]
    return ' '.join(words + [word for word, on in more if on])


if __name__ == '__main__':
    world, part, dtype, zero, only, optimizers, these, patience = '4', 'pairs', 'float64', '0', '', 'sgd,adamw', '', '120'
    for a in sys.argv[1:]:
        k, _, v = a.removeprefix('--').partition('=')
        if k not in ('world', 'part', 'dtype', 'zero', 'only', 'optimizers', 'these', 'patience'):
            sys.exit(f'grid.py: unknown {a}: use --world=2,4,8 --part=pairs|all --dtype=float64|float32 --zero=0|1|2|3|all --only=TEXT '
                     '--these="moe dp2 ep2; tied pp2" --optimizers=sgd,adamw,muon (sgd first) --patience=SECONDS')
        globals()[k] = v
    limit, begin, failed, n, top = dict(float64=1e-10, float32=1e-5)[dtype], time.time(), 0, 0, 0.0
    print(f'{"layout":48s} {"model":6s} {"loss":>8s} {"gradient":>9s} {"norm":>8s} {"weights":>8s}')
    todo = [parse(t) for t in these.split(';')] if these else [l for w in world.split(',')
                                                               for l in layouts(int(w), part, range(4) if zero == 'all'
                                                                                else [int(z) for z in zero.split(',')])]
    todo = [l for l in todo if only in f'{l["kind"]} {label(l)}']
    world = ','.join(map(str, sizes := sorted({size(l) for l in todo})))
    for w in sizes:
        for layout, worst, text in run_grid([l for l in todo if size(l) == w], w, getattr(torch, dtype), tuple(optimizers.split(',')),
                                            int(patience)):
            n += 1
            ok = worst is not None and all(e <= limit for e in worst.values())
            failed += not ok
            if worst:
                top = max(top, *worst.values())
                print(f'{label(layout):48s} {layout["kind"]:6s} ' + ' '.join(f'{e:8.1e}' for e in worst.values())
                      + ('' if ok else f'  FAILED at {text}'), flush=True)
            else:
                print(f'{label(layout):48s} {layout["kind"]:6s} FAILED\n{text}', flush=True)
    print(json.dumps(dict(bench='grid', ok=0 == failed < n, world=world, part=part, dtype=dtype, zero=zero, layouts=n, failures=failed,
                          worst=top, seconds=round(time.time() - begin))))
    sys.exit(failed > 0 or not n)
