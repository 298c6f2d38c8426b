"""
Resharding: a checkpoint of any layout goes on in any other.

    python tests/reshard.py               9 x 9 layouts: dense (tied embeddings, grouped heads), AdamW, float32; MoE, Muon, float64
    python tests/reshard.py --part=all    12 x 12 of both, each with AdamW and Muon in float64, float32 and bfloat16
    python tests/reshard.py --these="tied dp2 zero1; tied tp2 pp2 sp" --optimizers=adamw,muon --dtypes=float64      all pairs of them

In layout A: 3 steps, save, 2 steps more. In layout B: load, save again, the same 2 steps. Of every ordered pair: each global tensor
(masters, both moments, the experts' balancing bias) and the counters must have the same bytes in both checkpoints, and the losses of the
next 2 steps must be those of the continuation in A: to 1e-6 in float32, 1e-10 in float64 (bfloat16: to 1e-2, the state bit-equal as ever).
A matrix is printed for each kind: the worst relative difference of a loss, or what is wrong.
"""
import json, os, shutil, sys, tempfile, time, traceback
from pathlib import Path
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import toy
from grid import config, label, parse, size
from model import build
from data.checkpoint import Checkpoint, save_checkpoint, state
from optim_zero import Optimizer
from parallel import add_messages, all_reduce, forward_backward, make_mesh, schedule

T, ROWS, BEFORE, AFTER = 64, 12, 3, 2      # 12 rows: dp of 1, 2, 3, 4, 6, so that shards have uneven lengths and padding
LIMIT = dict(float64=1e-10, float32=1e-6, bfloat16=1e-2)
SHORT = dict(
    tied=['dp1', 'dp2 zero1', 'dp3 zero3', 'tp2 pp2 sp', 'dp2 cp2 zero2', 'dp3 tp2 zero3', 'dp2 tp2 pp2 sp zbh1 zero2',
          'tp4 cp2 allgather zero3', 'dp4 pp2 zbh1 zero3 shard2'],
    moe=['dp1', 'dp2 ep2 zero3', 'dp3 zero2', 'dp2 tp2 ep4 sp zero1', 'pp2 cp2 ep2 zero3', 'dp6 ep2 zero3', 'dp2 tp2 pp2 ep2 zbh1 zero2',
         'dp2 cp2 tp2 ep8 sp zero3', 'dp4 tp2 ep2 zero3 shard2'])
MORE = dict(tied=['dp3 pp2 x2 interleaved zero1', 'dp2 pp4 gpipe zero3', 'tp8 sp'],
            moe=['tp2 ep2 zero1', 'dp4 ep4 cp2 ring zero3', 'dp2 pp2 cp2 ep4 ulysses zero1'])
FEW = dict(tied=['dp1', 'dp3 zero3', 'tp2 pp2 sp'], moe=['dp2 ep2 zero3', 'dp2 tp2 ep4 sp zero1'])     # for test_chaos.py


def fresh(cfg, mesh, layout, dtype, muon):
    """-> (models, optimizer, state()) of this rank."""
    models = build(cfg, mesh, 7, layout['v'])
    opt = Optimizer(models, mesh, dtype, weight_decay=0.1, clip=1.0, muon=muon, muon_lr=1.0, zero=layout.get('zero', 0))
    return models, opt, lambda saving=False: state(opt, models, mesh, saving)


def train(models, opt, mesh, cfg, layout, dtype, sets, steps):
    """-> the global loss of each step; as in train.py, the balancing bias moves once per step."""
    losses, per_rank = [], ROWS // mesh.dp.size
    for step in steps:
        batch = toy.micros(sets, step, rows=ROWS, micro=max(1, per_rank // 2), T=T, dp=mesh.dp.size, dp_rank=mesh.dp.rank, cp=mesh.cp.size,
                           cp_rank=mesh.cp.rank, dtype=torch.promote_types(dtype, torch.float32), experts=cfg.n_expert > 0)
        m, v, todo = len(batch), layout['v'], None
        if mesh.pp.size > 1:
            todo = add_messages(schedule(layout['schedule'], mesh.pp.size, m, v), m, v)[mesh.pp.rank]
        opt.start(m)
        shape = len(batch[0]['ids']), T // mesh.cp.size // (mesh.tp.size if mesh.sp else 1), cfg.n_embd
        out = forward_backward(models, batch, mesh, todo, shape, dtype)
        total = sum((o['loss'].double() for o in out), torch.zeros((), dtype=torch.float64))
        losses.append(float(all_reduce(all_reduce(total, mesh.pp), mesh.dpcp)))
        opt.step(3e-3)
        for m in (m for model in models for m in model.modules()):
            if hasattr(m, 'load'):
                load = all_reduce(m.load.sum(0), mesh.stage)
                m.bias += 1e-3 * torch.sign(load.mean() - load)
                m.load.zero_()
    return losses


def worker(rank, jobs, first, dtype, muon, folder, meet, results):
    """jobs: [(layout, name of the checkpoint to load or None, name of the one to write)]; this rank does those that it is in, in order."""
    torch.set_num_threads(1)
    sets, now = [toy.shards(toy.documents())], None
    for i, (layout, source, name) in enumerate(jobs):
        if i < first or rank >= size(layout):
            continue
        try:
            if layout != now:
                if dist.is_initialized():
                    dist.barrier()
                    dist.destroy_process_group()
                if size(layout) > 1:
                    dist.init_process_group('gloo', store=dist.FileStore(f'{meet}/{i}', size(layout)), rank=rank, world_size=size(layout))
                cfg, now = config(layout['kind']), layout
                sizes = {k: layout[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}
                mesh = make_mesh(**sizes, n_kv_head=cfg.n_kv_head, tie=cfg.tie, zero_shard=layout['shard'])
            models, opt, state = fresh(cfg, mesh, layout, dtype, muon)
            if source:
                ck = Checkpoint(Path(folder) / source)
                for _, _, x, _ in state():
                    x.data.fill_(float('nan'))                     # whatever is not loaded will be seen
                ck.fill(state())
                opt.loaded(ck.meta['optimizer_steps'])
            else:
                train(models, opt, mesh, cfg, layout, dtype, sets, range(BEFORE))
            save_checkpoint(folder, name, state(saving=True), dict(step=BEFORE, optimizer_steps=opt.t), mesh)
            losses = train(models, opt, mesh, cfg, layout, dtype, sets, range(BEFORE, BEFORE + AFTER))
            if rank == 0:
                results.put((i, losses, None))
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            what = f'{type(e).__name__}: {" ".join(str(e).split())[:300]}'
            results.put((i, None, f'rank {rank}, {Path(where.filename).name} line {where.lineno}: {what}'))
            os._exit(1)                                            # the others must not wait for this rank
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def launch(jobs, dtype, muon, folder, patience=240):
    """Yields (losses or None, error) of each job, in order. After a failure the ranks start anew behind it."""
    ctx, done = mp.get_context('fork'), 0
    while done < len(jobs):
        results, meet, broken = ctx.SimpleQueue(), tempfile.mkdtemp(dir=folder), {}      # nobody must find the files of those before
        procs = [ctx.Process(target=worker, args=(r, jobs, done, dtype, muon, folder, meet, results), daemon=True)
                 for r in range(max(size(j[0]) for j in jobs))]
        for p in procs:
            p.start()
        while done < len(jobs) and done not in broken:
            if not any(results._reader.poll(1) for _ in range(patience)):      # by the second: while all of us are stopped, patience is too
                broken[done] = f'no answer in {patience} s: a rank hangs'
                break
            i, losses, error = results.get()
            if error:                                              # of a later job perhaps: rank 0 still answers for those before
                broken.setdefault(i, error)
            else:
                done += 1
                yield losses, ''
        for p in procs:
            p.kill() if broken else p.join()
        if done in broken:
            done += 1
            yield None, broken[done - 1]


def same(a, b):
    """What differs between two checkpoint folders, '' if nothing does; a: {name: bytes} and meta, b: a folder."""
    ck = Checkpoint(b)
    if sorted(ck.names) != sorted(a['names']):
        return f'{len(set(ck.names) ^ set(a["names"]))} names differ'
    if ck.meta != a['meta']:
        return f'counters {ck.meta}, not {a["meta"]}'
    bad = [n for n in ck.names if ck.full(n).numpy().tobytes() != a['names'][n]]
    return f'{len(bad)} of {len(ck.names)} tensors differ, such as {bad[0]}' if bad else ''


def pairs(layouts, dtype, muon):
    """layouts: of one kind -> [[(worst relative difference of a loss or None, what is wrong or '')] for B] for A]."""
    n, folder = len(layouts), tempfile.mkdtemp(prefix='reshard-')
    try:
        order = sorted(range(n), key=lambda i: size(layouts[i]))
        first = {i: got for got, i in zip(launch([(layouts[i], None, f'a{i}') for i in order], dtype, muon, folder), order)}
        table, states = [[(None, f'A does not run: {first[a][1]}')] * n for a in range(n)], {}
        for a in range(n):
            if first[a][0]:
                ck = Checkpoint(Path(folder) / f'a{a}')
                states[a] = dict(meta=ck.meta, names={k: ck.full(k).numpy().tobytes() for k in ck.names})
                zero = [k for k, v in states[a]['names'].items() if not any(v)]
                assert not zero and ck.meta['optimizer_steps'] == BEFORE, f'{label(layouts[a])}: state that is 0 shows nothing: {zero}'
        todo = [(a, b) for b in order for a in states]
        jobs = [(layouts[b], f'a{a}', f'b{a}-{b}') for a, b in todo]
        for (losses, error), (a, b) in zip(launch(jobs, dtype, muon, folder), todo):       # in this order zip runs launch() to its end
            if error:
                table[a][b] = None, error
                continue
            worst = max(abs(x - y) / abs(y) if x == x else float('inf') for x, y in zip(losses, first[a][0], strict=True))
            table[a][b] = worst, same(states[a], Path(folder) / f'b{a}-{b}')
            shutil.rmtree(Path(folder) / f'b{a}-{b}')
        return table
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    part, these, optimizers, dtypes = 'short', '', '', ''
    for a in sys.argv[1:]:
        k, _, v = a.removeprefix('--').partition('=')
        if k not in ('part', 'these', 'optimizers', 'dtypes'):
            sys.exit(f'reshard.py: unknown {a}: use --part=few|short|all --these="tied dp2 zero1; tied tp2 pp2" --optimizers=adamw,muon '
                     '--dtypes=float64,float32,bfloat16')
        globals()[k] = v
    runs = dict(tied=[('adamw', 'float32')], moe=[('muon', 'float64')])
    if part == 'all' or optimizers or dtypes:
        every = [(o, d) for o in (optimizers or 'adamw,muon').split(',') for d in (dtypes or 'float64,float32,bfloat16').split(',')]
        runs = dict.fromkeys(('tied', 'moe', 'dense'), every)
    lists = {k: [f'{k} {w}' for w in v + (MORE[k] if part == 'all' else [])] for k, v in (FEW if part == 'few' else SHORT).items()}
    if these:
        lists = {k: [t.strip() for t in these.split(';') if t.split()[0] == k] for k in ('tied', 'moe', 'dense')}
        runs.setdefault('dense', runs['tied'])
    begin, n, failed, top = time.time(), 0, 0, {}
    for kind, texts in lists.items():
        layouts = [parse(t) for t in texts]
        for optimizer, dtype in runs[kind] if texts else ():
            print(f'\n{kind}, {optimizer}, {dtype}, from the row to the column: state bit-equal; worst difference of {AFTER} losses')
            table = pairs(layouts, getattr(torch, dtype), optimizer == 'muon')
            print(' ' * 46 + ''.join(f'{j + 1:8d}' for j in range(len(layouts))))
            for i, (text, row) in enumerate(zip(texts, table)):
                oks = [not why and worst is not None and worst <= LIMIT[dtype] for worst, why in row]
                cells = ''.join(f'{worst:8.0e}' if ok else '  FAILED' for ok, (worst, _) in zip(oks, row))
                print(f'{i + 1:2d} {size(layouts[i])} ranks: {text:33s}{cells}', flush=True)
                n, failed = n + len(row), failed + oks.count(False)
                top[dtype] = max([top.get(dtype, 0.0)] + [worst for worst, _ in row if worst is not None])
                for j in [j for j, ok in enumerate(oks) if not ok]:
                    print(f'     to {texts[j]}: {row[j][1] or f"losses differ by {row[j][0]:.1e}"}')
    print(json.dumps(dict(bench='reshard', ok=0 == failed < n, part=part, pairs=n, failures=failed, worst=top,
                          seconds=round(time.time() - begin), cpu_seconds=round(sum(os.times()[2:4])))))
    sys.exit(failed > 0 or not n)
