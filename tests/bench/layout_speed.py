"""
Tokens per second of two processes in each layout, beside two processes that have nothing to do with each other.

    python tests/bench/layout_speed.py                        about 6 minutes on 2 cores
    python tests/bench/layout_speed.py --these="dense tp2 sp; dense dp2 zero3" --rounds=8

Two processes of one thread on Gloo, float32, text: 6 layers of width 384, 6 heads, rows of 256, where matrix products are most of a step
(MoE: 4 experts, 2 of them for a token). In every round both processes make one step alone, each on half of the rows, and then one step
together in each layout on all rows, so other load of the machine meets all alike. A step is forward, backward, reduction, clipping, AdamW.
The figure of a layout is the median over the rounds of (seconds alone / seconds together), the slower process counting for both.

Target: at least 85% for dp2, tp2, pp2, cp2 and ep2.
"""
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import grid
from configurator import configure
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import add_messages, forward_backward, keep_pages, make_mesh, schedule, solo_mesh, zigzag
from test_parallel import ranks

these = 'dense dp2; dense tp2; dense tp2 sp; dense pp2 1f1b; dense pp2 zbh1; dense cp2 ring; moe dp2 ep2; dense dp2 zero1; dense dp2 zero3'
rounds = 5
rows = 16        # of a step
micro = 4        # of a microbatch; in pipelines 2
width = 384
layers = 6
block = 256
target = 0.85
configure(globals())
V = 96


def stepper(layout, mesh):
    """-> a function that makes one step of this rank's part."""
    moe = dict(n_expert=4, top_k=2, expert_ff=width, shared_ff=2 * width, dense_layers=0) if layout['kind'] == 'moe' else {}
    cfg = ModelConfig(vocab_size=V, n_layer=layers, n_head=width // 64, n_embd=width, image=False, audio=False, **moe)
    models = build(cfg, mesh, 0)
    opt = Optimizer(models, mesh, torch.float32, muon=False, clip=1.0, zero=layout['zero'])
    mine, size = rows // 2 if mesh.world.size == 1 else rows // mesh.dp.size, 2 if mesh.pp.size > 1 else micro
    cols = zigzag(block, mesh.cp.size, mesh.cp.rank) if mesh.cp.size > 1 else torch.arange(block)
    gen = torch.Generator().manual_seed(mesh.dp.rank)
    none, batches, n = dict.fromkeys(('img_i', 'aud_i', 'img_w', 'aud_w'), torch.zeros(0, dtype=torch.long)), [], size * len(cols)
    for _ in range(mine // size):
        x = torch.randint(V, (size, block + 1), generator=gen)
        batches.append(dict(none, ids=x[:, :-1][:, cols].contiguous(), doc=torch.zeros(size, block, dtype=torch.long),
                            pos=cols.expand(size, -1),
                            txt_i=torch.arange(n), txt_y=x[:, 1:][:, cols].flatten(), txt_w=torch.full((n,), 1 / (rows * block)),
                            kind=torch.zeros(size, len(cols), dtype=torch.long)))
    todo = add_messages(schedule(layout['schedule'], 2, len(batches)), len(batches))[mesh.pp.rank] if mesh.pp.size > 1 else None

    def step():
        opt.start(len(batches))
        forward_backward(models, batches, mesh, todo, (size, len(cols) // (mesh.tp.size if mesh.sp else 1), width), torch.float32)
        opt.step(1e-4)
    return step


def work(rank, names):
    """-> {name: seconds of each round}."""
    keep_pages()                                                               # as train.py does
    steps, times = {}, {}
    for name in names:
        l = grid.parse(name.removesuffix(' alone'))
        mesh = solo_mesh() if name.endswith('alone') else make_mesh(**{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')})
        steps[name] = stepper(l, mesh)
    for _ in range(rounds + 1):                                               # the first is not counted
        for name, step in steps.items():
            dist.barrier()
            t = time.perf_counter()
            step()
            times.setdefault(name, []).append(time.perf_counter() - t)
    return {k: t[1:] for k, t in times.items()}


names = [n.strip() for n in these.split(';')]
alone = sorted({f'{n.split()[0]} alone' for n in names})
got = ranks(2, work, alone + names)
slower = {k: [max(a, b) for a, b in zip(got[0][k], got[1][k])] for k in got[0]}
table, ok = {}, True
print(f'{"layout":20s} {"tokens/s":>9s} {"of two alone":>13s}')
for k, t in slower.items():
    share = median(a / b for a, b in zip(slower[f'{k.split()[0]} alone'], t))
    table[k] = round(share, 3)
    ok &= share >= target or k not in ('dense dp2', 'dense tp2', 'dense pp2 1f1b', 'dense cp2 ring', 'moe dp2 ep2')
    print(f'{k:20s} {rows * block / median(t):9,.0f} {share:13.0%}')
print(json.dumps(dict(bench='layout_speed', ok=ok, width=width, layers=layers, rows=rows, **table)))
sys.exit(not ok)
