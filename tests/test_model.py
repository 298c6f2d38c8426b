"""The model against trusted references: losses and their gradients, packing, causality, the flow heads, experts, counts on paper."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import data.collate
import data.graph
import toy
from data.collate import collate
from data.loader import pack_train
from data.plan import count_flops, count_params
from model import D, Bins, Flow, ModelConfig, MoE, Muse, ngrams
from parallel import attention, attention_mask, expert_mlp, linear_cross_entropy, solo_mesh
from toy import codec

TINY = dict(vocab_size=codec.n_vocab, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ff=48, flow_width=32, flow_depth=1, zero_init=False)
DENSE = ModelConfig(**TINY, softcap=15.0)
EXPERTS = ModelConfig(**{**TINY, 'act': 'swiglu'}, n_expert=6, top_k=2, expert_ff=16, shared_ff=24, bins=7)
TIED = ModelConfig(**{**TINY, 'n_kv_head': 1, 'act': 'swiglu'}, rope_2d=False, tie=True, qk_norm=False, smear=2, value_embed=True,
                   token_shift=True, ngram=toy.PAST + 1, ngram_rows=101, audio_velocity=True)
ALL = pytest.mark.parametrize('cfg', [DENSE, EXPERTS, TIED], ids=['dense', 'experts', 'tied'])


def muse(cfg=DENSE, seed=3, dtype=torch.float64):
    """A model in which no gain is at its initial value and no output projection is 0: nothing is hidden by a special value."""
    model, rng = Muse(cfg, seed=seed).double(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.numel() == 1 or p.std() == 0:
            p.data += 0.2 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return model.to(dtype)


def gradients(model, batches):
    """({'loss', 'txt', ...} summed, {name: gradient})."""
    for p in model.parameters():
        p.grad, p.pairs = None, []
    total = {}
    for b in batches:
        out = model(b)
        out['loss'].backward()
        for k in ('loss', 'txt', 'img', 'aud'):
            total[k] = total.get(k, 0) + out[k].item()
    return total, {n: toy.touched(p) if p.spec.kind == 'table' else p.grad for n, p in model.named_parameters()}


def batch(rows, T, key=(1, 0), dtype=torch.float64, draws=2, experts=True):
    """Chunks of rows -> a batch with weights 1; kind is there for experts."""
    b, counts = collate(rows, T, codec, draws, [(*key, r) for r in range(len(rows))], past=toy.PAST)
    b = {k: v.to(dtype) if v.is_floating_point() else v for k, v in b.items()}
    b['kind'] = (b['ids'] == codec.sp['img']) + 2 * (b['ids'] == codec.sp['aud']) + 3 * (b['ids'] == codec.sp['pad'])
    return b, counts


def whole(s, d):
    return s, d, 0, int(s['doc'][d + 1, 0] - s['doc'][d, 0]) - 1


def hidden(model, b):
    """Normalised hidden states (B, T, C) that the losses are made from."""
    keep = []
    hook = model.norm.register_forward_hook(lambda m, a, y: keep.append(y.detach()))
    with torch.no_grad():
        out = model(b)
    hook.remove()
    return keep[0], {k: v.detach() for k, v in out.items()}


# ---------------------------------------------------------------- microbatches, ignored targets

@ALL
def test_microbatches_with_uneven_targets_equal_one_batch(cfg):
    model, sets = muse(cfg), [toy.shards(toy.documents())]
    whole_batch = toy.micros(sets, 0, seed=5, rows=6, micro=6, T=48)
    want, grad = gradients(model, whole_batch)
    assert len({int((b['txt_w'] > 0).sum()) for b in toy.micros(sets, 0, seed=5, rows=6, micro=1, T=48)}) > 2      # uneven indeed
    for micro in (1, 2, 3):
        got, other = gradients(model, toy.micros(sets, 0, seed=5, rows=6, micro=micro, T=48))
        for k in want:
            assert got[k] == pytest.approx(want[k], rel=1e-12), (micro, k)
        for n in grad:
            torch.testing.assert_close(other[n], grad[n], rtol=1e-10, atol=1e-13, msg=f'{micro} {n}')


def test_the_loss_is_a_mean_per_modality_over_all_rows():
    """
    With the weights of the training loop (float32): the mean of -log p over all text targets, of the clamped flow error over all payloads.
    """
    cfg = ModelConfig(**TINY, z_loss=0.0)
    model, sets = muse(cfg), [toy.shards(toy.documents())]
    got, _ = gradients(model, toy.micros(sets, 1, seed=5, rows=4, micro=1, T=48))
    b, counts = batch([pack_train(sets, None, 48, (5, 1, r)) for r in range(4)], 48, (5, 1))
    h, out = hidden(model, b)
    i, h = b['txt_i'][:int(counts[0])], h.flatten(0, 1)
    nll = F.cross_entropy(h[i] @ model.head.detach().t(), b['txt_y'][:len(i)])
    assert got['txt'] == pytest.approx(nll.item(), rel=1e-6)
    for k, c, d in (('img', counts[1], 192), ('aud', counts[2], 128)):
        n, head = int(c), getattr(model, {'img': 'image_out', 'aud': 'audio_out'}[k])
        x1, e, t = b[f'{k}_y'][:n, None, :d], b[f'{k}_e'][:n, :, :d], b[f'{k}_t'][:n, :, None]
        x_hat = head.denoise(t * x1 + (1 - t) * e, t[..., 0], head.cond(h[b[f'{k}_i'][:n]]))
        want = ((x_hat - x1) / (1 - t).clamp(min=0.05)).square().mean()
        assert n > 4 and got[k] == pytest.approx(want.item(), rel=1e-6)


@ALL
def test_all_ignored_microbatch_is_an_exact_zero(cfg):
    s = toy.shards([[('text', 'nothing to learn', 0), ('image', np.full((8, 16, 3), 9, np.uint8), 0),
                     ('audio', np.ones((3, 128), np.float32), 0), ('ids', [codec.sp['eot']], 0)]])
    model = muse(cfg)
    for rows in ([[whole(s, 0)]], [[]]):                              # ignored targets; a row of padding
        b, counts = batch(rows, 64)
        assert counts.tolist() == [0, 0, 0, 0]
        total, grad = gradients(model, [b])
        assert total == dict(loss=0, txt=0, img=0, aud=0)
        for n, g in grad.items():
            assert g is not None, f'{n}: no gradient: a reduction would hang'
            assert (g == 0).all(), n


@ALL
def test_absent_modality_is_zero_and_every_parameter_is_used(cfg):
    s = toy.shards([[('text', 'only text here')]])
    model = muse(cfg)
    total, grad = gradients(model, [batch([[whole(s, 0)]], 16)[0]])
    assert total['txt'] > 0 and total['img'] == 0 and total['aud'] == 0
    for n, g in grad.items():
        assert g is not None and g.isfinite().all(), n
        assert not n.startswith(('image', 'audio')) or (g == 0).all(), n


@pytest.mark.parametrize('more', [dict(), dict(n_expert=4, expert_ff=16, shared_ff=16),
                                  dict(tie=True, act='swiglu', smear=2, value_embed=True, token_shift=True, ngram=toy.PAST + 1,
                                       ngram_rows=101)],
                                  ids=['dense', 'experts', 'tied'])
def test_every_parameter_learns_on_a_mixed_batch(more):
    """From the true initialisation, with its zeros perturbed (behind a zero there is no gradient yet)."""
    model, rng = Muse(ModelConfig(**{**TINY, 'zero_init': True, **more})).double(), torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.any():
            p.data = 0.05 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    _, grad = gradients(model, toy.micros([toy.shards(toy.documents())], 0, seed=5, rows=8, micro=8, T=64))
    dead = [n for n, g in grad.items() if not g.abs().max() > 1e-9]
    assert not dead
    for n, g in grad.items():                                         # and every expert does
        assert g.dim() < 3 or (g.flatten(1).abs().amax(1) > 1e-9).all(), n


def test_ignored_targets_have_no_loss_and_no_gradient():
    """A document whose first half is ignored: another ignored target changes neither the loss nor any gradient."""
    sp, model = codec.sp, muse()
    def run(text):
        s = toy.shards([[('text', 'abc'), ('text', text, 0)]])       # the last target is ignored
        return gradients(model, [batch([[whole(s, 0)]], 8)[0]])
    (a, ga), (b, gb), (c, _) = run('dX'), run('dY'), run('eX')
    assert a == b and a['txt'] > 0
    assert all(torch.equal(ga[n], gb[n]) for n in ga)
    assert a == c                                                     # d is input, after the last learned target
    s = toy.shards([[('text', 'abc'), ('text', 'dX', 1)]])
    assert gradients(model, [batch([[whole(s, 0)]], 8)[0]])[0]['txt'] > a['txt']


# ---------------------------------------------------------------- packing and causality

@ALL
def test_packed_equals_alone(cfg):
    """Hidden states, text losses of documents in one row, and of each in a row of its own."""
    model, s = muse(cfg), toy.shards(toy.documents(5))
    T = sum(whole(s, d)[3] for d in range(5)) + 7                    # and padding
    b, _ = batch([[whole(s, d) for d in range(5)]], T)
    h, out = hidden(model, b)
    at, text = 0, 0
    for d in range(5):
        n = whole(s, d)[3]
        b1, counts = batch([[whole(s, d)]], n)
        h1, out1 = hidden(model, b1)
        torch.testing.assert_close(h[0, at:at + n], h1[0], rtol=0, atol=1e-12)
        k = int(counts[0])
        torch.testing.assert_close(out['txt_each'][text:text + k], out1['txt_each'][:k], rtol=0, atol=1e-12)
        at, text = at + n, text + k
    assert text == int((b['txt_w'] > 0).sum())


def test_packed_equals_alone_for_coordinates_at_the_border():
    model, loc = muse(), codec.loc0
    # the last input of the first and the first of the second
    s = toy.shards([[('ids', [65, loc + 9, 66])], [('ids', [loc + 20, loc + 30, 67])]])
    h, _ = hidden(model, batch([[whole(s, 0), whole(s, 1)]], 4)[0])
    h1, _ = hidden(model, batch([[whole(s, 1)]], 2)[0])
    torch.testing.assert_close(h[0, 2:4], h1[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_no_position_sees_a_later_one(dtype):
    """Another token, patch or frame at j: hidden states before j keep their bits, those from j on change."""
    rng = np.random.default_rng(0)
    s = toy.shards([[('text', 'ab'), ('image', rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)),
                     ('audio', rng.standard_normal((3, 128)).astype(np.float32)),
                     ('text', 'cdef')]])
    T = whole(s, 0)[3]
    b, _ = batch([[whole(s, 0)]], T, dtype=dtype)
    model = muse(dtype=dtype)
    h = hidden(model, b)[0][0]
    changes = [('ids', (0, 1), 1), ('ids', (0, T - 2), T - 2)]
    changes += [('xin_img', k, int(b['xin_img_i'][k])) for k in (0, 3)] + [('xin_aud', k, int(b['xin_aud_i'][k])) for k in (0, 2)]
    for key, at, j in changes:
        new = b[key].clone()
        new[at] = 101 if key == 'ids' else new[at] + 1
        other = hidden(model, {**b, key: new})[0][0]
        assert torch.equal(other[:j], h[:j]), (key, j)
        assert (other[j:] != h[j:]).any(1).all(), (key, j)            # attention reaches all that follow
    # own coordinates change nothing before, the next's are seen one earlier
    x = b['rc'].clone()
    k = int((b['rc_i'] == b['xin_img_i'][2]).nonzero()[0])
    x[k, :2] += 0.1
    j = int(b['xin_img_i'][2])
    other = hidden(model, {**b, 'rc': x})[0][0]
    assert torch.equal(other[:j], h[:j]) and (other[j] != h[j]).any()


def test_contexts_have_rows_of_their_own():
    """Equal contexts, and only they, share a row, but for chance; a longer context says more; all rows are used, evenly."""
    rng = np.random.default_rng(0)
    seen = torch.from_numpy(np.unique(rng.integers(-1, 300, (4000, 4)), axis=0))
    rows = ngrams(seen[:, None, 0], seen[:, None, 1:], 1 << 20)
    assert rows.shape == (len(seen), 3) and torch.equal(rows // (1 << 20), torch.arange(3).expand_as(rows))     # each length has its own
    for n in range(3):
        one = {}
        for context, row in zip(seen[:, :n + 2].tolist(), rows[:, n].tolist()):
            assert one.setdefault(tuple(context), row) == row
        assert len(set(one.values())) > len(one) - 25, n               # 4000^2 / 2^21 = 8 pairs meet by chance
    at = torch.cartesian_prod(torch.arange(256), torch.arange(256))    # the pairs of bytes, in 64 rows: 1024 of them in each
    count = ngrams(at[:, :1], at[:, 1:, None], 64).flatten().bincount(minlength=64)
    assert len(count) == 64 and (count - 1024).abs().max() < 6 * 32


def test_documents_do_not_see_each_other():
    s = toy.shards([[('text', 'abcdef')], [('text', 'ghijkl')]])
    model = muse()
    b, _ = batch([[whole(s, 0), whole(s, 1)]], 12)
    h = hidden(model, b)[0][0]
    other = hidden(model, {**b, 'ids': torch.where(torch.arange(12) == 1, 120, b['ids'])})[0][0]
    assert torch.equal(other[5:], h[5:]) and (other[1:5] != h[1:5]).any(1).all()


def test_coordinates_and_payloads_reach_the_hidden_states():
    """Each of the four coordinates, and positions, matter (so that a head that ignores them cannot pass for one that reads them)."""
    s = toy.shards([[('image', np.zeros((16, 16, 3), np.uint8)), ('text', 'q')]])
    model, T = muse(), 8
    b, _ = batch([[whole(s, 0)]], T)
    h = hidden(model, b)[0]
    k = int((b['rc_i'] == b['xin_img_i'][1]).nonzero()[0])
    for c in range(4):
        x = b['rc'].clone()
        x[k, c] += 0.01
        assert (hidden(model, {**b, 'rc': x})[0] != h).any(), c
    assert (hidden(model, {**b, 'pos': b['pos'] * 2})[0] != h).any()
    torch.testing.assert_close(hidden(model, {**b, 'pos': b['pos'] + 5})[0], h, rtol=0, atol=1e-5)        # rotary: only differences count


# ---------------------------------------------------------------- attention

@pytest.mark.parametrize('nh, nkv', [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_sdpa(nh, nkv):
    rng = torch.Generator().manual_seed(0)
    B, T, hd, mesh = 2, 11, 6, solo_mesh()
    q, k, v = (torch.randn(B, n, T, hd, generator=rng, dtype=torch.float64).requires_grad_() for n in (nh, nkv, nkv))
    doc = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 2, [0] * 11], dtype=torch.int32)
    mask = attention_mask(doc, mesh, torch.float64)
    ok = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(i + 1):
                ok[b, i, j] = doc[b, i] == doc[b, j]
    g = torch.randn(B, nh, T, hd, generator=rng, dtype=torch.float64)
    got = attention(q, k, v, mask, hd ** -0.5, mesh)
    want = F.scaled_dot_product_attention(q, k.repeat_interleave(nh // nkv, 1), v.repeat_interleave(nh // nkv, 1), attn_mask=ok[:, None])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), g), torch.autograd.grad(want, (q, k, v), g)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def by_the_book(model, b):
    """Normalised hidden states (B, T, C) of a batch, written from the description with torch's own functions alone."""
    cfg, P = model.cfg, dict(model.named_parameters())
    B, T = b['ids'].shape
    nh, nkv, hd = cfg.n_head, cfg.n_kv_head, cfg.n_embd // cfg.n_head
    norm = lambda x, gain: F.rms_norm(x, x.shape[-1:], gain, 1e-6)
    x = P['wte'][b['ids']].flatten(0, 1)
    for r, k in [(r, k) for r in range(B) for k in range(T)] if cfg.past else ():
        context = b['ids'][r, k - int(b['pos'][r, k]):k + 1]           # its document in this row, up to here
        for n in range(2, cfg.ngram + 1):                              # the memory's rows, looked up by the last n ids alone
            last = torch.cat((torch.full((n,), -1), context))[-n:]
            rows = ngrams(last[-1:].view(1, 1), last[:-1].flip(0).view(1, 1, n - 1), cfg.ngram_rows)
            x = x.index_add(0, torch.tensor([r * T + k]), P['memory'][rows[0, -1:]])
        for n in range(1, min(cfg.smear, len(context) - 1) + 1):
            x = x.index_add(0, torch.tensor([r * T + k]), P[f'before.{n - 1}'][context[-1 - n:][:1]])
    for i, v, w in (('xin_img_i', b['xin_img'], P['image_in']), ('xin_aud_i', b['xin_aud'][:, :128], P['audio_in'])):
        x = x + torch.zeros_like(x).index_add(0, b[i], v @ w.t())
    waves = math.pi * 2.0 ** torch.arange(6, dtype=torch.float64)
    f = torch.stack([torch.cat([(c * waves).sin(), (c * waves).cos(), torch.ones(1)]) * (c >= 0)
                     for c in b['rc'].flatten()]).view(len(b['rc']), -1)
    x = (x + torch.zeros_like(x).index_add(0, b['rc_i'], f.to(x.dtype) @ P['coord_in'].t())).view(B, T, -1)
    n_axis = hd // 6 if cfg.rope_2d else 0                              # pairs that turn by the row, and by the column
    n_seq, angle = hd // 2 - 2 * n_axis, torch.zeros(B, T, 1, hd // 2)
    angle[..., :n_seq] = b['pos'][:, :, None, None].float() * cfg.rope_base ** (-torch.arange(n_seq) * 2 / hd)
    wave = math.pi / 4 * 16 ** (torch.arange(n_axis) / max(1, n_axis - 1))
    for i, (row, column, _, _) in zip(b['rc_i'], b['rc'].float()):
        if row >= 0:                                                    # the x of a point is its row, and it has no column yet
            angle.view(B * T, -1)[i, n_seq:] = torch.cat((row * wave, column.clamp(min=0) * wave))
    turn = torch.complex(angle.cos().double(), angle.sin().double())
    def rotate(x):
        z = torch.complex(x[..., ::2], x[..., 1::2]) * turn
        return torch.stack((z.real, z.imag), -1).flatten(-2).transpose(1, 2)
    ok = (b['doc'][:, None, :, None] == b['doc'][:, None, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
    for i in range(cfg.n_layer):
        W = {n.removeprefix(f'blocks.{i}.'): p for n, p in P.items() if n.startswith(f'blocks.{i}.')}
        u = norm(x, W['norm1.gain'])
        q, (k, v) = (u @ W['attn.q'].t()).view(B, T, nh, hd), (u @ W['attn.kv'].t()).view(B, T, 2, nkv, hd).unbind(2)
        if cfg.value_embed:
            v = v + W['attn.ve'][b['ids']].view(B, T, nkv, hd)
        if cfg.qk_norm:
            q, k = norm(q, W['attn.gain']), norm(k, None)
        k, v = (y.repeat_interleave(nh // nkv, 1) for y in (rotate(k), v.transpose(1, 2)))
        y = F.scaled_dot_product_attention(rotate(q), k, v, attn_mask=ok)
        x = x + y.transpose(1, 2).reshape(B, T, -1) @ W['attn.out'].t()
        u = norm(x, W['norm2.gain'])
        if cfg.token_shift:
            first = F.pad(b['doc'][:, 1:] != b['doc'][:, :-1], (1, 0), value=True)
            first = first.where(b['doc'] >= 0, b['pos'] == 0)                       # padding: as it comes
            u = u + u.roll(1, 1).masked_fill(first[..., None], 0) * W['mlp.shift']
        if 'mlp.router' in W:
            x = x + dense_moe(model.blocks[str(i)].mlp, u.flatten(0, 1))[0].view_as(u)
        else:
            x = x + by_the_book_mlp(u, W['mlp.up'], W['mlp.down'], cfg.act)
    return norm(x, P['norm.gain'])


def by_the_book_mlp(u, up, down, act):
    u = u @ up.t()
    return (F.relu(u) ** 2 if act == 'relu2' else F.silu(u[..., :u.shape[-1] // 2]) * u[..., u.shape[-1] // 2:]) @ down.t()


@ALL
def test_the_transformer_by_the_book(cfg):
    """Hidden states of packed rows and every gradient below the heads, in float64; in float32 and bfloat16 as near as those are."""
    sets = [toy.shards(toy.documents())]
    b = toy.micros(sets, 0, seed=5, rows=2, micro=2, T=64)[0]
    model = muse(cfg)
    keep = []
    model.norm.register_forward_hook(lambda m, a, y: keep.append(y))
    if cfg.ngram:
        model.memory.pairs = []
    model(b)
    want, got = by_the_book(model, b), keep[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=got.dtype)
    params = {n: p for n, p in model.named_parameters() if n != 'head' and '_out.' not in n}
    for n, x, y in zip(params, *(torch.autograd.grad(h, list(params.values()), g, allow_unused=True) for h in (got, want))):
        x = toy.touched(model.memory) if n == 'memory' else x
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10 * float(y.abs().max()), msg=n)
    for dtype, tol in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        h, out = hidden(muse(cfg, dtype=dtype), {k: v.to(dtype) if v.is_floating_point() else v for k, v in b.items()})
        assert h.dtype == dtype and out['loss'].dtype == torch.float32
        off = (h.double() - want.detach()).norm(dim=-1) / want.norm(dim=-1)
        assert off.median() < tol                                     # the median: in bfloat16 a few tokens choose another expert


# ---------------------------------------------------------------- buffers of a CUDA graph

def test_batches_in_buffers_give_the_same_losses_and_gradients(monkeypatch):
    """Without the recording, which takes a GPU (test_cuda.py): arrays that are longer, or shorter, than those before; masks, too."""
    monkeypatch.setattr(data.graph, 'recorded', lambda f: f)
    monkeypatch.setattr(data.collate, 'PAD', 8)
    s, model, lengths, programs = toy.shards(toy.documents()), muse(EXPERTS), [], set()
    run, context = data.graph.graphed(model), model.context
    for step in range(6):
        for b in toy.micros([s], step, T=96, experts=True, rows=4):
            begins = torch.arange(0, 193, 96 // (step + 1 if step < 3 else 2)).int()               # as flash_mask() gives them
            lengths.append([len(b[k]) for k in ('img_i', 'rc_i', 'txt_i')])
            want = gradients(model, [b])
            for p in model.parameters():
                p.grad = None
            model.context = lambda b, dtype: (programs.add(tuple(b['mask'][0].tolist())),
                                              context({k: b[k] for k in b if k != 'mask'}, dtype))[1]
            got = run({**b, 'mask': (begins, begins)})
            del model.context
            assert all(abs(got[k].item() - want[0][k]) < 1e-12 * max(1, abs(want[0][k])) for k in want[0])
            assert all((p.grad - want[1][n]).abs().max() < 1e-12 for n, p in model.named_parameters())
    grown = [max(x) for x in zip(*lengths)]
    assert all(x < most for x, most in zip(lengths[-1], grown)) and len({len(x) for x in programs}) > 1
    assert all(list(x) == sorted(x) and x[-1] == 192 for x in programs)                    # documents that are not there are empty


# ---------------------------------------------------------------- cross-entropy

@pytest.mark.parametrize('softcap', [0.0, 3.0])
@pytest.mark.parametrize('z', [0.0, 0.1])
def test_linear_cross_entropy_equals_the_formula(z, softcap):
    rng = torch.Generator().manual_seed(1)
    N, C, V = 23, 7, 31
    h, W = (2 * torch.randn(n, C, generator=rng, dtype=torch.float64).requires_grad_() for n in (N, V))
    h, W = h.detach().requires_grad_(), W.detach().requires_grad_()
    y, w = torch.randint(0, V, (N,), generator=rng), torch.rand(N, generator=rng, dtype=torch.float64)
    w[3], w[22] = 0, 0                                                # ignored
    logits = h @ W.t()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    nll = F.cross_entropy(logits, y, reduction='none')
    want = (w * (nll + z * logits.logsumexp(1) ** 2)).sum()
    dh, dW = torch.autograd.grad(3 * want, (h, W))
    for chunk, compiled in ((4096, False), (23, False), (10, False), (1, False), (4096, True), (10, True)):
        mesh = replace(solo_mesh(), compiled=compiled)
        got, each = linear_cross_entropy(h, W, y, w, mesh, z, softcap, chunk)
        assert got.item() == pytest.approx(want.item(), rel=1e-13)
        torch.testing.assert_close(each, nll, rtol=0, atol=1e-12)
        assert not each.requires_grad
        for a, b in zip(torch.autograd.grad(3 * got, (h, W), retain_graph=True), (dh, dW)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert (torch.autograd.grad(3 * got, h)[0][[3, 22]] == 0).all()


def test_linear_cross_entropy_survives_huge_logits_and_no_positions():
    h = torch.tensor([[1e4, 0.], [-1e4, 0.]], dtype=torch.float32, requires_grad=True)
    W = torch.eye(2).requires_grad_()
    y, w = torch.tensor([0, 0]), torch.ones(2)
    loss, each = linear_cross_entropy(h, W, y, w, solo_mesh())
    assert each.tolist() == [0, 1e4] and loss.item() == 1e4
    loss.backward()
    assert h.grad.isfinite().all() and W.grad.isfinite().all()
    loss, each = linear_cross_entropy(h[:0], W, y[:0], w[:0], solo_mesh(), 1e-4, 15.0)
    assert loss.item() == 0 and len(each) == 0
    assert (torch.autograd.grad(loss, W)[0] == 0).all()


# ---------------------------------------------------------------- flow heads

def flow(d=192, dtype=torch.float64, velocity=False):
    m = Flow(DENSE, solo_mesh(), d, velocity)
    rng = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=rng)
    return m.to(dtype)


@pytest.mark.parametrize('d', [192, 128])
def test_oracle_head_samples_x1_exactly(d, monkeypatch):
    """And both loss and sample hand denoise() points of one path, x_t = t x_1 + (1 - t) e, and its time."""
    rng = torch.Generator().manual_seed(0)
    head, N = flow(d), 5
    h, x1, e = (torch.randn(N, n, generator=rng, dtype=torch.float64) for n in (32, D, D))
    seen = []
    def oracle(xt, t, c):
        seen.append((xt, t))
        assert c.shape == head.cond(h).shape and torch.equal(c, head.cond(h))
        return x1[:, None, :d].expand_as(xt)
    monkeypatch.setattr(head, 'denoise', oracle)
    for steps in (1, 4, 20):
        out = head.sample(h, e, steps)
        torch.testing.assert_close(out[:, :d], x1[:, :d], rtol=0, atol=1e-13)
        assert out.shape == (N, D) and (out[:, d:] == 0).all()
        assert len(seen) == steps and seen[0][1].max() == 0           # begins at pure noise
        for xt, t in seen:
            torch.testing.assert_close(xt, t[..., None] * x1[:, None, :d] + (1 - t[..., None]) * e[:, None, :d], rtol=0, atol=1e-13)
        seen.clear()
    noise, t = torch.randn(N, 3, D, generator=rng, dtype=torch.float64), torch.rand(N, 3, generator=rng, dtype=torch.float64)
    loss, err = head.loss(h, x1, noise, t, torch.ones(N, dtype=torch.float64))
    assert loss.item() == 0 and (err == 0).all()
    xt, at = seen[0]
    assert torch.equal(at, t)
    torch.testing.assert_close(xt, t[..., None] * x1[:, None, :d] + (1 - t[..., None]) * noise[..., :d], rtol=0, atol=1e-13)


def test_a_head_that_says_the_velocity():
    """
    The same network, asked for v: its x_1 is x_t + (1 - t) v, so the loss is the error of v, but for times above .95, and a step of Euler
    moves along v. ModelConfig has it for sound, and where there is none as it was for all.
    """
    rng = torch.Generator().manual_seed(0)
    says, head = flow(128), flow(128, velocity=True)
    h, x1, e0 = (torch.randn(5, n, generator=rng, dtype=torch.float64) for n in (32, D, D))
    e, t = torch.randn(5, 3, D, generator=rng, dtype=torch.float64), 0.95 * torch.rand(5, 3, generator=rng, dtype=torch.float64)
    xt = t[..., None] * x1[:, None, :128] + (1 - t[..., None]) * e[..., :128]
    v = says.denoise(xt, t, says.cond(h))
    torch.testing.assert_close(head.denoise(xt, t, head.cond(h)), xt + (1 - t[..., None]) * v, rtol=0, atol=1e-13)
    loss, err = head.loss(h, x1, e, t, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(err, (v - (x1[:, None] - e)[..., :128]).square().mean((-1, -2)), rtol=1e-10, atol=0)
    x = e0[:, None, :128]
    for i in range(4):
        x = x + says.denoise(x, torch.full((5, 1), i / 4, dtype=torch.float64), says.cond(h)) / 4
    torch.testing.assert_close(head.sample(h, e0, 4)[:, :128], x[:, 0], rtol=1e-10, atol=1e-12)
    m = Muse(ModelConfig(n_layer=1, n_embd=32, n_head=2, flow_width=32, audio_velocity=True))
    assert m.audio_out.velocity and not m.image_out.velocity and not Muse(ModelConfig(n_layer=1)).audio_out.velocity
    assert ModelConfig(audio=False, audio_velocity=True) == ModelConfig(audio=False)


def test_flow_loss_is_the_clamped_velocity_error(monkeypatch):
    """A head that is off by 1 everywhere: the loss is the mean of 1 / max(1 - t, .05)^2, weighted."""
    head, t = flow(), torch.tensor([[0.0, 0.5], [0.9, 0.99]], dtype=torch.float64)
    x1, e, w = torch.ones(2, D).double(), torch.zeros(2, 2, D).double(), torch.tensor([1.0, 0.5], dtype=torch.float64)
    monkeypatch.setattr(head, 'denoise', lambda xt, t, c: torch.full_like(xt, 2.0))
    loss, err = head.loss(torch.zeros(2, 32).double(), x1, e, t, w)
    want = torch.tensor([(1 + 4) / 2, (100 + 400) / 2], dtype=torch.float64)
    torch.testing.assert_close(err, want, rtol=1e-12, atol=0)
    assert loss.item() == pytest.approx(want[0].item() + want[1].item() / 2)


def test_guidance_pushes_away_from_the_unprompted(monkeypatch):
    """x_1 = x_1(h0) + g (x_1(h) - x_1(h0)); at g = 1, or without h0, the unprompted is not asked."""
    head = flow()
    h, h0, e = torch.ones(2, 32).double(), -torch.ones(2, 32).double(), torch.randn(2, D,
                                                                                    generator=torch.Generator().manual_seed(0)).double()
    c, asked = head.cond(h), []
    def denoise(xt, t, cond):
        asked.append(torch.equal(cond, c))
        return torch.full_like(xt, 0.5 if asked[-1] else 0.2)
    monkeypatch.setattr(head, 'denoise', denoise)
    for g, want in ((2.0, 0.8), (1.0, 0.5), (0.0, 0.2)):
        assert head.sample(h, e, 5, g, h0).sub(want).abs().max() < 1e-12
    asked.clear()
    head.sample(h, e, 5, 1.0, h0), head.sample(h, e, 5, 2.0)
    assert all(asked) and len(asked) == 10


def test_denoise_of_draws_together_equals_each_alone():
    """The modulation shared by the draws of a position does not mix positions, draws or times."""
    head, rng = flow(), torch.Generator().manual_seed(0)
    xt, t = torch.randn(3, 4, D, generator=rng).double(), torch.rand(3, 4, generator=rng).double()
    h = torch.randn(3, 32, generator=rng).double()
    got = head.denoise(xt, t, head.cond(h))
    for n in range(3):
        for r in range(4):
            one = head.denoise(xt[n:n + 1, r:r + 1], t[n:n + 1, r:r + 1], head.cond(h[n:n + 1]))
            torch.testing.assert_close(got[n, r], one[0, 0], rtol=0, atol=1e-12)
    assert (head.denoise(xt, t + 0.01, head.cond(h)) != got).all(-1).all()


def test_a_trained_head_is_neither_dead_nor_collapsed():
    """Two patterns, equally likely given the same hidden state: samples have both, near them, in about equal numbers."""
    torch.manual_seed(0)
    cfg = ModelConfig(**{**TINY, 'zero_init': True, 'flow_width': 48})
    model = Muse(cfg)
    head = model.audio_out
    opt, modes = torch.optim.Adam(head.parameters(), 5e-3), torch.stack([torch.linspace(-1, 1, D), torch.linspace(1, -1, D)])
    h = torch.ones(128, 32)
    for _ in range(150):
        x1, e, t = modes[torch.randint(2, (128,))], torch.randn(128, 2, D), torch.sigmoid(torch.randn(128, 2))
        opt.zero_grad()
        head.loss(h, x1, e, t, torch.full((128,), 1 / 128))[0].backward()
        opt.step()
    x = head.sample(h, torch.randn(128, D) * 0.75, 20)[:, :128]
    off = (x[:, None] - modes[:, :128]).square().mean(-1).sqrt()      # (128, 2)
    assert off.min(1).values.mean() < 0.15
    assert 32 < (off.argmin(1) == 0).sum() < 96


# ---------------------------------------------------------------- experts

def dense_moe(m, x):
    """Every expert on every token, in a loop; the gates of the chosen ones."""
    score = torch.sigmoid(x @ m.router.t())
    chosen = torch.zeros_like(score)
    for n in range(len(x)):
        for e in sorted(range(len(m.bias)), key=lambda e: -(score[n, e] + m.bias[e]).item())[:m.cfg.top_k]:
            chosen[n, e] = 1
    gate = score * chosen
    if m.cfg.top_k > 1:
        gate = gate / (gate.sum(1, keepdim=True) + 1e-9)
    y = 0
    for e in range(len(m.bias)):
        y = y + gate[:, e:e + 1] * by_the_book_mlp(x, m.w1[e], m.w2[e], m.cfg.act)
    return by_the_book_mlp(x, m.shared.up, m.shared.down, m.cfg.act) + y, chosen


@pytest.mark.parametrize('act', ['relu2', 'swiglu'])
@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_experts_equal_the_dense_loop(act, top_k):
    cfg = ModelConfig(**{**TINY, 'act': act}, n_expert=5, top_k=top_k, expert_ff=12, shared_ff=8)
    rng, m = torch.Generator().manual_seed(top_k), MoE(cfg, solo_mesh()).double()
    for p in m.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
    m.bias.copy_(torch.tensor([0.0, 0.3, -0.1, -9.0, 0.05]))         # expert 3 is never chosen
    x, g = (torch.randn(21, 32, generator=rng, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    inputs = [x, *m.parameters()]
    want, chosen = dense_moe(m, x)
    got = m(x[None], {})[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    plain = (torch.sigmoid(x @ m.router.t())).topk(top_k).indices
    assert (chosen.gather(1, plain) == 0).any()                       # the bias decided somewhere
    names = ['x'] + [n for n, _ in m.named_parameters()]
    for n, a, b in zip(names, torch.autograd.grad(got, inputs, g), torch.autograd.grad(want, inputs, g)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=n)
        if n in ('w1', 'w2'):
            assert (a[3] == 0).all() and a[0].any(), 'the unused expert, and a used one'
        if n == 'router':
            assert a.abs().max() > 1e-3                               # the gates differentiate it, one alone too


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('ff', [16, 24])
@pytest.mark.parametrize('counts', [[3, 0, 5, 1], [0, 0, 0, 9], [0, 0, 0, 0]])
def test_products_of_experts_without_tokens(dtype, ff, counts):
    """
    Whatever kernel the type takes: the loop's values and gradients, and of an expert (or a rank) to whom nobody came, zeros, not none.
    """
    rng = torch.Generator().manual_seed(0)
    shapes = (sum(counts), 16), (4, ff, 16), (4, 16, ff), (sum(counts), 16)
    x, w1, w2, g = (torch.randn(*n, generator=rng).to(dtype).double() for n in shapes)
    wide, narrow = ([t.detach().to(d, copy=True).requires_grad_() for t in (x, w1, w2)] for d in (torch.float64, dtype))
    want = torch.cat([F.relu(xe @ wide[1][i].t()) @ wide[2][i].t() for i, xe in enumerate(wide[0].split(counts))])
    got = expert_mlp(narrow[0], torch.tensor(counts), narrow[1], narrow[2], F.relu)
    tol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    want.backward(g), got.backward(g.to(dtype))
    for n, a, b in (('y', got, want), *((n, a.grad, b.grad) for n, a, b in zip(('x', 'w1', 'w2'), narrow, wide))):
        assert a is not None and a.shape == b.shape and a.dtype == dtype, n
        assert not b.numel() or (a.double() - b).abs().max() <= tol * b.abs().max(), n
    for i, c in enumerate(counts):
        assert c or not narrow[1].grad[i].any() and not narrow[2].grad[i].any()


@pytest.mark.parametrize('dtype, ff', ((torch.bfloat16, 12), (torch.float32, 6)))
def test_narrow_experts(dtype, ff):
    """Rows of numbers that are no multiple of 16 bytes."""
    x, w1, w2 = (torch.ones(n, dtype=dtype) for n in ((4, 16), (2, ff, 16), (2, 16, ff)))
    assert (expert_mlp(x, torch.tensor([1, 3]), w1, w2, F.relu) == 16 * ff).all()


def test_compiled_experts():
    """torch.compile does not know grouped products in float32."""
    x, w1, w2 = (torch.ones(n, requires_grad=True) for n in ((4, 16), (2, 8, 16), (2, 16, 8)))
    y = torch.compile(expert_mlp, backend='aot_eager')(x, torch.tensor([1, 3]), w1, w2, F.relu)
    y.sum().backward()
    assert (y == 16 * 8).all() and (x.grad == 16 * 8).all()


def test_expert_load_is_counted_per_modality_without_padding():
    model, sets = muse(EXPERTS), [toy.shards(toy.documents())]
    layer = model.blocks['1'].mlp
    assert isinstance(layer, MoE) and not isinstance(model.blocks['0'].mlp, MoE)       # the first layer is dense
    seen = []
    layer.register_forward_hook(lambda m, a, y: seen.append(a[0].detach()))
    want, padding = torch.zeros(3, 6), 0
    for b in toy.micros(sets, 0, seed=5, rows=4, micro=2, T=64, experts=True):
        model(b)
        _, chosen = dense_moe(layer, seen[-1].flatten(0, 1))
        kind = torch.zeros(b['ids'].shape, dtype=torch.long)
        kind[b['ids'] == codec.sp['img']], kind[b['ids'] == codec.sp['aud']], kind[b['doc'] < 0] = 1, 2, 3
        padding += int((kind == 3).sum())
        for k in range(3):
            want[k] += chosen[kind.flatten() == k].sum(0).float()
    assert padding and (want.sum(1) > 0).all() and torch.equal(layer.load, want)
    model.eval()
    model(b)
    assert torch.equal(layer.load, want)                              # evaluation is not training load


# ---------------------------------------------------------------- heads of bins

def bins(d, n, top, dtype=torch.float64):
    cfg = ModelConfig(**{**TINY, 'flow_depth': 2}, bins=n)
    m = Bins(cfg, solo_mesh(), d, top)
    rng = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data = torch.randn(p.shape, generator=rng) * p.shape[-1] ** -0.5
    return m.to(dtype)


@pytest.mark.parametrize('d, n, top', [(192, 7, 1.0), (128, 32, 4.0), (128, 2, 4.0)])
def test_bins_loss_and_gradients_are_those_of_cross_entropy(d, n, top):
    """Over more than one chunk, some weights 0, beside F.cross_entropy and autograd; numbers beyond the ends count as those."""
    head, rng, N = bins(d, n, top), torch.Generator().manual_seed(1), 700
    h = torch.randn(N, 32, generator=rng, dtype=torch.float64).requires_grad_()
    x1, w = 1.5 * top * (2 * torch.rand(N, D, generator=rng) - 1), torch.rand(N, generator=rng, dtype=torch.float64)
    w[::5] = 0
    values = torch.linspace(-top, top, n)
    at = (x1[:, :d, None] - values).abs().argmin(-1)                  # the nearest value
    z = F.linear(head.hidden(h), head.out.view(d * n, -1)).view(N, d, n)
    want = F.cross_entropy(z.flatten(0, 1), at.flatten(), reduction='none').view(N, d).mean(1)
    loss, each = head.loss(h, x1, None, None, w)
    torch.testing.assert_close(each, want.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss, (w * want).sum(), rtol=1e-12, atol=0)
    every = [h, *head.parameters()]
    for got, true in zip(torch.autograd.grad(3 * loss, every), torch.autograd.grad(3 * (w * want).sum(), every)):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)
    none, _ = head.loss(h[:0], x1[:0], None, None, w[:0])
    assert none.item() == 0 and all((g == 0).all() for g in torch.autograd.grad(none, list(head.parameters())))


def test_bins_sample_what_the_softmax_says():
    """
    Normal e give each value as often as its probability says; scaled to 0 they give the median; guidance moves the logits away from those
    without a prompt; what is past d is 0.
    """
    head, rng, n = bins(128, 5, 4.0, torch.float32), torch.Generator().manual_seed(2), 20000
    h, h0 = torch.randn(2, 1, 32, generator=rng)
    z, z0 = (F.linear(head.hidden(x), head.out.view(640, -1)).view(128, 5) for x in (h, h0))
    values = torch.linspace(-4, 4, 5)
    for guide, logits in ((1.0, z), (2.5, z0 + 2.5 * (z - z0))):
        p = logits.softmax(-1).detach()
        x = head.sample(h.expand(n, 32), torch.randn(n, D, generator=rng), guide=guide, h0=h0.expand(n, 32))
        assert x.shape == (n, D) and (x[:, 128:] == 0).all()
        often = (x[:, :128, None] == values).float().mean(0)          # (128, 5)
        assert ((often - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-3).all() and torch.allclose(often.sum(-1), torch.ones(128))
        middle = head.sample(h, torch.zeros(1, D), guide=guide, h0=h0)[0, :128]
        assert torch.equal(middle, values[(p.cumsum(-1) < .5).sum(-1)])
    e = torch.full((1, D), 9.0)                                       # far out: the last value, not one past it
    assert head.sample(h, e)[0, :128].max() <= 4 and head.sample(h, -e)[0, :128].min() >= -4


def test_bins_are_refused_where_they_are_no_choice_and_off_without_pictures_and_sound():
    with pytest.raises(ValueError, match='bins=1: use 0'):
        ModelConfig(bins=1)
    assert ModelConfig(bins=32, image=False, audio=False) == ModelConfig(image=False, audio=False)
    assert not ModelConfig(bins=32, audio_velocity=True).audio_velocity


# ---------------------------------------------------------------- counts on paper

CONFIGS = dict(dense=DENSE, experts=EXPERTS, tied=TIED, plain=ModelConfig(), text=ModelConfig(**TINY, image=False, audio=False),
               image=ModelConfig(**{**TINY, 'flow_depth': 3, 'flow_width': 64}, audio=False),
               swiglu=ModelConfig(**{**TINY, 'act': 'swiglu', 'n_layer': 3}, image=False),
               all_experts=ModelConfig(**{**TINY, 'n_layer': 3}, n_expert=4, top_k=3, dense_layers=0),
               no_experts_yet=ModelConfig(**TINY, n_expert=4, dense_layers=5), bins=ModelConfig(**TINY, bins=7))


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters_on_paper_equal_those_there(name):
    cfg = CONFIGS[name]
    model, p = Muse(cfg), count_params(cfg)
    assert p['total'] == sum(x.numel() for x in model.parameters())
    part = lambda *words: sum(x.numel() for n, x in model.named_parameters() if any(w in n for w in words))
    assert p['memory'] == part('memory')
    assert p['experts'] == part('mlp.w1', 'mlp.w2')
    assert p['attention'] == part('.attn.') - part('.ve')
    assert p['mlp'] == part('.mlp.up', '.mlp.down', '.mlp.shared', '.mlp.router')
    assert p['embed'] == part('wte', 'before', '_in', '.ve') - part('_out.')  + sum(x.numel() for n,
        x in model.named_parameters() if '_out.' in n and '_in' not in n)
    one = 0 if not cfg.n_expert else (3 if cfg.act == 'swiglu' else 2) * cfg.n_embd * cfg.expert_ff * max(0, cfg.n_layer - cfg.dense_layers)
    idle = (cfg.n_expert - cfg.top_k) * one + p['memory'] // cfg.ngram_rows * (cfg.ngram_rows - 1)
    assert p['active'] == p['total'] - idle


@pytest.mark.parametrize('name', CONFIGS)
def test_operations_on_paper_equal_those_counted(name):
    cfg, T = CONFIGS[name], 64
    model = Muse(cfg).double()
    b, _ = batch([pack_train([toy.shards(toy.documents())], None, T, (1, 0, r)) for r in range(2)], T, draws=3)
    flash = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, out_shape=None,
             **kw: 4 * q[0] * q[1] * q[2] * k[2] * q[3]}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=flash) as counted:
        for p in model.parameters():
            p.requires_grad_(False)                                   # the cross-entropy makes its gradient in the forward pass: see below
        model(b)
    paper = count_flops(cfg, b['ids'].numel(), len(b['txt_i']), len(b['img_i']), len(b['aud_i']), b['ids'].numel() * T, 3,
                        len(b['xin_img_i']), len(b['xin_aud_i']), len(b['rc_i']))
    # no matrix products
    assert counted.get_total_flops() == paper - 2 * b['ids'].numel() * (
        (max(0, cfg.ngram - 1) + cfg.smear) * cfg.n_embd + cfg.value_embed * cfg.n_layer * cfg.n_kv_head * cfg.hd)


def test_no_gradient_is_computed_when_none_is_wanted():
    model = Muse(CONFIGS['text'])
    b, _ = batch([pack_train([toy.shards(toy.documents())], None, 64, (1, 0, 0))], 64, dtype=torch.float32)
    counts = []
    for wanted in (False, True):
        model.requires_grad_(wanted)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model(b)
        counts.append(counted.get_total_flops())
    assert counts[0] == counts[1]


# ---------------------------------------------------------------- configuration

@pytest.mark.parametrize('bad, word', [
    (dict(act='gelu'), 'act=gelu'), (dict(n_embd=30), 'n_embd=30'), (dict(n_embd=12, n_head=4), 'odd'), (dict(n_kv_head=3), 'n_kv_head=3'),
    (dict(n_expert=2, top_k=3), 'top_k=3'), (dict(n_head=0), 'n_head=0'), (dict(top_k=0), 'top_k=0'), (dict(ngram=1), 'ngram=1'),
    (dict(smear=-1), 'smear=-1'), (dict(ngram=4, ngram_rows=0), 'ngram_rows=0')])
def test_bad_configurations_are_refused_in_one_line(bad, word):
    with pytest.raises(ValueError) as e:
        ModelConfig(**{**TINY, **bad})
    assert word in str(e.value) and '\n' not in str(e.value)


def test_configuration_fills_in_what_follows():
    assert ModelConfig(n_embd=96, n_head=4).ff == 384 and ModelConfig(n_embd=96, n_head=4, act='swiglu').ff == 256
    assert ModelConfig(n_embd=104, act='swiglu').ff == 288
    assert ModelConfig(n_head=6).n_kv_head == 6 and ModelConfig(n_embd=96, n_head=4, n_expert=4, top_k=3).expert_ff == 128
