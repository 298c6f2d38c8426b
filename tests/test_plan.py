"""The planner against the model, the optimizer's units, the schedules and closed formulas; no process is started."""
import re, weakref
from dataclasses import replace
from itertools import product
from pathlib import Path
import pytest
import torch
from data import plan
from data.cluster import simulate_cluster
from data.layouts import label, own_layout, plan_command, read_config, search
from data.plan import H100, bubble_theory, chunks, cost, count_flops, count_params, memory, ring, times, weights
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import Group, Mesh, linear, param, schedule, simulate, solo_mesh

ROOT = Path(__file__).resolve().parents[1]
KINDS = {'dense': {}, 'swiglu': dict(act='swiglu', n_kv_head=2), 'tied': dict(tie=True), 'text': dict(image=False, audio=False),
         'moe': dict(n_expert=8, expert_ff=32, shared_ff=64), 'moe swiglu': dict(n_expert=8, act='swiglu', expert_ff=32, dense_layers=2)}


def config(kind='text', **kw):
    return ModelConfig(**{**dict(vocab_size=512, n_layer=8, n_head=8, n_embd=64, ff=128, flow_width=32, flow_depth=1, token_shift=True),
                          **KINDS[kind], **kw})


def layout(**kw):
    l = {**dict(dp=1, tp=1, pp=1, cp=1, ep=1, zero=0, recompute=0, rows=2, m=4, schedule='', v=1, fp8=False), **kw}
    return {**l, 'schedule': l['schedule'] or '1f1b' * (l['pp'] > 1)}


def mesh(l, stage_rank=0):
    """A mesh of these sizes, seen from the first rank of a stage, without processes."""
    d = l['dp'] * l['cp']
    group = lambda name, n: Group(name, n, 0, tuple(range(n)))
    stage = d * l['tp']
    sizes = dict({k: l[k] for k in ('pp', 'dp', 'cp', 'tp', 'ep')}, edp=stage // l['ep'], dpcp=d, world=stage * l['pp'], stage=stage)
    groups = {**{k: group(k, n) for k, n in sizes.items()}, 'pp': Group('pp', l['pp'], stage_rank, tuple(range(l['pp'])))}
    return Mesh(**groups, sp=l['tp'] > 1, ends=group('ends', 2 if l['pp'] > 1 else 1))


def whole(cfg, l):
    """{part: parameters of one of it on one rank}, and how many of each a stage has."""
    return [[(part, weights(cfg, l, part)) for chunk in chunks(cfg, l, r) for part in chunk] for r in range(l['pp'])]


@pytest.mark.parametrize('kind', KINDS)
def test_parameters_are_those_of_the_model(kind):
    cfg = config(kind)
    one, = build(cfg, solo_mesh(), 1)
    assert sum(sum(w) for _, w in whole(cfg, layout())[0]) == count_params(cfg)['total'] == sum(p.numel() for p in one.parameters())
    for l in (layout(tp=2), layout(tp=4), layout(pp=2), layout(pp=4), layout(pp=2, v=2, schedule='interleaved'),
              layout(dp=2, ep=2 if cfg.n_expert else 1)):
        for r in {0, l['pp'] - 1}:
            models = build(cfg, mesh(l, r), 1, l['v'])
            assert sum(p.numel() for x in models for p in x.parameters()) == sum(sum(w) for _, w in whole(cfg, l)[r]), (l, r)
            assert [len(x.blocks) for x in models] == [sum(part in plan.BLOCKS for part in chunk) for chunk in chunks(cfg, l, r)]


@pytest.mark.parametrize('kind', KINDS)
def test_stages_hold_every_part_once(kind):
    cfg = config(kind)
    for pp, v in ((1, 1), (2, 1), (3, 1), (8, 1), (2, 2), (2, 4), (4, 2)):
        l = layout(pp=pp, v=v)
        flat = [part for s in range(pp * v) for part in chunks(cfg, l, s % pp)[s // pp]]
        moe = cfg.n_layer - cfg.dense_layers if cfg.n_expert else 0
        assert flat == ['embed'] + ['dense'] * (cfg.n_layer - moe) + ['moe'] * moe + ['heads']


def test_state_has_the_bytes_per_parameter_of_the_table():
    """18, 6 + 12/d, 2 + 16/d, 18/d in bfloat16 (optim_zero.py); 16, 8 + 8/d, 4 + 12/d, 16/d in float32; of experts over edp."""
    cfg = config()
    n = count_params(cfg)['total']
    state = lambda x: sum(x[k] for k in ('parameters', 'gradients', 'masters', 'moments'))
    for d, (z, bf, wide) in product((2, 4, 8), ((0, lambda d: 18, lambda d: 16), (1, lambda d: 6 + 12 / d, lambda d: 8 + 8 / d),
                                                (2, lambda d: 2 + 16 / d, lambda d: 4 + 12 / d), (3, lambda d: 18 / d, lambda d: 16 / d))):
        for sizes in (dict(dp=d), dict(dp=d // 2, cp=2)):
            assert state(memory(cfg, layout(zero=z, **sizes), 64)) == pytest.approx(n * bf(d))
            assert state(memory(cfg, layout(zero=z, **sizes), 64, width=4)) == pytest.approx(n * wide(d))
    cfg = config('moe')
    experts = count_params(cfg)['experts']
    dense = count_params(cfg)['total'] - experts
    assert state(memory(cfg, layout(dp=4, ep=2, zero=1), 64)) == pytest.approx(dense * (6 + 12 / 4) + experts / 2 * (6 + 12 / 2))


def test_state_is_that_of_the_optimizer():
    for dtype, width in ((torch.bfloat16, 2), (torch.float32, 4)):
        cfg = config('moe')
        opt = Optimizer(build(cfg, solo_mesh(), 1), solo_mesh(), dtype)
        paper = memory(cfg, layout(), 64, 0, width)
        real = opt.nbytes()                                        # padding aside
        for kinds in (['gradients'], ['moments'], ['parameters', 'masters']):      # the latter are one and the same in float32
            assert sum(paper[k] for k in kinds) == pytest.approx(sum(real[k] for k in kinds), rel=0.02)


def test_alive_is_what_the_simulator_finds():
    for name, pp, m, v in (('gpipe', 4, 8, 1), ('1f1b', 4, 8, 1), ('1f1b', 4, 2, 1), ('interleaved', 4, 8, 2), ('interleaved', 2, 4, 3),
                           ('zbh1', 4, 8, 1)):
        peak = simulate(schedule(name, pp, m, v), m, v, messages=False)['peak']
        l = layout(pp=pp, m=m, v=v, schedule=name)
        late = [min(r, m) if name == 'zbh1' else 0 for r in range(pp)]             # W's, counted apart by memory()
        assert [plan.alive(l, r) + late[r] for r in range(pp)] == peak, name


def test_operations_are_those_of_the_model():
    """Matrix products and attention of all ranks, times efficiency and peak: count_flops, forward and twice for the backward pass."""
    for kind, l in product(('text', 'moe'), (layout(), layout(tp=2), layout(dp=2, cp=2), layout(pp=2), layout(tp=4, pp=2, dp=2))):
        cfg, T = config(kind, image=False, audio=False), 256
        parts = Counter_of(chunks(cfg, l, r) for r in range(l['pp']))
        total = 0
        for part, number in parts.items():
            f, b, _ = times(cfg, l, H100, T, part)
            total += number * sum(x.get('products', 0) * plan.EFFICIENCY for x in (f, b))
            total += number * (f.get('attention', 0) + b.get('attention', 0) / 1.25) * plan.ATTENTION      # backward: 2.5
        n = l['rows'] * T
        want = 3 * count_flops(cfg, n, n, 0, 0, n * T / 2)                         # causal: half of the scores
        router = 6 * n * cfg.n_expert * cfg.n_embd * parts.get('moe', 0)          # the router is counted there, not here
        assert total * H100['flops'] * l['tp'] * l['cp'] == pytest.approx(want - router, rel=1e-6), (kind, l)


def Counter_of(rows):
    out = {}
    for chunk in (c for row in rows for c in row):
        for part in chunk:
            out[part] = out.get(part, 0) + 1
    return out


def test_bytes_are_the_least_volumes():
    """DESIGN.md 3, per rank and step: d ranks of dp * cp, t of tp, P parameters here, M microbatches, b * s positions."""
    cfg, T = config(n_kv_head=4), 256
    P, C, H, L, V = count_params(cfg)['total'], cfg.n_embd, cfg.n_kv_head * cfg.hd, cfg.n_layer, cfg.vocab_size
    for d, M in ((2, 1), (4, 2), (8, 3)):
        s = [cost(cfg, layout(dp=d, m=M, zero=z), H100, T)['sent']['dp'] for z in range(4)]
        part = (d - 1) / d * P
        assert s[:3] == pytest.approx([2 * part * 4, part * 4 + part * 2, M * part * 4 + part * 2])
        ends = (d - 1) / d * (2 * V * C + C)                       # embedding and softmax are not read again
        assert s[3] == pytest.approx(M * part * 4 + M * (2 * part - ends) * 2)
    l = layout(tp=4, m=3)
    n = l['rows'] * T
    blocks = L * 8 * 3 / 4 * n * C * 2
    ends = 2 * 3 / 4 * n * C * 2 + 3 / 4 * n * C * 2 + 2 * 3 / 4 * n * (C + 3) * 2
    assert cost(cfg, l, H100, T)['sent']['tp'] == pytest.approx(3 * (blocks + ends))
    assert cost(cfg, layout(cp=4, m=3), H100, T)['sent']['cp'] == pytest.approx(3 * L * 6 * 3 / 4 * n * H * 2)
    assert cost(cfg, layout(pp=2, m=3), H100, T)['sent']['pp'] == pytest.approx(3 * n * C * 2)
    assert cost(cfg, layout(pp=4, m=3), H100, T)['sent']['pp'] == pytest.approx(2 * 3 * n * C * 2)
    assert cost(cfg, layout(pp=2, m=4, v=2, schedule='interleaved'), H100, T)['sent']['pp'] == pytest.approx(3 * 4 * n * C * 2)
    moe = config('moe')
    assert cost(moe, layout(dp=4, ep=4, m=3), H100, T)['sent']['ep'] == pytest.approx(3 * 7 * 4 * 3 / 4 * n * moe.top_k * C * 2)


def test_bubble_is_that_of_the_schedules():
    cfg = config(n_layer=16, vocab_size=16)                        # stages nearly even
    for name, v in (('1f1b', 1), ('gpipe', 1), ('interleaved', 2), ('zbh1', 1)):
        l, c = layout(pp=4, m=8, v=v, schedule=name), dict(H100, near=0, far=0, net=1e30, link=1e30)
        r = cost(cfg, l, c, 4096)
        t = (r['seconds'] - r['by']['optimizer'] - r['by']['zero'] - r['by']['bubble']) / 8
        f, b, _ = times(cfg, l, c, 4096, 'dense')
        F, W = 4 * sum(f.values()), 4 * f['products'] * (name == 'zbh1')
        assert r['by']['bubble'] == pytest.approx(bubble_theory(name, 4, 8, v, F, t - F - W, W), rel=0.05)


def test_more_of_a_thing_costs_and_gives_as_it_must():
    cfg, T = ModelConfig(vocab_size=32000, n_layer=16, n_head=16, n_embd=2048, act='swiglu', image=False, audio=False), 4096
    total = lambda **kw: sum(memory(cfg, layout(**kw), T).values())
    seconds = lambda c=H100, **kw: cost(cfg, layout(**kw), c, T)['seconds']
    assert total(dp=8, zero=0) > total(dp=8, zero=1) > total(dp=8, zero=2) > total(dp=8, zero=3) > total(dp=16, zero=3)
    assert total(rows=1) < total(rows=2) < total(rows=4) and total(recompute=1) < total()
    assert total(tp=1) > total(tp=2) > total(tp=4) and total(pp=1) > total(pp=2, m=1) > total(pp=4, m=1) and total(cp=2, dp=2) < total(dp=2)
    assert total(pp=4, m=2) <= total(pp=4, m=4) == total(pp=4, m=8) < total(pp=4, m=8, schedule='gpipe')
    assert seconds(m=8) > 1.9 * seconds(m=4) and seconds(recompute=1) > seconds()
    some = (dict(dp=32), dict(dp=32, zero=3), dict(tp=8, dp=4), dict(pp=4, dp=8), dict(cp=16, dp=2), dict(tp=16, dp=2, zero=2))
    for l, (key, factor) in product(some, (('flops', 2), ('hbm', 2), ('link', 2), ('net', 2), ('near', .5), ('far', .5))):
        assert seconds(dict(H100, **{key: factor * H100[key]}), **l) <= seconds(**l) * (1 + 1e-9), (key, l)       # better is never slower
    slow = dict(H100, link=2e9, net=1e9)                           # what each microbatch reduces and gathers costs more than once a step
    assert seconds(slow, dp=32, zero=1) < seconds(slow, dp=32, zero=2) < seconds(slow, dp=32, zero=3)
    assert seconds(dict(H100, flops=2 * H100['flops'])) < seconds() and seconds(dict(H100, link=1e9), tp=8) > seconds(tp=8)
    ideal = [cost(cfg, layout(dp=d, zero=1, m=8), dict(H100, link=1e30, net=1e30, near=0, far=0), T)['tokens'] for d in (1, 8, 64)]
    assert ideal == pytest.approx([ideal[0]] * 3, rel=0.02)       # links that cost nothing: a GPU is as fast among many as alone
    assert all(0 < cost(cfg, layout(**l), H100, T)['mfu'] < plan.EFFICIENCY for l in (dict(), dict(tp=8), dict(pp=4), dict(dp=512, zero=3)))


def test_rings():
    c = dict(H100, near=0, far=0)
    assert ring(c, 1, 1, 1e9) == 0 and ring(c, 8, 1, 0) == 0
    assert ring(c, 8, 1, c['link']) == 1                           # inside a node
    assert ring(c, 16, 8, c['net']) == ring(c, 2, 8, c['net']) == 1            # one member per node: its own adapter
    assert ring(c, 32, 2, min(c['link'], 4 * c['net'])) == 1       # four members per node: four adapters
    slow = dict(H100, link=1e30, near=1)
    assert ring(slow, 8, 1, 1) == pytest.approx(7) and ring(slow, 8, 1, 1, 14) == pytest.approx(14)


def test_a_simulated_cluster_takes_as_long_as_the_formula():
    cfg, T = ModelConfig(vocab_size=32000, n_layer=16, n_head=16, n_embd=2048, act='swiglu', image=False, audio=False), 4096
    moe = replace(cfg, n_expert=8, top_k=2, expert_ff=1024, shared_ff=1024)
    for kw in (dict(), dict(dp=4, zero=1), dict(dp=4, zero=2), dict(dp=4, zero=3), dict(tp=4, dp=2), dict(pp=4, m=8),
               dict(pp=4, m=8, schedule='gpipe'), dict(pp=2, dp=2, m=8, v=2, schedule='interleaved', zero=1),
               dict(pp=4, m=8, schedule='zbh1'), dict(cp=2, dp=2, tp=2, pp=2), dict(dp=8, ep=4), dict(dp=4, tp=2, ep=8, zero=1)):
        c, l = moe if 'ep' in kw else cfg, layout(**kw)
        r, ran = cost(c, l, H100, T), simulate_cluster(c, l, H100, T)
        assert ran['seconds'] == pytest.approx(r['seconds'], rel=0.08 if l['schedule'] == 'zbh1' else 0.05), l      # late W, uneven stages
        assert 0 < ran['computing'] <= 1
    slow = [simulate_cluster(cfg, layout(dp=4, tp=2, pp=2), H100, T, spread=x)['seconds'] for x in (0, 0.02, 0.1)]
    assert slow[0] < slow[1] < slow[2]
    assert simulate_cluster(cfg, layout(dp=8), H100, T, spread=0.1) == simulate_cluster(cfg, layout(dp=8), H100, T, spread=0.1)


def test_the_search_lists_what_fits_and_says_why_the_rest_does_not():
    cfg, T = config(n_head=6, n_embd=96, n_layer=6), 4096
    best, fell, number = search(cfg, H100, T, 16, 8)
    assert [r['seconds'] for r in best] == sorted(r['seconds'] for r in best) and len(best) > 3
    assert all(sum(r['memory'].values()) <= plan.ROOM * H100['memory'] for r in best)
    assert all(r['layout']['dp'] * r['layout']['tp'] * r['layout']['pp'] * r['layout']['cp'] == 8 for r in best)
    said = ' '.join(why for _, why in fell.values())
    assert 'use tp of 1, 2, 3, 6' in said                          # sizes that work
    small = dict(H100, memory=sum(best[0]['memory'].values()) / 4)
    fits, fell, _ = search(cfg, small, T, 16, 8)
    assert re.search(r'more than [\d.]+ GB, 90% of a GPU: the smallest of them needs [\d.]+ GB', fell['memory'][1])
    assert all(sum(r['memory'].values()) <= plan.ROOM * small['memory'] for r in fits)
    only, _, _ = search(cfg, H100, T, 16, 8, dict(tp=2, zero=1))
    assert only and all(r['layout']['tp'] == 2 and r['layout']['zero'] == 1 for r in only)


def test_command(capsys, tmp_path):
    args = ['--gpus=4', '--top=3', '--n_layer=6', '--tokens_per_step=15360', f'--png={tmp_path}/x.png', '--simulate=true', '--spread=0.01']
    best = plan_command(args)
    out = capsys.readouterr().out
    assert '4 x h100: 989 TFLOP/s' in out and label(best[0]['layout']) in out and 'layouts looked at' in out and 'difference' in out
    from PIL import Image
    assert Image.open(tmp_path / 'x.png').size[0] == 1500
    slower = plan_command(['--gpus=4', '--flops=1e12', '--tp=2', '--n_layer=6', '--tokens_per_step=15360'])
    assert slower[0]['layout']['tp'] == 2 and slower[0]['seconds'] > best[0]['seconds']


@pytest.mark.parametrize('args, says', [
    (['--gpu=h300'], 'use a gpu of h100, h200, b200'), (['--gpus=0'], 'gpus of 1 and more'), (['--gpus=few'], 'gpus is like 8'),
    (['--memory=-1'], 'above 0'), (['--gpus=2', '--memory=1e6'], 'the smallest of them needs'),
    (['--gpus=2', '--tp=3'], 'let the product be 2'), (['--act=gelu'], 'use relu2 or swiglu'),
    (['--tpp=2'], 'nearest known key'), (['--model=config/none.py'], 'not found')])
def test_what_cannot_be_planned_is_one_line(args, says, capsys):
    with pytest.raises(SystemExit) as e:
        plan_command(args)
    text = str(e.value.code) if isinstance(e.value.code, str) else capsys.readouterr().err
    assert says in text and '\n' not in text.strip()


@pytest.mark.parametrize('name, gpus', [('dense_1b', 1), ('dense_7b', 8), ('moe_30b', 512), ('dense_405b', 512)])
def test_the_configs_are_planned_as_their_headers_say(name, gpus):
    """Their keys are train.py's, their layout passes, fits and has the numbers of the header."""
    path = ROOT / 'config' / f'{name}.py'
    space, cfg, T, rows = read_config([str(path)])
    r = cost(cfg, own_layout(space, cfg, gpus), H100, T)
    full = sum(r['memory'].values())
    assert full <= plan.ROOM * H100['memory']
    header = path.read_text().split('"""')[1]
    for x in (f'{full / 1e9:.0f} GB', f'{r["seconds"]:.1f} s', f'{r["tokens"]:,.0f} tokens', f'MFU {r["mfu"]:.1%}',
              f'{count_params(cfg)["total"] / 1e9:.1f} B'):
        assert x in ' '.join(header.split()), (x, header)


def test_zero_bubble_frees_what_its_queue_held():
    """memory() counts on it: the list of a microbatch's weight gradients must not keep the graph that keeps the list."""
    m, x = solo_mesh(), torch.randn(4, 8, requires_grad=True) * 2
    w = param(m, 8, 8)
    w.data.normal_()
    m.queue_dw = queue = []
    h = linear(x, w, m)
    linear(h, w, m).sum().backward()
    m.queue_dw, seen = None, weakref.ref(h)
    assert len(queue) == 2 and torch.equal(queue[0][2], h) and torch.equal(queue[1][2], x)
    del h, queue
    assert seen() is None
