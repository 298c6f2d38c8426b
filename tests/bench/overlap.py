"""
How long collectives are under way, and how much of that a rank stands waiting for them: one training step of each layout on two processes.

    python tests/bench/overlap.py                              about a minute on 2 cores
    python tests/bench/overlap.py --these="moe dp2 ep2; dense dp2 zero3" --width=512

For each operation of each group, per step and for rank 0: how many calls, how many of them only started (the others block), the time from
issue to the end of the wait, the time waited, and what is hidden: the part of the time under way in which the rank computed. A wait for a
slower neighbour counts as waiting for the collective. On CPU Gloo's thread takes its time from the same cores, so this shows what may run
side by side, not what is won.

What is meant to be hidden (DESIGN.md 3): the reduction of gradients and ZeRO's gathers behind other units, the ring's next keys and values
behind the present block, tokens to experts behind the shared expert, a pipeline's messages behind other microbatches. Tensor parallelism
waits for each of its sums, here as elsewhere without fused kernels. ok: all of the former are started and not waited for at once, and for
the reductions, ZeRO and the ring more than half of their time is hidden.
"""
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import grid
import optim_zero
import parallel
import toy
from configurator import configure
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import add_messages, forward_backward, keep_pages, make_mesh, schedule
from test_parallel import ranks

these = ('dense dp2; dense dp2 zero1; dense dp2 zero2; dense dp2 zero3; dense cp2 ring; dense cp2 allgather; dense cp2 ulysses; '
         'moe dp2 ep2; dense pp2 1f1b; dense pp2 zbh1; dense tp2; dense tp2 sp')        # as tests/grid.py names them
steps = 5        # counted, after one that is not
width = 256
layers = 4
rows = 16
block = 128
configure(globals())
HIDDEN = {('all_reduce', 'dpcp'), ('all_gather', 'dpcp'), ('reduce_scatter', 'dpcp'), ('p2p', 'cp')}      # more than half
STARTED = HIDDEN | {('all_to_all', 'ep'), ('isend', 'pp'), ('irecv', 'pp')}


def watch(log, mesh):
    """torch.distributed as parallel.py and optim_zero.py see it: its calls go to log, (operation, group, issue, wait, end, started)."""
    names = {getattr(mesh, k).pg: k for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'edp', 'dpcp', 'world', 'stage') if getattr(mesh, k).pg}
    fake, now = SimpleNamespace(**vars(dist)), time.perf_counter

    def handle(works, op, group, issue):
        def wait():
            begin = now()
            for w in works:
                w.wait()
            log.append((op, group, issue, begin, now(), True))
        return SimpleNamespace(wait=wait)

    def timed(name, say):
        real = getattr(dist, name)

        def call(*a, **k):
            issue, group = now(), names.get(k.get('group'), 'world')
            work = real(*a, **k)
            if k.get('async_op') or 'send' in name or 'recv' in name:
                return handle([work], say, group, issue)
            log.append((say, group, issue, issue, now(), False))
            return work
        call.real = real
        return call

    for name, say in dict(all_reduce='all_reduce', all_gather_single='all_gather', reduce_scatter_single='reduce_scatter',
                          all_to_all_single='all_to_all', isend='isend', irecv='irecv').items():
        setattr(fake, name, timed(name, say))
    fake.P2POp = lambda op, x, peer, pg: SimpleNamespace(real=dist.P2POp(op.real, x, peer, pg), pg=pg)

    def batch(ops):
        issue = now()
        return [handle(dist.batch_isend_irecv([o.real for o in ops]), 'p2p', names[ops[0].pg], issue)]
    fake.batch_isend_irecv = batch
    parallel.dist = optim_zero.dist = fake


def work(rank, l):
    """-> (milliseconds of a step, log of all steps)."""
    keep_pages()
    moe = dict(n_expert=4, top_k=2, expert_ff=width, shared_ff=4 * width, dense_layers=0) if l['kind'] == 'moe' else {}
    cfg = ModelConfig(vocab_size=toy.codec.n_vocab, n_layer=layers, n_head=8, n_embd=width, flow_width=64, flow_depth=1, **moe)
    mesh, log = make_mesh(**{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}), []
    models, micro = build(cfg, mesh, 7), 2 if l['pp'] > 1 else 4
    opt = Optimizer(models, mesh, torch.float32, muon=False, clip=1.0, zero=l['zero'])
    batches = toy.micros([toy.shards(toy.documents())], 0, rows=rows, micro=micro, T=block, dp=l['dp'], dp_rank=mesh.dp.rank, cp=l['cp'],
                         cp_rank=mesh.cp.rank, dtype=torch.float32, experts=bool(moe))
    todo = add_messages(schedule(l['schedule'], 2, len(batches)), len(batches))[mesh.pp.rank] if l['pp'] > 1 else None
    watch(log, mesh)
    for i in range(steps + 1):
        dist.barrier()
        if i == 1:
            log.clear()
            began = time.perf_counter()
        opt.start(len(batches))
        forward_backward(models, batches, mesh, todo, (micro, block // l['cp'] // (l['tp'] if mesh.sp else 1), width), torch.float32)
        opt.step(1e-4)
    return 1000 * (time.perf_counter() - began) / steps, log


ok, figures = True, {}
print(f'{"layout":18s} {"step, ms":>9s}  {"operation":15s} {"group":6s} {"calls":>6s} {"started":>8s} {"under way":>10s} {"waited":>8s} '
      f'{"hidden":>7s}')
for text in (t.strip() for t in these.split(';')):
    ms, log = ranks(2, work, grid.parse(text))[0]
    for n, (op, group) in enumerate(sorted({x[:2] for x in log})):
        calls = [x for x in log if x[:2] == (op, group)]
        way, waited = (1000 * sum(end - x for x, end in ((x[i], x[4]) for x in calls)) / steps for i in (2, 3))
        # a call that blocks has one time, both of its way and of its wait
        started, hidden = sum(x[5] for x in calls), 1 - waited / way
        figures[f'{text}: {op} {group}'] = round(hidden, 3)
        # half of the exchanges with experts bring results back, and their counts go first: nothing is left to do meanwhile
        ok &= (op, group) not in STARTED or started > 0 and (hidden > .5 or (op, group) not in HIDDEN)
        print(f'{text if not n else "":18s} {"" if n else f"{ms:.1f}":>9s}  {op:15s} {group:6s} {len(calls) / steps:6.0f} '
              f'{started / steps:8.0f} {way:10.1f} {waited:8.1f} {hidden:7.0%}', flush=True)
print(json.dumps(dict(bench='overlap', ok=ok, width=width, layers=layers, rows=rows, hidden=figures)))
sys.exit(not ok)
