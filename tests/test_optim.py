"""
optim_zero.py: the updates against torch.optim and a plain float64 Muon, what is decayed, what stays in float32, and whether
a checkpoint notices every kind of damage.
"""
import json
import math
import runpy
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from types import SimpleNamespace
import torch.nn as nn
import toy

import data.checkpoint as checkpoint
from model import ModelConfig, Muse
from data.checkpoint import Checkpoint, checkpoints, prune, save_checkpoint
from optim_zero import QUINTICS, Optimizer, orthogonalise
from parallel import param, solo_mesh

ROOT = Path(__file__).resolve().parents[1]
MESH = solo_mesh()

class Toy(nn.Module):
    """One parameter of every kind, in an order that mixes them; parts: a fused matrix; stack: separate experts."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.a = param(MESH, 6, 4)
        self.gain = param(MESH, 4, kind='scalar')
        self.square = param(MESH, 5, 5)
        self.wte = param(MESH, 7, 4, kind='embed')
        self.one_row = param(MESH, 1, 4)
        self.fused = param(MESH, 12, 4, parts=(8, 4))
        self.head = param(MESH, 7, 4, kind='head')
        self.stack = param(MESH, 3, 4, 6, expert=True)
        self.wide = param(MESH, 3, 8, kind='router')
        for i, (name, p) in enumerate(self.named_parameters()):
            p.spec.name = name
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(dtype)

def gradients(step, scale=1.0):
    """{name: float64 gradient}, the same for everyone who asks."""
    g = torch.Generator().manual_seed(1000 + step)
    return {n: torch.randn(p.shape, generator=g, dtype=torch.float64) * scale for n, p in Toy().named_parameters()}

def push(opt, model, grads, micros=1):
    """Gradients into the optimizer by the way of backward: a loss whose gradient they are."""
    opt.start(micros)
    for _ in range(micros):
        sum((p * grads[n].to(p.dtype)).sum() for n, p in model.named_parameters()).backward()

def masters(opt):
    return {p.spec.name: u.master[s].view_as(p) for u in opt.units for p, s in zip(u.params, u.slices)}

LRS = dict(embed=3.0, head=0.5, scalar=2.0, router=0.25)

# ---------------------------------------------------------------- AdamW

@pytest.mark.parametrize('clip', [0.0, 3.0])
def test_adamw_equals_torch_in_float64(clip):
    """20 steps, a learning rate per kind and step, decay on matrices only, gradients on both sides of the clipping norm."""
    model, ref = Toy(), {n: nn.Parameter(p.detach().clone()) for n, p in Toy().named_parameters()}
    opt = Optimizer([model], MESH, torch.float64, (0.9, 0.95), 1e-8, 0.1, LRS, clip=clip)
    kinds = {n: p.spec.kind for n, p in model.named_parameters()}
    theirs = torch.optim.AdamW([dict(params=[ref[n]], weight_decay=0.1 if k == 'matrix' else 0.0, factor=LRS.get(k, 1.0))
                                for n, k in kinds.items()], lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    clipped = 0
    for step in range(20):
        lr, grads = 0.02 * (1 + step % 5), gradients(step, 0.05 * 1.3 ** step)
        push(opt, model, grads)
        norm = opt.step(lr)
        for n, p in ref.items():
            p.grad = grads[n].clone()
        want = torch.cat([g.flatten() for g in grads.values()]).norm()
        if clip and want > clip:
            clipped += 1
            for p in ref.values():
                p.grad *= clip / want
        for group in theirs.param_groups:
            group['lr'] = lr * group['factor']
        theirs.step()
        assert norm == pytest.approx(float(want), rel=1e-12)
    assert not clip or 5 < clipped < 15
    for n, p in masters(opt).items():
        assert (p - ref[n]).abs().max() < 1e-11 * ref[n].abs().max(), n
        assert model.get_parameter(n).data_ptr() == p.data_ptr()

def test_clipping_to_float32_precision():
    """As above, of the clipped case what float32 masters can see: relative 1e-6; and the norm is that before clipping."""
    model, ref = Toy(), {n: nn.Parameter(p.detach().clone()) for n, p in Toy().named_parameters()}
    opt = Optimizer([model], MESH, torch.float64, weight_decay=0.0, clip=3.0)
    theirs = torch.optim.AdamW(ref.values(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(20):
        grads = gradients(step, 0.05 * 1.3 ** step)
        push(opt, model, grads)
        norm = opt.step(0.1)
        for n, p in ref.items():
            p.grad = grads[n].clone()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(ref.values(), 3.0)), rel=1e-12)
        theirs.step()
    for n, p in masters(opt).items():
        assert (p - ref[n]).abs().max() < 1e-6 * ref[n].abs().max(), n

@pytest.mark.parametrize('muon', [False, True])
def test_weight_decay_only_where_the_kind_says(muon):
    """Without gradients only decay moves a weight: matrices, stacked and fused ones too, by (1 - lr wd); one row or 2-D do not matter."""
    model, before = Toy(), {n: p.detach().clone() for n, p in Toy().named_parameters()}
    opt = Optimizer([model], MESH, torch.float64, weight_decay=0.1, lr_scale=LRS, muon=muon, muon_lr=2.0)
    opt.start(1)
    opt.step(0.01)
    for n, p in masters(opt).items():
        lr = 0.01 * (2.0 if muon else 1.0)
        torch.testing.assert_close(p, before[n] * (1 - lr * 0.1 if n in ('a', 'square', 'one_row', 'fused', 'stack') else 1), rtol=1e-12,
                                   atol=0)

def test_kinds_of_the_model():
    """What the model calls a matrix: nothing that is one-dimensional, no embedding, no output projection of ids or payloads."""
    model = Muse(ModelConfig(n_layer=2, n_embd=32, n_head=2, flow_width=32, n_expert=4))
    kinds = {n: p.spec.kind for n, p in model.named_parameters()}
    assert all(kinds[n] == 'scalar' for n, p in model.named_parameters() if p.dim() == 1)
    assert kinds['wte'] == 'embed' and kinds['head'] == kinds['image_out.x_out'] == kinds['audio_out.x_out'] == 'head'
    assert all(k == 'matrix' for n, k in kinds.items() if n.startswith('blocks.0') and 'gain' not in n and 'norm' not in n)
    assert {n for n, k in kinds.items() if k == 'router'} == {'blocks.1.mlp.router'}
    assert kinds['blocks.1.mlp.w1'] == kinds['blocks.1.mlp.w2'] == kinds['blocks.1.mlp.shared.up'] == 'matrix'

# ---------------------------------------------------------------- Muon

@pytest.mark.parametrize('shape', [(1, 32, 32), (3, 64, 16), (2, 16, 64), (1, 192, 768), (1, 8, 8), (1, 1, 40)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('steps, least, low, high', [(3, 0.01, 0.71, 1.27), (4, 0.003, 0.77, 1.2), (5, 0.001, 0.85, 1.12)])
def test_orthogonalise_flattens_the_spectrum(shape, steps, least, low, high, dtype):
    """Singular values from `least` of the Frobenius norm on come out in [low, high], with the singular vectors that went in."""
    g = torch.Generator().manual_seed(sum(shape))
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=g, dtype=torch.float64), full_matrices=False)
    s = torch.linspace(1, min(1, least * u.shape[-1] ** 0.5), u.shape[-1], dtype=torch.float64) * 1e-3
    o = orthogonalise((u * s @ v).to(dtype), steps, dtype).double()
    out = torch.linalg.svdvals(o)
    wide = 0 if dtype == torch.float64 else 0.03 if dtype == torch.bfloat16 else 1e-3
    assert o.shape == shape and low - wide < out.min() and out.max() < high + wide, (out.min(), out.max())
    inner = u.mT @ o @ v.mT                                              # diagonal: the same vectors
    off = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < (1e-6 if dtype == torch.float64 else 0.1)

@pytest.mark.parametrize('steps, rank', [(3, 1), (4, 2), (5, 1), (5, 9)])
def test_orthogonalise_does_not_explode(steps, rank):
    """In bfloat16 a matrix of low rank has singular values that rounding puts past 1, where a quintic for [0, 1] alone explodes."""
    g = torch.Generator().manual_seed(rank)
    low = [torch.randn(1, m, rank, generator=g) @ torch.randn(1, rank, n, generator=g)
           for m, n in torch.randint(9, 200, (40, 2), generator=g).tolist()]
    assert max(torch.linalg.matrix_norm(orthogonalise(x, steps).float(), 2) for x in low) < 1.3

def test_orthogonalise_takes_the_norm_of_a_large_matrix():
    """In bfloat16 torch's own of a constant one comes out too small by per cents, and the quintics explode."""
    y = orthogonalise(torch.full((1, 64, 1 << 20), 0.3, dtype=torch.bfloat16), 3)
    assert 0.7 < y.float().norm(dim=-1).norm() < 1.3

def test_orthogonalise_takes_zeros_and_any_scale():
    assert not orthogonalise(torch.zeros(2, 8, 4)).any()
    x = torch.randn(1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(x), orthogonalise(x * 1e6), rtol=1e-4, atol=1e-5)

def plain_newton_schulz(x, steps=5):
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    x = x / (x.square().sum().sqrt() + 1e-7)
    for a, b, c in QUINTICS[steps]:
        s = x @ x.T
        x = a * x + b * (s @ x) + c * (s @ s @ x)
    return x.T if tall else x

@pytest.mark.parametrize('steps', [3, 5])
def test_muon_equals_a_plain_implementation(steps):
    """
    12 steps: momentum m = .9 m + .1 g, Nesterov .9 m + .1 g, each separate matrix orthogonalised alone, times sqrt(max(1, rows / cols)) of
    its own shape, decoupled decay; the rest by AdamW.
    """
    model, w = Toy(), {n: p.detach().clone() for n, p in Toy().named_parameters()}
    opt = Optimizer([model], MESH, torch.float64, weight_decay=0.1, lr_scale=LRS, muon=True, muon_lr=3.0, muon_steps=steps,
                    momentum=0.9, clip=0.0)
    alone = Optimizer([other := Toy()], MESH, torch.float64, weight_decay=0.1, lr_scale=LRS, clip=0.0)
    m = {n: torch.zeros_like(x) for n, x in w.items()}
    matrices = dict(a=[...], square=[...], one_row=[...], fused=[slice(0, 8), slice(8, 12)], stack=[0, 1, 2])
    for step in range(12):
        lr, grads = 0.01 * (1 + step % 3), gradients(step)
        for o, net in ((opt, model), (alone, other)):
            push(o, net, grads)
            o.step(lr)
        for n, parts in matrices.items():
            m[n] = 0.9 * m[n] + 0.1 * grads[n]
            g = 0.9 * m[n] + 0.1 * grads[n]
            w[n] *= 1 - lr * 3.0 * 0.1
            for part in parts:
                rows, cols = g[part].shape
                w[n][part] -= lr * 3.0 * max(1, rows / cols) ** 0.5 * plain_newton_schulz(g[part], steps)
    for n, p in masters(opt).items():
        torch.testing.assert_close(p, w[n] if n in matrices else masters(alone)[n], rtol=1e-9, atol=1e-9, msg=n)

def test_parts_of_different_shapes_keep_their_places():
    """A fused matrix of 8 and 4 rows after a matrix whose shape is that of its second part."""
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fused = param(MESH, 4, 4), param(MESH, 12, 4, parts=(8, 4))
            for name, p in self.named_parameters():
                p.spec.name, p.data = name, torch.zeros(p.shape, dtype=torch.float64)
    opt = Optimizer([model := Pair()], MESH, torch.float64, weight_decay=0.0, muon=True, clip=0.0)
    g = torch.Generator().manual_seed(0)
    grads = {n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in model.named_parameters()}
    push(opt, model, grads)
    opt.step(1.0)
    for part in (slice(0, 8), slice(8, 12)):
        want = -plain_newton_schulz(grads['fused'][part]) * (2.0 ** 0.5 if part.start == 0 else 1)
        torch.testing.assert_close(masters(opt)['fused'][part], want, rtol=2e-5, atol=2e-5)       # float32 inside

def test_muon_float32_masters_follow_the_plain_one():
    """One step from float32 gradients: bfloat16 inside orthogonalise, the update still within a few per cent."""
    model, before = Toy(torch.float32), {n: p.detach().clone() for n, p in Toy().named_parameters()}
    opt = Optimizer([model], MESH, torch.float32, weight_decay=0.0, muon=True, muon_lr=1.0, clip=0.0)
    grads = gradients(0)
    push(opt, model, grads)
    opt.step(0.1)
    step = (before['a'] - masters(opt)['a']) / 0.1
    want = plain_newton_schulz(grads['a']) * (6 / 4) ** 0.5
    assert masters(opt)['a'].dtype == torch.float32 and (step - want).norm() < 0.05 * want.norm()

# ---------------------------------------------------------------- memory tables

@pytest.mark.parametrize('micro', [2, 8])
def test_memory_rows_follow_adagrad(micro):
    """
    Against a dense loop over the rows; others keep their bits, and a step that is not finite changes nothing and leaves nothing behind.
    """
    cfg = ModelConfig(vocab_size=toy.codec.n_vocab, n_layer=1, n_embd=32, flow_width=32, flow_depth=1, zero_init=False, ngram=toy.PAST + 1,
                      ngram_rows=211)
    opt, sets = Optimizer([model := Muse(cfg)], MESH, torch.float64, lr_scale=dict(table=20.0), clip=0.01), [toy.shards(toy.documents())]
    want, total, idle = torch.zeros(3 * 211, 32, dtype=torch.float64), [0.0] * 3 * 211, set(range(3 * 211))
    for step, bad in enumerate((False, False, True, False)):
        batch = toy.micros(sets, step, micro=micro)
        opt.start(len(batch))
        for b in batch:
            model(b)['loss'].backward()
        grad = toy.touched(model.memory)
        for row, g in enumerate(grad if not bad else ()):
            if g.any():
                total[row] += float(g.square().sum())
                want[row] -= 0.05 * 20 * g / total[row] ** 0.5            # never clipped: it divides by its own norm
                idle.discard(row)
        opt.units[0].grad[0] += math.inf if bad else 0
        assert math.isfinite(opt.step(0.05)) != bad and not model.memory.pairs
        torch.testing.assert_close(model.memory.data, want, rtol=1e-12, atol=1e-14)
    assert 20 < len(idle) < 500 and not model.memory.data[list(idle)].any()
    named = {name: x for name, _, x, _ in opt.tensors()}
    assert named['exp_avg_sq/memory'].tolist() == pytest.approx(total) and torch.equal(named['param/memory'], model.memory.data)

# ---------------------------------------------------------------- precision

@pytest.mark.parametrize('muon', [False, True])
def test_masters_keep_what_bfloat16_would_lose(muon):
    """100 updates of 1e-4 on weights near 1, where bfloat16 has steps of 2^-8: they add up in the masters, and then show."""
    model = Toy(torch.float32)
    for p in model.parameters():
        p.data.fill_(1.0)
    opt = Optimizer([model], MESH, torch.bfloat16, weight_decay=0.0, muon=muon, clip=0.0, eps=0.0)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters()) and all(m.dtype == torch.float32 for m in masters(opt).values())
    for _ in range(100):
        push(opt, model, gradients(0))
        opt.step(1e-4)
    for name in ('gain', 'wte') if muon else ('gain', 'wte', 'a', 'stack'):
        moved = masters(opt)[name] - 1                                   # Adam, a constant gradient: lr per step
        torch.testing.assert_close(moved, -0.01 * gradients(0)[name].sign().float(), rtol=0.01, atol=0, msg=name)
    if muon:
        moved = (masters(opt)['a'] - 1).double()
        want = -0.01 * (6 / 4) ** 0.5 * plain_newton_schulz(gradients(0)['a'])
        assert (moved - want).norm() < 0.05 * want.norm()
    for n, p in model.named_parameters():
        assert torch.equal(p.data, masters(opt)[n].bfloat16()), n

def test_gradients_of_microbatches_add_up_in_float32():
    """1 + 256 times 2^-9: bfloat16 would stay at 1. Then the next step begins at zero."""
    model = Toy(torch.float32)
    opt = Optimizer([model], MESH, torch.bfloat16)
    for _ in range(2):
        opt.start(257)
        for i in range(257):
            sum((p * (1.0 if i == 0 else 2.0 ** -9)).sum() for p in model.parameters()).backward()
        opt.reduce()
        for u in opt.units:
            assert u.grad.dtype == torch.float32 and all((p.main_grad == 1.5).all() for p in u.params)
        n = sum(p.numel() for p in model.parameters())
        assert float(opt.norm()) == pytest.approx(1.5 * n ** 0.5, rel=1e-6)
        opt.zero()

def test_microbatches_of_the_model_add_up():
    """Muse in float64, 4 microbatches against one of all rows: every gradient; in bfloat16 they are float32 sums near that."""
    cfg = ModelConfig(vocab_size=toy.codec.n_vocab, n_layer=2, n_head=2, n_embd=32, flow_width=32, flow_depth=1, zero_init=False)
    sets, grads = [toy.shards(toy.documents())], {}
    for micro, dtype in ((8, torch.float64), (2, torch.float64), (2, torch.bfloat16)):
        model = Muse(cfg)
        opt = Optimizer([model], MESH, dtype)
        batch = toy.micros(sets, 0, micro=micro, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        opt.start(len(batch))
        for b in batch:
            model(b)['loss'].backward()
        assert len(batch) == 8 // micro and all(u.grad.dtype == u.master.dtype for u in opt.units)
        grads[micro, dtype] = torch.cat([u.grad for u in opt.units]).double()
    one, four, low = grads.values()
    assert (one - four).norm() < 1e-12 * one.norm() and one.norm() > 0.1
    assert (one - low).norm() < 0.03 * one.norm()

@pytest.mark.parametrize('bad', [math.inf, -math.inf, math.nan])
def test_a_non_finite_gradient_changes_nothing(bad):
    model = Toy()
    opt = Optimizer([model], MESH, torch.float64, muon=True)
    push(opt, model, gradients(0))
    opt.step(0.1)
    before = [t.clone() for u in opt.units for t in (u.master, u.m, u.v, u.param)]
    push(opt, model, {n: g.clone().index_fill_(0, torch.tensor([0]), bad) if n == 'stack' else g for n, g in gradients(1).items()})
    assert not math.isfinite(opt.step(0.1)) and opt.t == 1
    assert all(torch.equal(a, b) for a, b in zip(before, [t for u in opt.units for t in (u.master, u.m, u.v, u.param)]))
    assert not any(u.grad.any() for u in opt.units)                      # and the next step starts clean
    push(opt, model, gradients(1))
    assert math.isfinite(opt.step(0.1)) and opt.t == 2

# ---------------------------------------------------------------- checkpoints

def saved(tmp_path, name='step_00000003', seed=0):
    """A checkpoint of Toy with moments that are not zero -> (folder, optimizer, model)."""
    opt = Optimizer([model := Toy(torch.float32)], MESH, torch.float32, muon=True)
    push(opt, model, gradients(seed))
    opt.step(0.1)
    save_checkpoint(tmp_path, name, opt.tensors(), dict(step=3, best=1.5, optimizer_steps=1), MESH)
    return tmp_path / name, opt, model

def read_all(path):
    ck = Checkpoint(path)
    return ck.meta, {n: ck.full(n) for n in ck.names}

def inspect(path, capsys):
    """python optim_zero.py inspect DIR in this process -> (exit status or message, what it printed)."""
    argv, sys.argv = sys.argv, ['optim_zero.py', 'inspect', str(path)]
    try:
        runpy.run_path(str(ROOT / 'optim_zero.py'), run_name='__main__')
        return 0, capsys.readouterr().out
    except SystemExit as e:
        return e.code, capsys.readouterr().out
    finally:
        sys.argv = argv

def test_round_trip_is_bit_equal_and_goes_on_alike(tmp_path):
    """Weights, moments and the step count: the next update of the loaded optimizer is that of the one that was saved."""
    path, opt, model = saved(tmp_path)
    meta, tensors = read_all(path)
    assert meta == dict(step=3, best=1.5, optimizer_steps=1) and tensors.keys() == {n for n, *_ in opt.tensors()}
    assert all(torch.equal(tensors[n], x) for n, _, x, _ in opt.tensors())
    assert {n[11:] for n in tensors if n.startswith('exp_avg_sq/')} == {'gain', 'wte', 'head', 'wide'}
    other = Optimizer([copy := Toy(torch.float32)], MESH, torch.float32, muon=True)
    Checkpoint(path).fill(other.tensors())
    other.loaded(1)
    for o, net in ((opt, model), (other, copy)):
        push(o, net, gradients(5))
        o.step(0.1)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(opt.tensors(), other.tensors()))

def test_bfloat16_weights_follow_the_loaded_masters(tmp_path):
    path, opt, _ = saved(tmp_path)
    other = Optimizer([copy := Toy(torch.float32)], MESH, torch.bfloat16, muon=True)
    Checkpoint(path).fill(other.tensors())
    other.loaded(1)
    for n, x in masters(opt).items():
        assert torch.equal(masters(other)[n], x) and torch.equal(copy.get_parameter(n).data, x.bfloat16()), n

def test_every_byte_of_the_data_is_guarded(tmp_path):
    """A flipped bit anywhere, a shortened, empty or missing file: ValueError, one line that names the file."""
    path, *_ = saved(tmp_path)
    whole = (path / 'rank00000.bin').read_bytes()
    def refused(data):
        (path / 'rank00000.bin').unlink(missing_ok=True)
        if data is not None:
            (path / 'rank00000.bin').write_bytes(data)
        with pytest.raises(ValueError) as e:
            read_all(path)
        assert 'rank00000.bin' in str(e.value) and '\n' not in str(e.value)
    for at in [*range(0, len(whole), 37), len(whole) - 1]:
        refused(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1:])
    for n in (len(whole) - 1, len(whole) // 2, 1, 0):
        refused(whole[:n])
    refused(whole[4:] + whole[:4])
    refused(None)
    (path / 'rank00000.bin').write_bytes(whole)
    read_all(path)

def test_a_shortened_manifest_is_refused(tmp_path):
    path, *_ = saved(tmp_path)
    whole = (path / 'manifest.json').read_bytes()
    for n in [*range(0, len(whole), 101), len(whole) - 1]:
        (path / 'manifest.json').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='step_00000003'):
            read_all(path)

def test_a_flipped_bit_of_the_manifest_is_refused(tmp_path):
    path, *_ = saved(tmp_path)
    whole, wrong = (path / 'manifest.json').read_bytes(), []
    for at in range(0, len(whole), 3):
        (path / 'manifest.json').write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 3]) + whole[at + 1:])
        try:
            read_all(path)
            wrong.append((at, 'unseen'))
        except ValueError:
            pass
        except Exception as e:
            wrong.append((at, type(e).__name__))
    assert not wrong, (len(wrong), {w for _, w in wrong})

def test_another_shape_or_a_missing_tensor_is_named(tmp_path):
    path, opt, _ = saved(tmp_path)
    name, spec, x, _ = next(t for t in opt.tensors() if t[0] == 'param/wte')
    with pytest.raises(ValueError, match=r'param/wte.*\(7, 4\).*\(9, 4\)'):
        Checkpoint(path).fill([(name, param(MESH, 9, 4).spec, torch.zeros(9, 4))])
    with pytest.raises(ValueError, match='param/nothing'):
        Checkpoint(path).fill([('param/nothing', spec, x)])

def test_inspect_verifies(tmp_path, capsys):
    """Status 0 and every tensor with its shape; not 0 and one line for damage, for a folder without a checkpoint, for nothing."""
    path, opt, _ = saved(tmp_path)
    status, out = inspect(path, capsys)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and 'all checksums right' in out
    for n, _, x, _ in opt.tensors():
        assert str(tuple(x.shape)) in lines[n] and f'{float(x.double().mean()):+.3e}' in lines[n]
    data = bytearray((path / 'rank00000.bin').read_bytes())
    data[len(data) // 2] ^= 4
    (path / 'rank00000.bin').write_bytes(data)
    for folder in (path, tmp_path, tmp_path / 'nothing'):
        status, out = inspect(folder, capsys)
        assert isinstance(status, str) and '\n' not in status and str(folder) in status and 'checksums right' not in out
    r = subprocess.run([sys.executable, 'optim_zero.py', 'inspect', path], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1 and 'damaged' in r.stderr

def test_a_failed_save_leaves_all_as_it_was(tmp_path, monkeypatch):
    """No room at any of its calls: OSError, the folder of that name still the old one, nothing else left."""
    monkeypatch.setattr(checkpoint, 'ctypes', SimpleNamespace(CDLL=lambda _: None))      # where names cannot be exchanged in one call
    path, _, _ = saved(tmp_path)
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    for owner, name, at in ((checkpoint.os, 'fsync', 1), (checkpoint.os, 'fsync', 2), (checkpoint.os, 'fsync', 3),
                            (checkpoint.os, 'rename', 1)):
        calls, old = [], getattr(owner, name)
        def fail(*a):
            calls.append(a)
            if len(calls) == at:
                raise OSError(28, 'No space left on device')
            return old(*a)
        with monkeypatch.context() as m:
            m.setattr(owner, name, fail)
            with pytest.raises(OSError):
                saved(tmp_path, seed=1)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    saved(tmp_path, seed=1)                                              # and with room it is replaced
    assert (path / 'rank00000.bin').read_bytes() != before['rank00000.bin'] and read_all(path)

def test_a_failed_last_rename_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'ctypes', SimpleNamespace(CDLL=lambda _: None))      # where names cannot be exchanged in one call
    path, _, _ = saved(tmp_path)
    old, calls = checkpoint.os.rename, []
    def fail(*a):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(5, 'Input/output error')
        return old(*a)
    monkeypatch.setattr(checkpoint.os, 'rename', fail)
    with pytest.raises(OSError):
        saved(tmp_path, seed=1)
    assert path.exists() and read_all(path)

def test_checkpoints_and_prune(tmp_path):
    """Newest first, whole ones only; prune removes the oldest and nothing else."""
    for n in (900, 1000, 20, 100):
        saved(tmp_path, f'step_{n:08d}')
    saved(tmp_path, 'best')
    shutil.copytree(tmp_path / 'best', tmp_path / '.step_00002000.tmp')
    (tmp_path / 'step_00003000').mkdir()                                 # no manifest: never finished
    assert [p.name for p in checkpoints(tmp_path)] == [f'step_{n:08d}' for n in (1000, 900, 100, 20)]
    prune(tmp_path, 2)
    assert [p.name for p in checkpoints(tmp_path)] == ['step_00001000', 'step_00000900']
    assert not list(tmp_path.glob('*.old')) and not list(tmp_path.glob('.*.old')) and (tmp_path / 'best/manifest.json').exists()

def test_another_format_is_refused(tmp_path):
    """Weights that mean something else would load, and say nonsense."""
    path, *_ = saved(tmp_path)
    file = path / 'manifest.json'
    body = file.read_text().rpartition(', "crc": ')[0].replace('"format": 2', '"format": 1')
    file.write_text(f'{body}, "crc": {zlib.crc32((body + "}").encode())}}}')
    with pytest.raises(ValueError, match='has format 1, and 2 is read'):
        read_all(path)

def test_nothing_is_unpickled(tmp_path):
    """A file of raw numbers and JSON: the tensors can be read with numpy from the manifest alone."""
    path, opt, _ = saved(tmp_path)
    manifest = json.loads((path / 'manifest.json').read_text())
    data = (path / 'rank00000.bin').read_bytes()
    for n, _, x, _ in opt.tensors():
        e, = [e for e in manifest['tensors'] if e['name'] == n]
        raw = np.frombuffer(data[e['offset']:e['offset'] + e['nbytes']], e['dtype']).reshape(e['shape'])
        assert (raw == x.numpy()).all(), n
    assert sum(e['nbytes'] for e in manifest['tensors']) == len(data)


@pytest.mark.parametrize('steps', [3, 4, 5])
def test_operations_of_a_step_on_paper(steps):
    """Those of Muon's products as torch counts them, whatever the shapes; 16 for each parameter beside."""
    from torch.utils.flop_counter import FlopCounterMode
    model = Muse(ModelConfig(n_layer=2, n_head=2, n_kv_head=1, n_embd=32, ff=48, act='swiglu', n_expert=3, top_k=1, image=False,
                             audio=False), solo_mesh())
    muon, adamw = (Optimizer([model], solo_mesh(), torch.float32, muon=on, muon_steps=steps).flops() for on in (True, False))
    assert adamw == 16 * sum(p.numel() for p in model.parameters())
    matrices = [m for p in model.parameters() if p.spec.kind == 'matrix' for x in (p if p.dim() == 3 else [p])
                for m in x.split(p.spec.parts or len(x))]
    with FlopCounterMode(display=False) as counted:
        for m in matrices:
            orthogonalise(m.detach()[None], steps)
    assert muon - adamw == counted.get_total_flops()
