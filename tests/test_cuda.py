"""
What runs on a GPU alone, against the CPU in float64: attention by FlashAttention (documents, the ring), losses and gradients, products in 8
bits, CUDA graphs, the engine. Skipped where there is no GPU. The ring's ranks are threads here that share one GPU, and hand over in memory.
"""
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from queue import Queue

import pytest
import torch

import parallel
import toy
from data.graph import graphed, graphed_update
from data.loader import to_device
from model import build
from optim_zero import Optimizer
from parallel import Group, attention, attention_mask, flash_mask, forward_backward, linear, solo_mesh, zigzag
from sample import Engine
from test_model import DENSE, EXPERTS, TIED, gradients, muse
from test_parallel import attention_inputs, draw

if not torch.cuda.is_available():
    pytest.skip('no GPU', allow_module_level=True)
ROOT, GPU = Path(__file__).resolve().parents[1], torch.device('cuda')


@pytest.fixture(autouse=True)
def stream():
    """As start_world() has it."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
        torch.cuda.synchronize()


def off(got, want):
    """Relative error of tensors, or of lists of them taken together."""
    flat = lambda x: torch.cat([y.double().cpu().flatten() for y in x]) if isinstance(x, (list, tuple)) else x.double().cpu()
    return float((flat(got) - flat(want)).norm() / flat(want).norm())


def with_gradients(q, k, v, dy, mask, mesh):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    y = attention(q, k, v, mask, 0.3, mesh)
    return [x.detach() for x in (y, *torch.autograd.grad(y, (q, k, v), dy))]


@pytest.mark.parametrize('nh, nkv', [(4, 4), (8, 2), (4, 1)])
@pytest.mark.parametrize('docs', ['several', 'one'])
def test_flash_attention_keeps_documents_apart(nh, nkv, docs):
    *tensors, doc = attention_inputs(7, nh, nkv)
    doc = doc if docs == 'several' else doc * 0
    rounded = [x.bfloat16() for x in tensors]
    want = with_gradients(*(x.double() for x in rounded), attention_mask(doc, solo_mesh(), torch.float64), solo_mesh())
    got = with_gradients(*(x.to(GPU) for x in rounded), flash_mask(doc, solo_mesh(), GPU), solo_mesh())
    for a, b in zip(got, want):
        assert off(a, b) < 6e-3


def test_flash_attention_fills_odd_heads_up():
    q, k, v, dy = (draw(i, 2, 3, 32, 6).bfloat16() for i in range(4))
    doc = torch.tensor([[0] * 20 + [1] * 12, [0] * 30 + [-1] * 2])
    want = with_gradients(*(x.double() for x in (q, k, v, dy)), attention_mask(doc, solo_mesh(), torch.float64), solo_mesh())
    for a, b in zip(with_gradients(*(x.to(GPU) for x in (q, k, v, dy)), flash_mask(doc, solo_mesh(), GPU), solo_mesh()), want):
        assert off(a, b) < 6e-3


@pytest.mark.parametrize('cp', [2, 4])
@pytest.mark.parametrize('nh, nkv', [(4, 4), (8, 2)])
def test_ring_over_flash_attention(cp, nh, nkv, monkeypatch):
    *tensors, doc = attention_inputs(7, nh, nkv)
    rounded = [x.bfloat16() for x in tensors]
    want = with_gradients(*(x.double() for x in rounded), attention_mask(doc, solo_mesh(), torch.float64), solo_mesh())
    lines, out, main = [Queue() for _ in range(cp)], [None] * cp, torch.cuda.current_stream()

    def hop(x, g):
        y = x.clone()
        torch.cuda.current_stream().synchronize()                  # who takes it has a stream of its own
        lines[(g.rank + 1) % cp].put(y)
        buf = lines[g.rank].get(timeout=60)
        return buf, lambda: None
    monkeypatch.setattr(parallel, '_hop', hop)

    def rank(r):                                                   # backward by hand: autograd has one thread for a GPU, ranks need two
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(main)
            g, cols = Group('cp', cp, r, tuple(range(cp))), zigzag(32, cp, r)
            mesh = replace(solo_mesh(), cp=g)
            q, k, v, dy = (x[:, :, cols].to(GPU) for x in rounded)
            masks = flash_mask(doc, mesh, GPU)

            class ctx:
                def save_for_backward(*xs):
                    ctx.saved_tensors = xs
            y = parallel._Ring.forward(ctx, q, k, v, masks, 0.3, g)
            out[r] = [y, *parallel._Ring.backward(ctx, dy)[:3]]
            torch.cuda.current_stream().synchronize()
    threads = [threading.Thread(target=rank, args=(r,)) for r in range(cp)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r, got in enumerate(out):
        assert got, f'rank {r} failed'
        for a, b in zip(got, want):
            assert off(a, b[:, :, zigzag(32, cp, r)]) < 8e-3


def batches(dtype, experts=True):
    host = toy.micros([toy.shards(toy.documents())], 0, experts=experts)
    single = [{k: v.float() if v.is_floating_point() else v for k, v in b.items()} for b in host]
    return host, [to_device(b, GPU, dtype, toy.codec, solo_mesh(), EXPERTS) for b in single]


@pytest.mark.parametrize('cfg', [DENSE, EXPERTS, TIED], ids=['dense', 'experts', 'tied'])
@pytest.mark.parametrize('dtype, most', [(torch.float64, 1e-7), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
def test_losses_and_gradients_equal_the_cpu(cfg, dtype, most):
    host, device = batches(dtype)
    (want, g0), (got, g1) = gradients(muse(cfg), host), gradients(muse(cfg).to(GPU, dtype), device)
    for k, v in want.items():
        assert abs(got[k] - v) < most * abs(v), k
    assert off([g1[n] for n in g0], list(g0.values())) < most


@pytest.mark.parametrize('fp8', ['tensorwise', 'rowwise'])
def test_products_in_8_bits_equal_the_cpu(fp8):
    mesh, got = replace(solo_mesh(), fp8=fp8), []
    x, w, dy = draw(0, 64, 48), draw(1, 32, 48), draw(2, 64, 32)
    for device in ('cpu', 'cuda'):
        a, b = (t.bfloat16().to(device).requires_grad_() for t in (x, w))
        b.spec = parallel.Spec(tuple(b.shape))
        y = linear(a, b, mesh)
        got.append([y.detach(), *torch.autograd.grad(y, (a, b), dy.bfloat16().to(device))])
    for a, b in zip(*got):
        assert off(a, b) < 8e-3


def trained(cfg, graph, steps=6, dtype=torch.float32):
    models = [m.to(GPU) for m in build(cfg, solo_mesh(), 3)]
    opt = Optimizer(models, solo_mesh(), dtype, muon=True, muon_lr=5)
    run = graphed(models[0]) if graph else None
    if graph:
        opt.update = graphed_update(opt)
    losses, data = [], [toy.shards(toy.documents())]
    for s in range(steps):
        rows = toy.micros(data, s, experts=True, T=256)                # long enough that arrays grow and shrink
        host = [{k: v.float() if v.is_floating_point() else v for k, v in b.items()} for b in rows]
        device = [to_device(b, GPU, dtype, toy.codec, solo_mesh(), EXPERTS) for b in host]
        opt.start(len(device))
        o = [run(b) for b in device] if graph else forward_backward(models, device, solo_mesh())
        losses += [float(x['loss']) for x in o] + [opt.step(3e-3 / (s + 1))]
    loads = [m.load.clone() for m in models[0].modules() if hasattr(m, 'load')]
    return losses, [u.master.clone() for u in opt.units], loads


@pytest.mark.parametrize('cfg, dtype, most', [(DENSE, torch.float32, 1e-4), (EXPERTS, torch.bfloat16, .1), (DENSE, torch.bfloat16, .1)])
def test_a_graph_trains_as_without(cfg, dtype, most):
    (a, x, m), (b, y, n) = trained(cfg, False, dtype=dtype), trained(cfg, True, dtype=dtype)
    assert max(abs(p - q) for p, q in zip(b, a)) < most * max(a)
    assert off(y, x) < most
    if m:                                                              # every replay counts the tokens of the experts
        assert [t.sum() for t in m] == [t.sum() for t in n]


def test_the_engine_says_the_same():
    model = muse(replace(DENSE, ngram=0), dtype=torch.float32)
    said = []
    for device in ('cpu', 'cuda'):
        engine = Engine(model.to(device), toy.codec)
        rows = [engine.add(toy.codec.encode(d[:2]), max_new=24, temperature=t, index=i, seed=5)
                for i, d in enumerate(toy.documents(6)) for t in (0, 1)]
        engine.run()
        said.append([(r.ids, [round(p, 2) for p in r.logp]) for r in rows])
    assert [ids for ids, _ in said[0]] == [ids for ids, _ in said[1]]


@pytest.mark.parametrize('flags', ['--graph=true', '--compile=true', '--n_expert=4 --graph=true --fp8=rowwise',
                                   '--n_expert=4 --recompute=0.5', '--ngram=3 --ngram_rows=97 --smear=1 --value_embed=1 --dtype=float32'])
def test_train_py(flags, tmp_path):
    cmd = [sys.executable, 'train.py', '--n_layer=2', '--n_embd=64', '--n_head=2', '--flow_width=32', '--block_size=128', '--log_every=1',
           '--tokens_per_step=1024', '--micro_rows=4', '--skills=4', '--eval_docs=20', '--max_steps=8', f'--out_dir={tmp_path}',
           *flags.split()]
    out = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    out = subprocess.run([*cmd, '--max_steps=12'], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0 and 'going on from' in out.stdout and 'step 00012' in out.stdout, out.stdout + out.stderr[-2000:]
