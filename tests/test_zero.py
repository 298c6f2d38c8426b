"""
ZeRO 0 to 3, Muon on shards, hybrid sharding and recompute against one process and against each other, bit for bit; collectives that are
late; memory at rest; checkpoints between layouts; and what train.py does when a loss explodes or a checkpoint is written behind its back.

    python -m pytest tests/test_zero.py            about a minute on 2 cores
"""
import gc
import inspect
import json
import math
import os
import re
import shutil
import signal
import socket
import struct
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import grid
import optim_zero
import toy
from model import build
from data.layouts import check_layout
from data.checkpoint import Checkpoint, save_checkpoint
from optim_zero import Optimizer
from parallel import (Spec, add_messages, all_reduce, forward_backward, init_params, make_mesh, param, schedule, solo_mesh,
                      start_world)
from test_parallel import GOOD, PATIENCE, ranks
from test_train import TINY, assert_same, contents, machine, one_line, steps  # noqa: F401

# ---------------------------------------------------------------- every stage equals one process, and the other stages

# layouts of tests/grid.py, and stages in the order in which their bits are compared: with one microbatch all, with several 0 = 1 and 2 = 3
SEVERAL = [('moe dp2', 0, 1, 2, 3), ('dense dp4 shard2', 0, 1), ('tied dp2 pp2 zbh1 recompute', 2, 3),
           ('dense dp2 tp4 sp', 0, 1)]
ONE = [('tied cp2 allgather recompute', 0, 1, 2, 3), ('dense dp2 tp2 sp', 0, 3), ('moe dp4 ep2 shard2', 0, 2)]
MUON = [('moe dp2', 0, 2), ('dense dp2 tp2', 1, 3)]


def agree(layouts, optimizers, one=False):
    todo = [dict(grid.parse(text), zero=z, one=one) for text, *stages in layouts for z in stages]
    for world in sorted({grid.size(l) for l in todo}):
        for layout, worst, text in grid.run_grid([l for l in todo if grid.size(l) == world], world, torch.float64, optimizers, PATIENCE):
            assert worst and max(worst.values()) <= 1e-10, f'{layout["kind"]} {grid.label(layout)}: {worst} at {text}'


def test_the_layouts_are_a_fair_part():
    """Each stage over dp and of every kind of model; each other dimension at some stage that shards."""
    seen = set()
    for text, *stages in SEVERAL + ONE + MUON:
        l = grid.parse(text)
        on = {k for k in ('dp', 'tp', 'pp', 'cp', 'ep') if l[k] > 1} | {k for k in ('sp', 'shard', 'recompute') if l[k]}
        on |= {l['kind'], l['schedule']}
        seen |= {(z, k) for z in stages for k in on}
    assert seen >= {(z, k) for z in range(4) for k in ('dp', 'recompute', 'dense', 'moe', 'tied')} - {(2, 'dense')}
    assert {k for z, k in seen if z > 1} >= {'tp', 'pp', 'cp', 'ep', 'sp', 'shard', 'zbh1'}


def test_stages_equal_one_process_and_each_other():
    agree(SEVERAL, ('sgd', 'adamw'))


def test_all_stages_have_the_same_bits_with_one_microbatch():
    agree(ONE, ('sgd', 'adamw'), one=True)


def test_muon_on_shards_is_muon():
    agree(MUON, ('sgd', 'muon'), one=True)

# ---------------------------------------------------------------- inside a world: steps of a model of the grid


def world(text, zero=0, dtype=torch.float64, muon=False, micros=None, **kw):
    """(mesh, models, optimizer, step()) of this rank: step() runs one step on the toy rows, and returns the gradient norm."""
    l = grid.parse(text)
    cfg = grid.config(l['kind'])
    mesh = make_mesh(**{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'sp', 'cp_mode')}, n_kv_head=cfg.n_kv_head, tie=cfg.tie,
                     zero_shard=l['shard'])
    models = build(cfg, mesh, 7, l['v'])
    for m in models:
        m.recompute = l['recompute']
    opt = Optimizer(models, mesh, dtype, zero=zero, muon=muon, **kw)
    sets, at = [toy.shards(toy.documents())], iter(range(99))

    def step(lr=3e-3):
        b = toy.micros(sets, next(at), micro=2, dp=mesh.dp.size, dp_rank=mesh.dp.rank, cp=mesh.cp.size, cp_rank=mesh.cp.rank,
                       dtype=torch.promote_types(dtype, torch.float32), experts=cfg.n_expert > 0)
        todo = add_messages(schedule(l['schedule'], l['pp'], len(b), l['v']), len(b), l['v'])[mesh.pp.rank] if l['pp'] > 1 else None
        opt.start(len(b))
        forward_backward(models, b, mesh, todo, (2, 64 // mesh.cp.size // (mesh.tp.size if mesh.sp else 1), cfg.n_embd), dtype)
        return opt.step(lr)
    return mesh, models, opt, step


def state(opt):
    return torch.cat([x.detach().double().reshape(-1) for u in opt.units for x in (u.master, u.m, u.v)])


class Late:
    """The handle of a collective that begins when it is waited for; meanwhile what it fills is nan; what it sends must stay as it is."""
    def __init__(self, begin, fill, send):
        self.begin, self.send, self.was = begin, send, send.clone()
        if fill is not None:
            fill.fill_(math.nan)
            send.copy_(self.was)                                               # it may be a slice of what is filled

    def wait(self):
        if self.begin:
            assert torch.equal(self.send.nan_to_num(), self.was.nan_to_num()), 'what is being sent was written to'
            self.begin().wait()
            self.begin = None


def late_worker(rank, text, stages):
    gather, scatter, reduce = optim_zero.all_gather_into, optim_zero.reduce_scatter_into, optim_zero.all_reduce

    def late_reduce(x, g, async_op=False):
        return Late(lambda: reduce(x, g, async_op=True), None, x) if async_op and g.size > 1 else reduce(x, g, async_op=async_op)
    late = dict(all_gather_into=lambda y, x, g: Late(lambda: gather(y, x, g), y, x),
                reduce_scatter_into=lambda y, x, g: Late(lambda: scatter(y, x, g), y, x), all_reduce=late_reduce)
    for zero in stages:
        seen = []
        for functions in (dict(all_gather_into=gather, reduce_scatter_into=scatter, all_reduce=reduce), late):
            vars(optim_zero).update(functions)
            _, models, opt, step = world(text, zero)
            norms = [step() for _ in range(2)]
            for u in opt.units:                                                # what the next forward pass would read
                u.ready()
            seen.append([torch.tensor(norms), state(opt), *(p.detach().clone() for m in models for p in m.parameters())])
        assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(*seen, strict=True)), zero


@pytest.mark.parametrize('text, stages', [('moe dp2', (0, 1, 2, 3)), ('dense dp2 recompute', (3,)), ('tied dp2 pp2', (1, 3)),
                                          ('moe dp2 pp2 zbh1', (2,))])
def test_nothing_is_used_before_it_is_there(text, stages):
    """Collectives that finish at the last moment give the bits of those that finish whenever they like."""
    ranks(grid.size(grid.parse(text)), late_worker, text, stages)


def alone_worker(rank, zero):
    mesh, model = make_mesh(dp=2), torch.nn.Module()
    model.w, model.v = param(mesh, 3, 5), param(mesh, 2, 2)
    model.cfg, model.blocks, model.first, model.last = grid.config('dense'), {}, False, False
    init_params(model, 0)
    opt = Optimizer([model], mesh, torch.float32, zero=zero)
    opt.start(3)
    for i in range(3):
        (model.w * (i + 1 + 10 * rank)).sum().backward()
        (model.v * (i + 1)).sum().backward() if i else None
    opt.reduce()
    return toy.whole(opt.units[0], opt.units[0].due)


@pytest.mark.parametrize('zero', [0, 1, 2])
def test_one_unit_and_many_microbatches(zero):
    """No other unit between two reductions of it; and a parameter that one microbatch does not use."""
    for x in ranks(2, alone_worker, zero):
        assert x[:15].tolist() == [6 + 36.0] * 15 and x[16:20].tolist() == [10.0] * 4


# ---------------------------------------------------------------- what a rank holds


def memory_worker(rank, text, zero):
    def storages():
        every = [x.untyped_storage() for x in gc.get_objects() if isinstance(x, torch.Tensor)]
        return {s.data_ptr(): s.nbytes() for s in every if s.nbytes() and s.device.type != 'meta'}   # torch.compile leaves such
    gc.collect()
    before = storages()
    _, models, opt, step = world(text, zero, torch.bfloat16)
    rest = opt.nbytes()
    assert math.isfinite(step())
    gc.collect()
    seen = sum(n for k, n in storages().items() if k not in before) - opt.steps.nbytes
    assert opt.nbytes() == rest
    return rest, seen, sum(u.n for u in opt.units), sum(p.numel() for u in opt.units for p in u.params), [p.shape for p, _ in opt.tables]


@pytest.mark.parametrize('text, stages', [('dense dp2', (0, 1, 2, 3)), ('tied dp4 shard2', (3,)), ('dense cp2 tp2 ring', (1,))])
def test_bytes_at_rest_are_those_of_the_formulas(text, stages):
    """18, 6 + 12/d, 2 + 16/d, 18/d bytes per padded parameter (bfloat16, AdamW), after a step as before; memory tables in
    float32, and a number per row; no tensor lives beside them."""
    d = 2
    for zero in stages:
        each = (18, 6 + 12 / d, 2 + 16 / d, 18 / d)[zero]
        for rest, seen, n, bare, tables in ranks(grid.size(grid.parse(text)), memory_worker, text, zero):
            numbers, rows = sum(r * c for r, c in tables), sum(r for r, _ in tables)
            assert sum(rest.values()) == seen == n * each + 4 * numbers + 4 * rows, (zero, rest, seen)
            w = n // d
            assert rest == dict(parameters=2 * (w if zero == 3 else n) + 4 * numbers, gradients=4 * (w if zero > 1 else n),
                                masters=4 * (w if zero else n), moments=8 * (w if zero else n) + 4 * rows)
            assert bare <= n <= 1.05 * bare


def masters_worker(rank, zero):
    _, _, opt, _ = world('dense dp2', zero, torch.bfloat16)
    return grid.held(opt, 'master')


def test_masters_begin_in_float32():
    want = {n: p.detach() for n, p in build(grid.config('dense'), solo_mesh(), 7)[0].named_parameters()}
    for zero in range(4):
        for got in ranks(2, masters_worker, zero):
            assert got.keys() == want.keys() and all(torch.equal(x, want[n]) for n, (_, x) in got.items()), zero
    assert not torch.equal(want['wte'], want['wte'].bfloat16().float())


def replica_worker(rank, text, zero):
    mesh, _, opt, step = world(text, zero, muon=True)
    for _ in range(2):
        step()
    return [(u.name, p.spec.name, p.spec.blocks, u.lo, s.start, x.clone()) for u in opt.units for p, s in zip(u.params, u.slices)
            for x in (u.master, u.m, u.v)], [u.group.ranks for u in opt.units]


@pytest.mark.parametrize('zero', [1, 3])
def test_replicas_hold_the_same_bits(zero):
    """Hybrid sharding: two nodes of two ranks; the same shard in both, another one beside; experts likewise over their own copies."""
    got = ranks(4, replica_worker, 'moe dp4 shard2', zero)
    for a, b in combinations(range(4), 2):
        pairs = list(zip(got[a][0], got[b][0], strict=True))
        if b - a == 2:
            assert all(x[:-1] == y[:-1] and torch.equal(x[-1], y[-1]) for x, y in pairs)
        else:
            assert any(not torch.equal(x[-1], y[-1]) for x, y in pairs)
    assert {r for rank in got for r in rank[1]} == {(0, 1), (2, 3)}            # the node, for experts too


def nan_worker(rank, text, zero):
    mesh, _, opt, step = world(text, zero)
    step()
    before, t, said = state(opt), opt.t, []
    start = Optimizer.start
    for bad in (True, False):
        def poisoned(o, n):
            start(o, n)
            if bad and rank == mesh.world.size - 1:
                o.units[0].own[1] = math.inf                                   # of a shard that nobody else has
        Optimizer.start = poisoned
        said.append(step())
        assert torch.equal(state(opt), before) == bad and opt.t == t + (not bad)
    return said


@pytest.mark.parametrize('text, zero', [('dense dp2', 1), ('dense dp2', 2), ('moe dp2', 3), ('dense dp4 shard2', 2)])
def test_a_shard_that_is_not_finite_is_skipped_by_all(text, zero):
    said = ranks(grid.size(grid.parse(text)), nan_worker, text, zero)
    assert not math.isfinite(said[0][0]) and math.isfinite(said[0][1]) and {x[1] for x in said} == {said[0][1]}

# ---------------------------------------------------------------- recompute


def gradients(kind, recompute, dtype=torch.float32, queue=None):
    """-> gradients, the experts' loads and the bytes that autograd kept, of one microbatch."""
    mesh, kept = solo_mesh(), {}
    model, = build(grid.config(kind), mesh, 7)
    opt = Optimizer([model], mesh, dtype)
    model.recompute = recompute
    b, = toy.micros([toy.shards(toy.documents())], 0, micro=8, dtype=torch.float32, experts=kind == 'moe')

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x
    opt.start(1)
    mesh.queue_dw = queue
    watch = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with watch if queue is None else nullcontext():                            # with hooks what is queued would not be the parameter itself
        loss = model(b)['loss']
    mesh.queue_dw = None
    loss.backward()
    assert mesh.queue_dw is None
    if queue is not None:
        late = {id(w) for w, _, _ in queue}
        names = {n for n, p in model.named_parameters() if id(p) in late}
        assert names >= {f'blocks.{i}.attn.{k}' for i in range(4) for k in ('q', 'kv', 'out')}
        assert not any(p.main_grad.any() for n, p in model.named_parameters() if n in names), 'B made a weight gradient that W is to make'
        for w, d, a in queue:
            w.grad = d.flatten(0, -2).t() @ a.flatten(0, -2)
            w.ready(w)
    loads = {n: x.clone() for n, x in model.named_buffers() if n.endswith('load')}
    return torch.cat([u.grad for u in opt.units]), loads, sum(s.nbytes() for s in kept.values())


@pytest.mark.parametrize('kind', ['dense', 'moe', 'tied'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_recompute_has_the_bits_of_no_recompute(kind, dtype):
    """Every gradient; each token is counted once in its experts' load; and much less is kept."""
    (a, loads, kept), (b, again, less), (c, *_, some) = (gradients(kind, r, dtype) for r in (0.0, 1.0, 0.5))
    assert torch.equal(a, b) and torch.equal(a, c) and a.any() and less < 0.75 * kept and less < some < kept
    assert loads.keys() == again.keys() and all(torch.equal(x, again[n]) for n, x in loads.items())
    assert kind != 'moe' or all(0 < x.sum() <= 8 * 64 * 2 for x in loads.values())


def test_recompute_leaves_weight_gradients_in_the_queue():
    """Zero-bubble: what B recomputes queues for W as it would have, and W makes the same bits."""
    assert torch.equal(*(gradients('dense', r, queue=[])[0] for r in (False, True)))

# ---------------------------------------------------------------- checkpoints from layout to layout


def content(name, spec):
    """What a tensor of that name holds in these tests: whole numbers, exact in every type."""
    n = math.prod(spec.shape)
    return ((torch.arange(n) * 7 + sum(name.encode())) % 251 - 120).float().view(spec.shape)


def mine(opt):
    """[(name, tensor, what should be in it)] of this rank."""
    want = lambda name, spec, x, at: spec.local(content(name, spec)).reshape(-1)[at:at + x.numel()].view(x.shape)
    return [(t[0], t[2], want(*t)) for t in opt.tensors()]


def hop_worker(rank, text, zero, muon, source, out):
    """Load (or make) the state in this layout, look at every number, and save it again."""
    mesh, models, opt, step = world(text, zero, torch.bfloat16, muon)
    if source:
        for _, x, _ in mine(opt):
            x.fill_(-1)
        Checkpoint(source).fill(opt.tensors())
        for name, x, want in mine(opt):
            assert torch.equal(x, want), name
        opt.loaded(5)
    else:
        for _, x, want in mine(opt):
            x.copy_(want)
        opt.t = 5
        opt.publish()
    for u in opt.units:
        u.ready()
    for m in models:
        for n, p in m.named_parameters():
            assert torch.equal(p.data, p.spec.local(content(f'param/{n}', p.spec)).to(p.dtype)), n
    for u in opt.units:
        u.free()
    save_checkpoint(out, 'step_00000005', opt.tensors(saving=True), dict(step=5), mesh)
    return opt.t


ROUTES = {'dense': [('dense dp2', 0), ('dense dp2 tp2', 3), ('dense dp4 shard2', 2), ('dense pp2 cp2', 1), ('dense dp2 tp4 sp', 2),
                    ('dense dp1', 0)],
          'moe': [('moe dp4 ep2 shard2', 3), ('moe dp2 tp2 ep4', 2), ('moe dp1', 0), ('moe dp4 shard2', 1),
                  ('moe dp2 pp2 ep2 interleaved x2', 3)],
          'tied': [('tied dp2 pp2', 3), ('tied tp2 cp2', 1), ('tied dp2', 2)]}


@pytest.mark.parametrize('kind', ROUTES)
def test_a_checkpoint_moves_through_layouts(tmp_path, kind):
    """Each layout loads what the one before it wrote, bit for bit; a file holds every number once."""
    source = None
    for i, (text, zero) in enumerate(ROUTES[kind]):
        assert set(ranks(grid.size(grid.parse(text)), hop_worker, text, zero, kind == 'moe', source, tmp_path / str(i))) == {5}
        source, = (tmp_path / str(i)).glob('step_*')
        ck, whole = Checkpoint(source), {n: p for n, p in build(grid.config(kind), solo_mesh(), 7)[0].named_parameters()}
        assert {n.partition('/')[2] for n in ck.names} == whole.keys()
        for n in ck.names:
            spec = whole[n.partition('/')[2]].spec
            spec = Spec(spec.shape[:1]) if spec.kind == 'table' and n[:3] == 'exp' else spec            # a number for each row
            assert torch.equal(ck.full(n), content(n, spec)), (text, n)
        assert sum(f.stat().st_size for f in source.glob('*.bin')) == sum(ck.full(n).nbytes for n in ck.names)


def safetensors(file):
    """A reader of the format as its specification has it: 8 bytes of length, JSON, the raw tensors -> ({name: tensor}, metadata)."""
    raw = Path(file).read_bytes()
    n, = struct.unpack('<Q', raw[:8])
    head, body = json.loads(raw[8:8 + n]), raw[8 + n:]
    meta, at, out = head.pop('__metadata__'), 0, {}
    for name, e in head.items():
        a, b = e['data_offsets']
        assert a == at and e.keys() == {'dtype', 'shape', 'data_offsets'}                        # no holes, in order
        kind, size, dtype = {'F32': ('f', 4, torch.float32), 'F64': ('d', 8, torch.float64)}[e['dtype']]
        out[name], at = torch.tensor(struct.unpack(f'<{(b - a) // size}{kind}', body[a:b]), dtype=dtype).view(e['shape']), b
    assert at == len(body) and (8 + n) % 8 == 0 and all(isinstance(v, str) for v in meta.values())
    return out, meta

# ---------------------------------------------------------------- layouts that cannot work


@pytest.mark.parametrize('bad, says, good', [
    (dict(zero=4), r'^zero=4: use 0, 1, 2 or 3$', dict(zero=3)), (dict(zero=-1), r'^zero=-1: use 0, 1, 2 or 3$', dict(zero=0)),
    (dict(zero_shard=2), r'^zero_shard=2: it needs zero=1, 2 or 3 ', dict(zero=1)),
    (dict(zero=1, zero_shard=3), r'^zero_shard=3: .*dp\*cp=8: use 1, 2, 4, 8, or 0 for all$', dict(zero_shard=4)),
    (dict(zero=2, zero_shard=16), r'^zero_shard=16: .*dp\*cp=8: use 1, 2, 4, 8, or 0 for all$', dict(zero_shard=8)),
    (dict(zero=3, zero_shard=8, tp=2, T=128), r'^zero_shard=8: .*dp\*cp=4: use 1, 2, 4, or 0 for all$', dict(zero_shard=2)),
    (dict(zero=3, zero_shard=-2), r'^zero_shard=-2: .*use 1, 2, 4, 8, or 0 for all$', dict(zero_shard=0)),
    (dict(v=2), r'^pp_chunks=2 .*use pp=2 or more, or pp_chunks=1$', dict(pp=2))])
def test_sizes_that_cannot_work_are_refused_with_sizes_that_do(bad, says, good):
    with pytest.raises(ValueError) as e:
        check_layout(**{**GOOD, **bad})
    assert re.search(says, str(e.value)) and '\n' not in str(e.value)
    assert check_layout(**{**GOOD, **bad, **good})

# ---------------------------------------------------------------- train.py: losses that explode

TERM = int(signal.SIGTERM)
LONG = [*TINY, '--n_layer=2', '--n_expert=4', '--top_k=2', '--moe_balance=0.01', '--tokens_per_step=128', '--max_steps=60',
        '--save_every=4', '--keep_last=9', '--eval_docs=2']


def poison(at, factor, cut=None):
    """The weights of the text targets in these batches times `factor`, whatever step they are used in; then the file `cut` is damaged."""
    import itertools, os, data.loader as loader
    old, n = loader.train_batches, itertools.count()

    def batches(*a, **k):
        g = old(*a, **k)
        try:
            for s, micros, counts in g:
                assert next(n) < 99, 'it goes on for ever'
                for b in micros if s in at else ():
                    b['txt_w'] *= float(factor)
                    os.truncate(cut, 99) if cut else None
                yield s, micros, counts
        finally:
            g.close()
    loader.train_batches = batches


def without(first, n):
    """As if there had never been the n batches from `first` on: those behind them have moved up."""
    import data.loader as loader
    import math
    old = loader.train_batches

    def batches(*a, step, **k):
        for lo, hi, by in ((step, first, 0), (max(step, first), math.inf, n)):
            if lo < hi:
                g = old(*a, step=lo + by, **k)
                try:
                    for s, *rest in g:
                        if s - by >= hi:
                            break
                        yield (s - by, *rest)
                finally:
                    g.close()
    loader.train_batches = batches


def late_write(step, error=None):
    """The checkpoint of this step is written when training is two steps further; or its writing ends by an error that is not the disk's."""
    import threading, data.checkpoint as checkpoint, optim_zero
    old, zero, go = checkpoint.save_checkpoint, optim_zero.Optimizer.zero, threading.Event()

    def save(out, name, tensors, meta, mesh):
        if meta['step'] == step:
            assert error is None, error
            assert go.wait(300)
        old(out, name, tensors, meta, mesh)

    def done(opt):
        zero(opt)
        if opt.t >= step + 2:
            go.set()
    checkpoint.save_checkpoint, optim_zero.Optimizer.zero = save, done


def unreadable(file):
    """This rank alone cannot read a file, as when the disk of its node fails."""
    import numpy as np
    old = np.memmap

    def memmap(path, *a, **k):
        if str(path) == file:
            raise OSError(5, 'Input/output error')
        return old(path, *a, **k)
    np.memmap = memmap


HURT = '\n\n'.join(inspect.getsource(f) for f in (poison, without, late_write, unreadable)) + '''
import json, runpy, sys
for name, kw in json.loads(sys.argv[1]).items():
    globals()[name](**kw)
sys.argv = ['train.py', *sys.argv[2:]]
runpy.run_path('train.py', run_name='__main__')
'''


@pytest.fixture(scope='module')
def run(machine):  # noqa: F811
    """
    run(out, *flags, world=1, hurt=..., **hooks of test_train.py) -> the result of train.py, of several processes a list.
    hurt: {function above: arguments}, or a list of such by rank.
    """
    (machine.path / 'hurt.py').write_text(HURT)

    def run(out, *flags, world=1, hurt={}, **hooks):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        env = lambda r: dict(RANK=str(r), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)) if world > 1 else {}
        words = lambda r: (json.dumps(hurt if isinstance(hurt, dict) else hurt[r]), *LONG, f'--out_dir={out}', *flags)
        jobs = [machine.start('hurt.py', *words(r), env=env(r), **hooks) for r in range(world)]
        got = [machine.wait(j) for j in jobs]
        return got[0] if world == 1 else got
    return run


@pytest.fixture(scope='module')
def base(run, tmp_path_factory):
    """52 of 60 steps: enough losses to know what is normal; checkpoints of 48 and 52."""
    out = tmp_path_factory.mktemp('base') / 'out'
    assert run(out, '--save_every=48', signal=dict(where='row', step=52, sig=TERM)).code == 143 and steps(out) == [48, 52]
    return out


def copied(base, to):
    shutil.copytree(base, to)
    return to


def losses(out):
    """{step: loss}, the last one of each."""
    return {r['step']: r['loss'] for r in map(json.loads, (out / 'metrics.jsonl').read_text().splitlines()) if 'loss' in r}


def same_end(a, b, shift):
    """The same last checkpoint, but for the count of batches left out; and the same losses."""
    (meta_a, x), (meta_b, y) = (contents(p / 'step_00000060') for p in (a, b))
    assert meta_a.pop('shift') == shift and meta_b.pop('shift') == 0 and meta_a == meta_b and x.keys() == y.keys()
    assert [n for n in x if not torch.equal(x[n].view(torch.uint8), y[n].view(torch.uint8))] == []
    assert losses(a) == losses(b)


@pytest.fixture(scope='module')
def clean(run, base, tmp_path_factory):
    """clean(n): the run that never met the n batches from 52 on."""
    made = {}

    def clean(n):
        if n not in made:
            made[n] = copied(base, tmp_path_factory.mktemp('clean') / 'out')
            assert run(made[n], hurt=dict(without=dict(first=52, n=n))).code == 0
        return made[n]
    return clean


def test_a_spike_is_left_out(run, base, clean, tmp_path):
    """Two bad batches: back to the last checkpoint each time, past them; killed before, stopped after the next one, it ends the same."""
    bad, flag = dict(poison=dict(at=[54, 55], factor=30)), '--spike_rollback=true'
    r = run(out := copied(base, tmp_path / 'a'), flag, hurt=bad)
    back = [line for line in r.out.splitlines() if 'back to' in line]
    assert r.code == 0 and not r.err and len(back) == 2 and r.out.count('standard deviations above') == 2, r.out
    assert all(f'back to step 52, from {out}/step_00000052' in line for line in back)
    same_end(out, clean(4), 4)
    out = copied(base, tmp_path / 'b')
    assert run(out, flag, hurt=bad, signal=dict(where='row', step=57, sig=9)).code == -9 and max(steps(out)) == 52
    r = run(out, flag, hurt=bad, signal=dict(where='row', step=61, sig=TERM))
    assert r.code == 143 and 'back to step 52' in r.out and steps(out) == [48, 52, 56, 57]
    assert contents(out / 'step_00000057')[0]['shift'] == 4
    r = run(out, flag, hurt=bad)
    assert r.code == 0 and 'back to' not in r.out and 'deviations' not in r.out
    same_end(out, clean(4), 4)


def test_a_spike_is_only_reported(run, base, tmp_path):
    """Without spike_rollback one line, and not a bit of difference to a run that does not look; with spike_z=0 no line, nor a rollback."""
    outs, bad = [tmp_path / k for k in 'ab'], dict(poison=dict(at=[54], factor=30))
    for out, flags in zip(outs, (['--spike_z=6'], ['--spike_z=0', '--spike_rollback=true'])):
        r = run(copied(base, out), *flags, hurt=bad)
        said = [line for line in r.out.splitlines() if 'deviations' in line]
        assert r.code == 0 and not r.err and 'back to' not in r.out and len(said) == (flags == ['--spike_z=6'])
        assert not said or re.match(r'step 54: loss [\d.]+, \d+ standard deviations above the mean of the last 5\d$', said[0])
    assert_same(*(out / 'step_00000060' for out in outs))
    assert contents(outs[0] / 'step_00000060')[0]['shift'] == 0


def test_bad_steps_in_a_row_are_left_out(run, base, clean, tmp_path):
    """Non-finite ones: max_bad_steps of them, then as a spike; fewer are skipped where they are."""
    flags = ['--spike_rollback=true', '--max_bad_steps=2']
    r = run(out := copied(base, tmp_path / 'a'), *flags, hurt=dict(poison=dict(at=[54, 55], factor='inf')))
    assert r.code == 0 and not r.err and r.out.count('back to step 52') == 1 and '2 non-finite steps in a row' in r.out
    same_end(out, clean(4), 4)
    r = run(out := copied(base, tmp_path / 'b'), *flags, hurt=dict(poison=dict(at=[54, 56], factor='nan')))
    meta = contents(out / 'step_00000060')[0]
    assert r.code == 0 and 'back to' not in r.out and r.out.count('the update was skipped (1 in a row)') == 2
    assert meta['optimizer_steps'] == 58 and meta['shift'] == 0


def test_a_spike_on_one_rank_is_left_out_by_all(run, base, clean, tmp_path):
    """Two processes, ZeRO-3, recompute, from the checkpoint of one: rank 1 alone has met the bad batch."""
    flags = ['--dp=2', '--zero=3', '--recompute=1', '--spike_rollback=true', '--dtype=float64']
    hurts = [{}, dict(poison=dict(at=[54], factor=60))], dict(without=dict(first=52, n=3))
    for name, hurt in zip('ab', hurts):
        a, b = run(copied(base, tmp_path / name), *flags, world=2, hurt=hurt)
        assert (a.code, b.code) == (0, 0) and not a.err + b.err and ('back to step 52' in a.out) == (name == 'a')
    same_end(tmp_path / 'a', tmp_path / 'b', 3)


def test_a_rollback_passes_damaged_checkpoints(run, base, tmp_path):
    """To the newest that can be read; and where none can be, the run ends: what was loaded of one is no state to go on from."""
    out = copied(base, tmp_path / 'out')
    r = run(out, '--spike_rollback=true', hurt=dict(poison=dict(at=[57], factor=30)), signal=dict(where='row', step=56, sig=TERM))
    assert r.code == 143 and steps(out) == [48, 52, 56]
    for p in (52, 56):
        os.truncate(out / f'step_000000{p}/rank00000.bin', 99)                 # so the run goes on from 48
    keep, flags = copied(out, tmp_path / 'keep'), ['--spike_rollback=true', '--save_every=0']
    r = run(out, *flags, hurt=dict(poison=dict(at=[57], factor=30)))
    assert r.code == 0 and not r.err and f'back to step 48, from {out}/step_00000048' in r.out, r.err[-400:]
    assert contents(out / 'step_00000060')[0]['shift'] == 10
    r = run(keep, *flags, hurt=dict(poison=dict(at=[57], factor=30, cut=str(keep / 'step_00000048/rank00000.bin'))))
    one_line(r, 'step_00000048')


def test_what_never_gets_better_comes_to_an_end(run, base, tmp_path):
    bad = dict(poison=dict(at=list(range(54, 999)), factor='nan'))
    r = run(copied(base, tmp_path / 'out'), '--spike_rollback=true', '--max_bad_steps=2', hurt=bad)
    one_line(r, 'non-finite', '--lr=')

# ---------------------------------------------------------------- train.py: checkpoints written behind its back


BACK = ['--max_steps=12', '--save_every=4', '--save_background=true']


@pytest.fixture(scope='module')
def front(run, tmp_path_factory):
    out = tmp_path_factory.mktemp('front') / 'out'
    assert run(out, *BACK, '--save_background=false').code == 0 and steps(out) == [4, 8, 12]
    return out


def test_the_background_writes_the_same_bytes(run, front, tmp_path):
    """Also where training is two steps further when the writing begins."""
    r = run(tmp_path, *BACK, hurt=dict(late_write=dict(step=4)))
    assert r.code == 0 and not r.err and steps(tmp_path) == [4, 8, 12] and losses(tmp_path) == losses(front)
    for at in (4, 8, 12):
        a, b = (d / f'step_{at:08d}' for d in (tmp_path, front))
        assert [f.name for f in sorted(a.iterdir())] == [f.name for f in sorted(b.iterdir())]
        assert (a / 'rank00000.bin').read_bytes() == (b / 'rank00000.bin').read_bytes()
        assert_same(a, b)


@pytest.mark.parametrize('lost, calls', [(8, [5]), (12, [9])])
def test_a_checkpoint_lost_in_the_background_is_reported(run, front, tmp_path, lost, calls):
    """It is said once, the others are whole; status 1 only when it is the last."""
    r = run(tmp_path, *BACK, full=dict(calls=calls))
    said = [line for line in r.out.splitlines() if 'no checkpoint written' in line]
    assert len(said) == 1 and said[0].startswith(f'step {lost}: ') and 'No space left' in said[0] and not r.err
    assert steps(tmp_path) == [s for s in (4, 8, 12) if s != lost] and losses(tmp_path) == losses(front)
    assert r.code == (lost == 12)


def test_any_error_of_the_background_counts(run, tmp_path):
    r = run(tmp_path, *BACK, hurt=dict(late_write=dict(step=12, error='a bug in the thread')))
    assert r.code > 0 and 'a bug in the thread' in r.out + r.err and steps(tmp_path) == [4, 8]


def test_a_stop_waits_for_the_background(run, front, tmp_path):
    r = run(tmp_path, *BACK, signal=dict(where='row', step=5, sig=TERM))
    assert r.code == 143 and steps(tmp_path) == [4, 5]
    r = run(tmp_path, *BACK)
    assert r.code == 0 and steps(tmp_path) == [4, 5, 8, 12]
    assert_same(tmp_path / 'step_00000012', front / 'step_00000012')


def test_damage_that_one_rank_sees(run, front, tmp_path):
    """Each stage of a pipeline reads its own layers: where one cannot, all take the checkpoint before."""
    out = copied(front, tmp_path / 'out')
    e, = Checkpoint(out / 'step_00000012').parts['param/blocks.1.mlp.w1']
    data = bytearray((out / 'step_00000012/rank00000.bin').read_bytes())
    data[e['offset'] + 5] ^= 1
    (out / 'step_00000012/rank00000.bin').write_bytes(data)
    a, b = run(out, '--max_steps=12', '--save_every=4', '--pp=2', world=2)
    assert (a.code, b.code) == (0, 0) and not a.err + b.err, a.err + b.err
    assert 'trying the one before' in a.out and f'going on from {out}/step_00000008' in a.out
    contents(out / 'step_00000012')


@pytest.mark.parametrize('zero', [1, 3])
def test_a_file_that_one_rank_cannot_read(run, base, tmp_path, zero):
    """No rank gathers what another has not loaded: all take the checkpoint before, and end as if the newest were not there."""
    a, b = copied(base, tmp_path / 'a'), copied(base, tmp_path / 'b')
    shutil.rmtree(b / 'step_00000052')
    flags = [f'--zero={zero}', '--max_steps=60']
    for r in run(a, *flags, world=2, hurt=[{}, dict(unreadable=dict(file=str(a / 'step_00000052/rank00000.bin')))]):
        assert r.code == 0 and not r.err
    assert f'going on from {a}/step_00000048' in run(b, *flags, world=2)[0].out.replace(str(b), str(a))
    (_, x), (_, y) = (contents(out / 'step_00000060') for out in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[n].view(torch.uint8), y[n].view(torch.uint8)) for n in x)


def test_export_is_safetensors(machine, front, tmp_path):  # noqa: F811
    """Every weight and the experts' bias; a half-written or refused one leaves nothing under the name."""
    r = machine.run('optim_zero.py', 'export', front / 'step_00000012', tmp_path / 'out.safetensors')
    ck = Checkpoint(front / 'step_00000012')
    got, meta = safetensors(tmp_path / 'out.safetensors')
    want = {n.partition('/')[2]: ck.full(n) for n in ck.names if n.startswith(('param/', 'buffer/'))}
    assert r.code == 0 and list(got) == list(want) and all(torch.equal(got[n], want[n]) for n in want)
    assert json.loads(meta['model']) == ck.meta['model'] and meta['step'] == '12' and 'blocks.1.mlp.bias' in got
    shutil.copytree(front / 'step_00000012', tmp_path / 'bad')
    os.truncate(tmp_path / 'bad/rank00000.bin', 1000)
    one_line(machine.run('optim_zero.py', 'export', tmp_path / 'bad', tmp_path / 'b.safetensors'), 'rank00000.bin')
    one_line(machine.run('optim_zero.py', 'export', front / 'step_00000012', tmp_path / 'none/b.safetensors'), 'none')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bad', 'out.safetensors']

# ---------------------------------------------------------------- a restart under torchrun


def attempt(rank, port, n):
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE='True',
                      TORCHELASTIC_RESTART_COUNT=str(n))
    start_world('cpu', minutes=0.5)
    x = all_reduce(torch.ones(1), make_mesh(dp=2).dp)
    os._exit(7 if x == 2 else 1)                                               # as if it were killed: nothing is cleaned up


def test_a_restart_does_not_meet_the_keys_of_the_attempt_before():
    """The agent's store outlives the ranks; Gloo would find the addresses of those that are gone."""
    store = dist.TCPStore('127.0.0.1', 0, 3, is_master=True, wait_for_workers=False)
    for n in range(2):
        procs = [mp.get_context('fork').Process(target=attempt, args=(r, store.port, n), daemon=True) for r in range(2)]
        for p in procs:
            p.start()
        for p in procs:
            p.join(PATIENCE)
            assert p.exitcode == 7, n
