"""
Bytes per rank beside the formulas: parameters, gradients, masters and moments at rest, what is gathered or reduced at most at one time, and
activations.

    python tests/bench/memory.py                    about a minute on 2 cores

State: bfloat16 with AdamW, every ZeRO stage over 1, 2 and 4 ranks, dense and with experts; equal to the byte. In use: the largest sum of
gathered parameters (stage 3) and of whole gradients (stages 2 and 3) in a step, at most what two parts of the model need. Activations: what
autograd holds between forward and backward pass, by plan.count_activations, with and without recompute, tp and sp; within 2%. Masks and
batches are not counted.
"""
import json, sys
from itertools import product
from pathlib import Path
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import torch
import optim_zero, toy
from configurator import configure
from data.plan import count_activations
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import forward_backward, make_mesh
from test_parallel import ranks

width = 128      # of the model
T, ROWS = 64, 8
configure(globals())


def config(moe=False, **kw):
    return ModelConfig(vocab_size=364, n_layer=4, n_head=4, n_embd=width, flow_width=64, flow_depth=2, token_shift=True,
                       **(dict(n_expert=4, top_k=2) if moe else {}), **kw)


def batch(mesh, dtype, moe=False, micro=4):
    b = toy.micros([toy.shards(toy.documents())], 0, rows=ROWS, micro=micro, T=T, dp=mesh.dp.size, dp_rank=mesh.dp.rank, dtype=dtype,
                   experts=moe)
    return [{**x, 'doc': torch.zeros_like(x['doc'])} for x in b]               # one document per row: no mask


def state(rank, d, stage, moe):
    """
    -> bytes at rest by kind, the most in use at once, padded parameters of this rank: in all, outside groups of one, of the largest two
    parts.
    """
    torch.set_num_threads(1)
    mesh = make_mesh(dp=d, ep=2 if moe and d > 1 else 1)
    models = build(config(moe), mesh, 7)
    opt = Optimizer(models, mesh, torch.bfloat16, zero=stage)
    at_rest, most = opt.nbytes(), [0]

    def look(u):
        live = sum(u.param.untyped_storage().nbytes() for u in opt.units if u.stage == 3)
        live += sum(4 * u.n for u in opt.units if u.stage > 1 and u.sum is not None)
        live += sum(4 * (u.n + u.w) for u in opt.flying if u.stage > 1)
        most[0] = max(most[0], live)
    for name in ('gather', 'add', 'reduce', 'land'):
        def new(u, *a, old=getattr(optim_zero.Unit, name)):
            old(u, *a)
            look(u)
        setattr(optim_zero.Unit, name, new)
    micros = batch(mesh, torch.bfloat16, moe, 2)
    opt.start(len(micros))
    forward_backward(models, micros, mesh)
    opt.step(1e-3)
    assert opt.nbytes() == at_rest
    parts = {}
    for u in opt.units:
        part = u.name.partition('[')[0]
        parts[part if part[0] == 'b' else 'ends'] = parts.get(part if part[0] == 'b' else 'ends', 0) + u.n * (u.stage > 1)
    return at_rest, most[0], [(u.n, u.group.size) for u in opt.units], sorted(parts.values())[-2:]


def held(rank, kw, recompute, bins):
    """Bytes that autograd holds after a forward pass in float32, and the formula's."""
    torch.set_num_threads(1)
    mesh = make_mesh(**kw)
    cfg = config(bins=bins)
    model, = build(cfg, mesh, 7)
    model.recompute = recompute
    b, = batch(mesh, torch.float32, micro=ROWS)
    seen, context = {}, []
    old = model.context
    model.context = lambda *a: context.append(old(*a)) or context[-1]
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()} | {x.untyped_storage().data_ptr() for x in b.values()}

    def keep(x):
        s = x.untyped_storage()
        if s.data_ptr() not in mine and s.nbytes():
            seen[s.data_ptr()] = s                                              # kept alive, so that no address comes twice
        return x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(b)
    for x in context[0].values():
        seen.pop(x.untyped_storage().data_ptr() if x is not None else 0, None)
    paper = count_activations(cfg, ROWS, T, len(b['txt_i']), len(b['img_i']),
                              *(len(b[k]) for k in ('aud_i', 'xin_img_i', 'xin_aud_i', 'rc_i')), b['img_t'].shape[1], recompute=recompute,
                              tp=mesh.tp.size, sp=mesh.sp)
    return sum(s.nbytes() for s in seen.values()), sum(paper.values())


if __name__ == '__main__':
    good, worst = True, 0.0
    print(f'{"state":24s} {"parameters":>10s} {"gradients":>10s} {"masters":>10s} {"moments":>10s} {"bytes each":>10s} {"formula":>8s} '
          f'{"in use":>10s} {"at most":>10s}')
    for moe in (False, True):
        for d in (1, 2, 4):
            for stage in range(4 if d > 1 else 1):
                rest, most, units, parts = ranks(d, state, d, stage, moe)[0]
                each = lambda k: {0: 18, 1: 6 + 12 / k, 2: 2 + 16 / k, 3: 18 / k}[stage if k > 1 else 0]
                paper, n = sum(n * each(k) for n, k in units), sum(n for n, _ in units)
                bound = (sum(parts) * (2 if stage == 3 else 0) + (2 * sum(parts) * 4 if stage > 1 else 0))
                good &= sum(rest.values()) == paper and most <= bound
                row = ' '.join(f'{rest[k]:10,d}' for k in ('parameters', 'gradients', 'masters', 'moments'))
                print(f'{"experts " * moe + f"d={d} ZeRO-{stage}":24s} {row}'
                      + f' {sum(rest.values()) / n:10.3f} {paper / n:8.3f} {most:10,d} {bound:10,d}'
                      + '  DIFFERS' * (sum(rest.values()) != paper or most > bound))
    print(f'\n{"activations":24s} {"measured":>12s} {"formula":>12s}')
    for kw, bins, recompute in product((dict(), dict(tp=2), dict(tp=2, sp=True)), (0, 32), (False, True)):
        got, paper = ranks(kw.get('tp', 1), held, kw, recompute, bins)[0]
        off = abs(got - paper) / paper
        worst, good = max(worst, off), good and off <= 0.02
        print(f'{" ".join(f"{k}={v}" for k, v in kw.items()) + " recompute" * recompute + " bins" * (bins > 0):24s} {got:12,d} {paper:12,d}'
              f'  {off:.2%}' + '  DIFFERS' * (off > .02))
    print(json.dumps(dict(bench='memory', ok=good, worst_activations=round(worst, 4))))
    sys.exit(not good)
