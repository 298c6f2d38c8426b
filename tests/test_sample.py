"""
The generation engine against the plain loop: no cache, one row, everything recomputed by the trainer's own path at every position, grammar
and choice written a second time. Then every way of sharing work (batches, forks, admission, insertions, layouts) against that.
"""
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import toy
from data.codec import to_uint8, unpatchify
from data.collate import collate
from data.decoder import Decoder, packs
from data.grammar import HEIGHT, PICTURE, SOUND, TEXT, WIDTH, Row, follow_up
from model import D, ModelConfig, build, product
from data.checkpoint import save_checkpoint
from parallel import Spec, make_mesh, solo_mesh
from sample import Engine, bits, choose, features, generate, load_model, normal, score, turn, uniform
from test_parallel import ranks
from toy import codec

sp, L, V = codec.sp, codec.loc0, codec.n_vocab
TINY = dict(vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ff=48, flow_width=32, flow_depth=1, zero_init=False, norm_eps=.01,
            token_shift=True, audio_velocity=True)
INF = float('inf')
ROOT = Path(__file__).resolve().parents[1]


def muse(eager=3.0, stop=None, mesh=None, **more):
    """float64, so that equal means equal; gains that are not 1; special tokens that matter to the grammar come up often, <eot> as `stop`
    says."""
    model = build(ModelConfig(**{**TINY, **more}), mesh or solo_mesh(), 1337)[0].double().eval()
    for n, p in model.named_parameters():
        if n.endswith(('gain', '.ve', '.shift')) or n == 'memory' or n.startswith('before'):          # which begin at 0
            p.data += .3 * p.spec.local(torch.arange(math.prod(p.spec.shape)).sin().view(p.spec.shape))
    head = getattr(model, 'wte' if model.cfg.tie else 'head', None)                          # the first stage has a copy of tied ones
    for k in ('eot', 'boi', 'boa', 'aud', 'eoa') if head is not None else ():
        i = sp[k] - (head.spec.blocks[0][0] if head.spec.blocks else 0)
        if 0 <= i < len(head):
            head.data[i] *= stop if k == 'eot' and stop else eager
    return model


def prompts():
    """Text, a picture, a crop, sound, and ones that leave the model inside a header, a picture or a sound; all of different lengths."""
    rng = np.random.default_rng(0)
    picture = lambda h, w: rng.integers(0, 256, (8 * h, 8 * w, 3)).astype(np.uint8)
    sound = rng.standard_normal((4, 128)).astype(np.float32)
    docs = [[('text', 'hello')],
            [('image', picture(2, 3)), ('text', 'q?')],
            [('audio', sound), ('text', 'what is it')],
            [('text', 'draw'), ('ids', [sp['boi']])],
            [('text', 'say something'), ('ids', [sp['boa']])],
            [('image', picture(1, 2)), ('image', picture(2, 2), 0, (0.5, 0.0, 1.0, 0.5)),
             ('ids', [sp['point'], L + 5, L + 40, sp['boi'], L + 2, L + 2])],
            [('text', 'x')],
            [('ids', [sp['user']]), ('audio', sound[:2]), ('ids', [sp['boi'], L + 3])]]
    return [codec.encode(d) for d in docs]


# ---------------------------------------------------------------- the plain loop

def trained_path(model, doc):
    """An encoded document through collate and Muse.forward: hidden states (n - 1, C), the losses and the batch."""
    n, p, f = len(doc['ids']) - 1, len(doc['patches']), len(doc['frames'])
    s = dict(ids=doc['ids'], w=doc['w'], patch=doc['patches'], rc=doc['rc'], frame=doc['frames'], doc=np.array([[0, 0, 0], [n + 1, p, f]]))
    b, _ = collate([[(s, 0, 0, n)]], n, codec, 1, [(1, 0, 0)], past=model.cfg.past)
    b = {k: v.to(model.norm.gain.dtype) if v.is_floating_point() and k != 'rc' else v for k, v in b.items()}  # rc: float32
    keep = []
    hook = model.norm.register_forward_hook(lambda m, a, y: keep.append(y[0]))
    with torch.no_grad():
        out = model(b)
    hook.remove()
    return keep[0].detach(), out, b


def stands(ids):
    """('text',), ('height',), ('width', h), ('picture', h, w, patches so far) or ('sound',) after ids, by reading them from the start."""
    state = ('text',)
    for i in ids:
        if state[0] == 'text':
            state = ('height',) if i == sp['boi'] else ('sound',) if i == sp['boa'] else state
        elif state[0] == 'height':
            state = ('width', i - L)
        elif state[0] == 'width':
            state = ('picture', state[1], i - L, 0)
        elif state[0] == 'picture':
            state = (*state[:3], state[3] + 1) if i == sp['img'] else ('text',)
        elif i == sp['eoa']:
            state = ('text',)
    return state


def legal_ids(state, max_patches):
    if state[0] == 'sound':
        return [sp['aud'], sp['eoa']]
    if state[0] in ('height', 'width'):
        most = max(1, min(63, max_patches // (state[1] if state[0] == 'width' else 1)))
        return list(range(L + 1, L + 1 + most))
    return [i for i in range(V) if i not in [sp[k] for k in ('img', 'eoi', 'aud', 'eoa', 'pad')]]


def plain(model, doc, index=0, *, max_new=14, temperature=1.0, top_k=0, top_p=1.0, seed=1, max_patches=6, flow_steps=3, noise=0.5,
          guide=1.0, unprompted=None):
    """The slow loop -> dict(ids with <eot>, logp, logq, doc)."""
    tail = 0
    while stands(doc['ids'][:len(doc['ids']) - tail]) != ('text',):   # a prompt that ends inside a picture or a sound: so does its twin
        tail += 1
    glue = lambda a, b: {k: np.concatenate([a[k], np.asarray(b[k], a[k].dtype).reshape(-1, *a[k].shape[1:])]) for k in a}
    nothing = dict(ids=[], w=[], patches=[], rc=[], frames=[])
    docs = [doc] + ([glue(unprompted, dict(nothing, ids=doc['ids'][len(doc['ids']) - tail:], w=np.zeros(tail)))] if guide != 1 else [])
    new, logps, logqs = [], [], []
    while len(new) < max_new and (not new or new[-1] != sp['eot']):
        state, at = stands(docs[0]['ids']), len(docs[0]['ids'])
        more = dict(nothing, ids=[0], w=[0])
        if state[0] == 'picture' and state[3] < state[1] * state[2]:  # the next patch's place is known
            (_, h, w, k) = state
            more = dict(more, ids=[sp['img']], patches=np.zeros((1, D)), rc=[((k // w + .5) / h, (k % w + .5) / w)])
        h = [trained_path(model, glue(d, more))[0][-1:] for d in docs]
        if state[0] == 'picture':
            i, logp, logq = (sp['img'] if len(more['rc']) else sp['eoi']), 0.0, 0.0
        else:
            logits = model.logits(h[0])[0].detach().numpy()
            ok = np.array(legal_ids(state, max_patches))
            z = logits[ok] / (temperature or 1)
            order = np.argsort(-z)
            p = np.exp(z - z.max())
            keep = order[:top_k or len(ok)]
            before = np.cumsum(p[keep]) - p[keep]
            keep = keep[before < top_p * p[keep].sum()] if top_p < 1 else keep
            q = np.zeros(len(ok))
            q[keep] = p[keep] / p[keep].sum()
            j = int(z.argmax()) if temperature == 0 else int(np.searchsorted(np.cumsum(q), uniform(seed, index, at, 0)[0], side='right'))
            i, logq = int(ok[j]), 0.0 if temperature == 0 else math.log(q[j])
            logp = float(logits[i] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        more = dict(more, ids=[i], w=[int(state[0] != 'picture')])
        if i in (sp['img'], sp['aud']):
            e = torch.from_numpy(normal(bits(seed, index), np.array([at]), D)) * noise
            head = model.image_out if i == sp['img'] else model.audio_out
            x = head.sample(h[0], e, flow_steps, guide, h[1] if guide != 1 else None)[0].float().numpy()
            more.update(dict(patches=to_uint8(x)[None]) if i == sp['img'] else dict(frames=x[None, :128]))
        docs = [glue(d, more) for d in docs]
        new, logps, logqs = new + [i], logps + [logp], logqs + [logq]
    return dict(ids=new, logp=logps, logq=logqs, doc=docs[0])


def assert_same(got, want, name=''):
    """A result of the engine and one of plain(), or two of the engine."""
    ids = lambda o: o['ids'] + [sp['eot']] * (len(o['logp']) - len(o['ids']))
    assert ids(got) == ids(want), name
    for k in ('logp', 'logq'):
        np.testing.assert_allclose(got[k], want[k], atol=5e-6, err_msg=f'{name} {k}')
    for k in ('ids', 'patches'):
        np.testing.assert_array_equal(got['doc'][k], want['doc'][k], err_msg=f'{name} {k}')
    np.testing.assert_allclose(got['doc']['rc'], want['doc']['rc'], atol=1e-6)
    np.testing.assert_allclose(got['doc']['frames'], want['doc']['frames'], atol=1e-5, err_msg=name)


SMALL = dict(seed=1, max_new=14, max_patches=6, flow_steps=3)
HOW = dict(greedy=dict(temperature=0), seeded=dict(temperature=1.0), filtered=dict(temperature=0.8, top_k=20, top_p=0.9))
MODELS = dict(dense=dict(softcap=15.0), experts=dict(n_expert=4, top_k=2, expert_ff=24, shared_ff=16, act='swiglu', bins=9),
              tied=dict(tie=True, n_kv_head=1, ff=45, qk_norm=False, smear=2, value_embed=True, ngram=4, ngram_rows=101))


@pytest.fixture(scope='module')
def slow():
    """plain() of every prompt, remembered."""
    known = {}
    def get(name, how, index, which=None):
        key = name, how, index, index if which is None else which
        if key not in known:
            known[key] = plain(muse(**MODELS[name]), prompts()[key[3]], index, **HOW[how])
        return known[key]
    return get


# ---------------------------------------------------------------- cached, batched, admitted, forked, compacted

@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('name', MODELS)
def test_equals_the_plain_loop(name, how, slow):
    """All eight together, in places for three (the others are admitted as rows end) and one by one."""
    model, ps = muse(**MODELS[name]), prompts()
    got = generate(model, codec, ps, **SMALL, **HOW[how])
    for i, o in enumerate(got):
        assert_same(o, slow(name, how, i), f'prompt {i}')
    assert sum(len(o['doc']['patches']) + len(o['doc']['frames']) - len(p['patches']) - len(p['frames']) for o, p in zip(got, ps)) > 9
    assert sum(len(o['images']) for o in got) >= 2
    assert how != 'seeded' or len({len(o['ids']) for o in got}) > 1   # rows that ended left the batch
    for places in (3, 1):
        for i, o in enumerate(generate(model, codec, ps, batch=places, **SMALL, **HOW[how])):
            assert_same(o, slow(name, how, i), f'prompt {i} of {places}')


@pytest.mark.parametrize('more', (dict(), dict(n_embd=256, ff=512, act='swiglu', token_shift=False)), ids=('small', 'wide'))
def test_float32(more):
    """
    Log-probabilities, which are rounded, to 1e-4 where the ids agree: they do, but for near ties. The matrices of the wide one are large
    enough for oneDNN's order, the head among them, where there is oneDNN.
    """
    ps, model = prompts(), muse(**more).float()
    blocks, head = Decoder(model).laid(8)
    qkv, _, _, out, (up, down), *_ = blocks['0']
    able = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert {w.is_mkldnn for w in (qkv, out, up, down, head)} == {bool(more) and able}
    want = [plain(model, p, i) for i, p in enumerate(ps)]
    got = generate(model, codec, ps, **SMALL)
    assert sum(g['doc']['ids'].tolist() == w['doc']['ids'].tolist() for g, w in zip(got, want)) >= 7
    for g, w in zip(got, want):
        n = next((k for k, (a, b) in enumerate(zip(g['ids'], w['ids'])) if a != b), len(g['ids']))
        np.testing.assert_allclose(g['logp'][:n], w['logp'][:n], atol=1e-4)


@pytest.mark.parametrize('dtype', (torch.float64, torch.float32, torch.bfloat16))
def test_a_product_is_the_same_in_either_order(dtype):
    """Of every matrix of a block and of the head, for few rows and for many; small ones, and float64, are not laid anew."""
    dec = Decoder(muse(n_embd=256, n_kv_head=1, ff=64).to(dtype))
    (a, head), (b, other) = dec.laid(3), dec.laid(4)
    pairs = [(a['1'][0], b['1'][0]), (a['1'][3], b['1'][3]), *zip(a['1'][4], b['1'][4]), (head, other)]
    for w, packed in pairs:
        x = torch.randn(5, len(w), generator=torch.Generator().manual_seed(1)).to(dtype)
        torch.testing.assert_close(product(x, packed).double(), x.double() @ w.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
                                   atol=2 ** -9 * float(w.abs().max()) * len(w) ** .5 * 4 if dtype == torch.bfloat16 else 1e-4)
    assert not pairs[2][1].is_mkldnn and not (dtype == torch.float64 and any(p.is_mkldnn for _, p in pairs))


@pytest.mark.skipif(not packs(torch.bfloat16), reason='not on x86, or without AVX512')
@pytest.mark.parametrize('ff', (200, 512))
@torch.inference_mode()
def test_half(ff):
    """With large matrices in bfloat16 hidden states, read and decoded, are those of float32 but for its rounding, 2^-9 of a product."""
    model, doc = muse(n_embd=256, ff=ff, act='swiglu').float(), codec.encode([('text', 'a line of text, and what comes after it')])
    feed, n, h = features(codec, doc), len(doc['ids']) - 1, {}
    for half in (False, True):
        dec = Decoder(model, half)
        dec.fit(1, n + 1)
        first, last = [f[:n] for f in feed], [f[n:] for f in feed[:2]] + [feed[2][:0]]
        h[half] = torch.cat([sample.read(dec, codec, [f], [at], n + 1, [0]) for f, at in ((first, 0), (last, n))], 1)
        blocks, head = dec.laid(1 if half else 8)
        qkv, _, _, out, (up, down), *_ = blocks['0']
        assert {w.dtype for w in (qkv, out, up)} == {torch.bfloat16 if half else torch.float32}
        assert down.dtype == (torch.bfloat16 if half and ff == 512 else torch.float32)         # the other is small
        assert head.dtype == dec.kv.dtype == h[half].dtype == torch.float32
    off = (h[True] - h[False]).norm(dim=-1) / h[False].norm(dim=-1)
    assert 1e-4 < off.min() and off.max() < 1e-2
    got = generate(model, codec, prompts(), half=True, **SMALL)                # pictures and sound included
    assert all(g['ids'] for g in got)


def count(monkeypatch):
    """Counts positions that are read or decoded, and copies of cached ones."""
    seen = dict(read=[], copied=0, decoded=[])
    old_read, old_copy, old_step = sample.read, Decoder.copy, Decoder.step
    def read(dec, codec, feeds, *a):
        seen['read'] += [len(f[0]) for f in feeds]
        return old_read(dec, codec, feeds, *a)
    def copy(self, a, b, n):
        seen['copied'] += 1
        old_copy(self, a, b, n)
    def step(self, batch, n, S, rows=None, level=False):
        seen['decoded'] += [batch['ids'].shape[0]] * (rows is None)
        return old_step(self, batch, n, S, rows, level)
    monkeypatch.setattr(sample, 'read', read), monkeypatch.setattr(Decoder, 'copy', copy), monkeypatch.setattr(Decoder, 'step', step)
    return seen


@pytest.mark.parametrize('places', [8, 3])
def test_a_shared_prompt_is_read_once(places, slow, monkeypatch):
    """Two prompts, four requests each, mixed: each is read once if there is room for all, and nothing differs from requests that share
    nothing."""
    seen, ps = count(monkeypatch), prompts()
    asked = [1, 1, 5, 1, 5, 5, 1, 5]
    got = generate(muse(**MODELS['dense']), codec, [ps[k] for k in asked], batch=places, **SMALL)
    for i, k in enumerate(asked):
        assert_same(got[i], slow('dense', 'seeded', i, k), f'request {i}')
    assert len({tuple(o['ids']) for o in got}) == 8                   # numbers of their own
    want = [len(ps[1]['ids']), len(ps[5]['ids'])]
    assert sorted(seen['read'])[-2:] == want and (seen['read'] == want if places == 8 else len(seen['read']) <= 4)
    assert seen['copied'] >= 6 if places == 8 else seen['copied'] > 0


def test_forks_go_on_from_a_prefix(slow):
    """prompt + then, for several then: as if each had been one prompt; one read of the prefix."""
    model, prefix = muse(), [('image', np.full((16, 8, 3), 99, np.uint8)), ('text', 'scene'), ('ids', [sp['point'], L + 7])]
    ends = [[('ids', [L + 9])], [('text', 'and'), ('image', np.full((8, 8, 3), 5, np.uint8), 1, (0, 0, .5, .5))],
            [('ids', [sp['boi'], L + 1])],
            [('ids', [sp['agent'], sp['r1']])], [], [('audio', np.ones((2, 128), np.float32)), ('ids', [sp['boa']])]]
    engine, shared = Engine(model, codec, rows=4, max_patches=6, flow_steps=3), codec.encode(prefix)
    rows = [engine.add(shared, then, index=i, seed=1, max_new=9) for i, then in enumerate(ends)]
    engine.run()
    for i, (r, then) in enumerate(zip(rows, ends)):
        whole = codec.encode(prefix + then)
        want, k = plain(model, whole, i, max_new=9), len(whole['ids']) - len(shared['ids'])
        assert r.result['doc']['ids'].tolist() == want['doc']['ids'].tolist(), i
        np.testing.assert_allclose(r.result['logp'][k:], want['logp'], atol=5e-6)
        np.testing.assert_array_equal(r.result['doc']['patches'], want['doc']['patches'])
        assert r.result['w'][:k] == [0] * k and r.result['ids'][:k] == whole['ids'][len(shared['ids']):].tolist()


def test_finished_rows_are_compacted_away(monkeypatch):
    """Steps compute as many rows as there are, not as there were; the last rows move down."""
    seen, model, ps = count(monkeypatch), muse(), prompts()
    engine = Engine(model, codec)
    sizes = (3, 9, 3, 12, 3, 3, 9, 15)
    rows = [engine.add(ps[i % 2], index=i, seed=1, max_new=n, stop=()) for i, n in enumerate(sizes)]
    for r in rows:
        r.stop = set()
    engine.run()
    assert max(seen['decoded']) == 8 and seen['decoded'][-1] == 1
    assert sum(seen['decoded']) == sum(len(r.result['logp']) - 1 for r in rows)
    for i, r in enumerate(rows):
        assert_same(r.result, plain_without_stop(model, ps[i % 2], i, len(r.result['logp'])), f'row {i}')


def test_random_numbers_that_were_made_in_advance_are_those_of_each_position():
    """8 rows have them for 129 positions at once; what is said after those is right, too."""
    model, doc = muse(), prompts()[0]
    engine = Engine(model, codec)
    rows = [engine.add(doc, index=i, seed=1, max_new=140) for i in range(8)]
    for r in rows:
        r.stop = set()
    engine.run()
    assert_same(rows[3].result, plain_without_stop(model, doc, 3, 140))


def plain_without_stop(model, doc, index, n):
    """plain(), over and over where it said <eot>."""
    parts = []
    while sum(len(p['ids']) for p in parts) < n:
        parts.append(plain(model, parts[-1]['doc'] if parts else doc, index, max_new=n - sum(len(p['ids']) for p in parts), max_patches=64,
                           flow_steps=20))
    return dict(parts[-1], **{k: sum((p[k] for p in parts), []) for k in ('ids', 'logp', 'logq')})


def test_requests_come_while_others_run(slow):
    """Added at any time, with options of their own."""
    model, ps = muse(**MODELS['dense']), prompts()
    engine, rows = Engine(model, codec, rows=3, max_patches=6, flow_steps=3), []
    hows = list(HOW)
    for i, p in enumerate(ps):
        rows.append(engine.add(p, index=i, seed=1, max_new=14, **HOW[hows[i % 3]]))
        engine.step(), engine.step()
    engine.run()
    for i, r in enumerate(rows):
        assert_same(r.result, slow('dense', hows[i % 3], i), f'request {i}')


def test_long_prompts_are_read_in_chunks():
    """Over 512 positions, beside a short row that goes on meanwhile; a picture lies across the chunks."""
    model = muse(stop=.1)
    rng = np.random.default_rng(0)
    long = codec.encode([('text', 'n' * 500), ('image', rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)), ('text', 'm' * 600)])
    short = codec.encode([('text', 'x')])
    engine, heard = Engine(model, codec, max_patches=6, flow_steps=2, stream=lambda row, i: heard.append(row.index)), []
    rows = [engine.add(p, index=i, seed=1, max_new=4, temperature=0) for i, p in enumerate((long, short))]
    engine.run()
    for i, (r, p) in enumerate(zip(rows, (long, short))):
        assert_same(r.result, plain(model, p, i, max_new=4, temperature=0, flow_steps=2))
    assert heard[:2] == [1, 1]                                        # the short one did not wait


# ---------------------------------------------------------------- stops, insertions, rows that wait

def cut(doc, n):
    """The first n positions of an encoded document."""
    ids = doc['ids'][:n]
    return dict(ids=ids, w=doc['w'][:n], 
                **{k: doc[k][:int((ids == sp[m]).sum())] for k, m in (('patches', 'img'), ('rc', 'img'), ('frames', 'aud'))})


def test_insertions_are_read_and_the_row_goes_on():
    """
    At each <point> that is said a document is inserted: text, a crop, a sound, an open header, nothing. From there on all is as if the
    document so far had been the prompt; what was inserted has weight 0.
    """
    model = muse(stop=.5)
    model.head.data[sp['point']] *= 20
    crop = np.random.default_rng(3).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    given = [[('ids', [sp['out']]), ('text', 'result'), ('ids', [sp['/out']])],
             [('image', crop, 0, (.25, .25, .75, .5)), ('text', 'a crop')],
             [('audio', np.ones((3, 128), np.float32))], [('ids', [sp['boi'], L + 1, L + 2])], []]
    inserted = []
    def on_stop(row):
        if row.ids[-1] == sp['point'] and len(inserted) < 12:
            inserted.append((row, len(row.ids), codec.encode(given[len(inserted) % 5])['ids'].tolist()))
            return given[(len(inserted) - 1) % 5]
    engine = Engine(model, codec, rows=3, max_patches=6, flow_steps=3, on_stop=on_stop)
    rows = [engine.add(p, index=i, seed=1, max_new=24, stop=[sp['point']]) for i, p in enumerate(prompts())]
    engine.run()
    assert len(inserted) >= 10
    for i, r in enumerate(rows):
        o, n0, mine = r.result, len(r.prompt['ids']), [(at, new) for row, at, new in inserted if row is r]
        for k, (at, new) in enumerate(mine):
            start, end = at + len(new), mine[k + 1][0] if k + 1 < len(mine) else len(o['logp'])
            assert o['doc']['ids'][n0 + at:n0 + start].tolist() == new and o['w'][at:start] == [0] * len(new)
            want = plain(model, cut(o['doc'], n0 + start), i, max_new=end - start)
            assert o['doc']['ids'][n0 + start:n0 + end].tolist() == want['ids']
            np.testing.assert_allclose(o['logp'][start:end], want['logp'], atol=5e-6)


def test_insertions_after_a_loc_token_that_was_said():
    """Its coordinates go with it into the feed, and are not left for what is said next; rows above those that decode have some, too."""
    model = muse(stop=.5)
    at = [L + 3, L + 9]
    model.head.data[at] *= 20
    seen = []
    def on_stop(row):
        if row.ids[-1] in at and len(seen) < 8:
            seen.append((row, len(row.ids)))
            return [('text', 'so')]
    engine = Engine(model, codec, rows=3, max_patches=6, flow_steps=3, on_stop=on_stop)
    rows = [engine.add(p, index=i, seed=1, max_new=20, stop=at) for i, p in enumerate(prompts())]
    engine.run()
    assert len(seen) >= 6 and not engine.rc and not engine.x
    for i, r in enumerate(rows):
        o, n0, mine = r.result, len(r.prompt['ids']), [n for row, n in seen if row is r]
        for n, then in zip(mine, [*mine[1:], len(o['logp'])]):
            want = plain(model, cut(o['doc'], n0 + n + 2), i, max_new=then - n - 2) if then > n + 2 else dict(ids=[], logp=[])
            assert o['doc']['ids'][n0 + n + 2:n0 + then].tolist() == want['ids']
            np.testing.assert_allclose(o['logp'][n + 2:then], want['logp'], atol=5e-6)


def test_a_row_waits_for_its_agents():
    """A row that says <tool> asks two others, which are admitted though all places are taken, and goes on with what they said."""
    model = muse(stop=.5)
    model.head.data[sp['tool']] *= 20
    children, inserted = [], {}
    def on_stop(row):
        if row.ids[-1] != sp['tool'] or row in [c for c, _ in children] or len(children) >= 6:
            return None
        mine = [engine.add(codec.encode([('text', f'agent {k}')]), index=50 + 2 * len(children) + k, seed=1, max_new=3, on_end=back)
                for k in range(2)]
        children.extend((c, (row, mine)) for c in mine)
        return 'wait'
    def back(child):
        row, mine = dict(children)[child]
        if all(c.result for c in mine):
            said = [sp['report']] + [i for c in mine for i in c.result['ids'] if i < 256] + [sp['/report']]
            inserted.setdefault(row, []).append((len(row.ids), len(row.ids) + len(said)))
            engine.insert(row, [('ids', said, 0)])
    engine = Engine(model, codec, rows=2, max_patches=6, flow_steps=3, on_stop=on_stop)
    rows = [engine.add(p, index=i, seed=1, max_new=14, stop=[sp['tool']]) for i, p in enumerate(prompts())]
    engine.run()
    assert len(children) == 6
    for c, (parent, _) in children:
        assert_same(c.result, plain(model, c.prompt, c.index, max_new=3))
    for r, places in inserted.items():
        o, n0 = r.result, len(r.prompt['ids'])
        for k, (at, start) in enumerate(places):
            assert o['ids'][at - 1] == sp['tool'] and o['ids'][at] == sp['report'] and o['w'][at - 1:start] == [1] + [0] * (start - at)
            end = places[k + 1][0] if k + 1 < len(places) else len(o['logp'])
            want = plain(model, cut(o['doc'], n0 + start), r.index, max_new=end - start)['ids'] if end > start else []
            assert o['doc']['ids'][n0 + start:n0 + end].tolist() == want


def test_rows_that_wait_for_nobody_are_an_error():
    model = muse()
    engine = Engine(model, codec, on_stop=lambda row: 'wait')
    engine.add(prompts()[0], seed=1, max_new=200)
    with pytest.raises(RuntimeError, match='wait'):
        engine.run()


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match='empty'):
        generate(muse(), codec, [codec.encode([('text', '')])])


# ---------------------------------------------------------------- layouts

def on_rank(rank, name, how, tp, pp, sequence):
    mesh = make_mesh(tp=tp, pp=pp, n_kv_head=MODELS[name].get('n_kv_head', 2), tie=MODELS[name].get('tie', False), sp=sequence)
    ps = prompts()
    out = generate(muse(mesh=mesh, **MODELS[name]), codec, ps, batch=5, **SMALL, **HOW[how])
    guided = generate(muse(mesh=mesh, **MODELS[name]), codec, ps[3:6], guide=2.0, unprompted=codec.encode([('ids', [sp['user']])]), **SMALL)
    return out, guided, score(muse(mesh=mesh, **MODELS[name]), codec, [codec.encode(d) for d in toy.documents(6)])


@pytest.mark.parametrize('name, how, tp, pp, sequence', [
    ('dense', 'seeded', 2, 1, False), ('dense', 'filtered', 1, 2, False), ('tied', 'greedy', 2, 1, True), ('tied', 'seeded', 1, 2, False),
    ('experts', 'seeded', 2, 1, False), ('experts', 'seeded', 2, 1, True), ('experts', 'greedy', 2, 2, False),
    ('dense', 'seeded', 4, 1, False)])
def test_layouts_give_what_one_process_gives(name, how, tp, pp, sequence, slow):
    """Vocabularies and tokens that do not divide by tp, fewer key/value heads than tp, stages, experts; every rank has the same results."""
    model, got = muse(**MODELS[name]), ranks(tp * pp, on_rank, name, how, tp, pp, sequence)
    guided = generate(model, codec, prompts()[3:6], guide=2.0, unprompted=codec.encode([('ids', [sp['user']])]), **SMALL)
    scores = score(model, codec, [codec.encode(d) for d in toy.documents(6)])
    for r, (out, other, s) in enumerate(got):
        for i, o in enumerate(out):
            assert_same(o, slow(name, how, i), f'rank {r} prompt {i}')
        for i, o in enumerate(other):
            assert_same(o, guided[i], f'rank {r} guided {i}')
        np.testing.assert_allclose(s, scores, atol=5e-6)


# ---------------------------------------------------------------- guidance

@pytest.mark.parametrize('which', range(8))
def test_guided_equals_the_plain_loop(which):
    """x_1(h0) + g (x_1(h) - x_1(h0)), h0 after the unprompted, the header that the prompt left open, and what was generated."""
    model, ps = muse(stop=1.0), prompts()
    empty = codec.encode([('ids', [sp['user'], sp['assistant']])])
    want = plain(model, ps[which], which, guide=2.0, unprompted=empty)
    for places in (8, 2) if which == 0 else (8,):
        assert_same(generate(model, codec, ps, guide=2.0, unprompted=empty, batch=places, **SMALL)[which], want)
    without = generate(model, codec, ps, guide=1.0, unprompted=empty, **SMALL)[which]
    made = [k for k, i in enumerate(want['ids']) if i in (sp['img'], sp['aud'])]
    assert without['ids'][:(made + [99])[0]] == [i for i in want['ids'] if i != sp['eot']][:(made + [99])[0]]
    if made:                                                          # up to the first payload nothing differs, that one does
        n = len(ps[which]['patches' if want['ids'][made[0]] == sp['img'] else 'frames'])
        assert any((without['doc'][k][n:n + 1] != want['doc'][k][n:n + 1]).any() for k in ('patches', 'frames'))


# ---------------------------------------------------------------- for the trainer

@pytest.mark.parametrize('name', MODELS)
def test_log_probabilities_equal_those_of_the_trainer(name):
    """out['doc'], as it is, through the loader and the model: -nll of the training loss is logp wherever the model chose; logq has the
    grammar's mask on top."""
    model, ps, checked, masked = muse(**MODELS[name]), prompts(), 0, 0
    for p, o in zip(ps, generate(model, codec, ps, **SMALL)):
        n0, new = len(p['ids']), o['doc']['ids'][len(p['ids']):]
        h, out, b = trained_path(model, o['doc'])
        n = int(b['txt_w'].sum())
        nll = dict(zip(b['txt_i'][:n].tolist(), out['txt_each'][:n].tolist()))
        assert sorted(nll) == [n0 + k - 1 for k, w in enumerate(o['w']) if w]              # exactly what was chosen is learned
        for k, i in enumerate(new):
            state = stands(o['doc']['ids'][:n0 + k])
            if o['w'][k]:
                assert o['logp'][k] == pytest.approx(-nll[n0 + k - 1], abs=1e-5)
                p_all = torch.softmax(model.logits(h[n0 + k - 1][None])[0].detach(), 0)[legal_ids(state, 6)]
                assert o['logq'][k] == pytest.approx(o['logp'][k] - math.log(float(p_all.sum())), abs=1e-5)
                checked, masked = checked + 1, masked + (state[0] != 'text')
            else:
                assert o['logp'][k] == o['logq'][k] == 0 and state[0] == 'picture'
    assert checked > 25 and masked > 2


def test_a_transcript_is_a_document():
    """ids, w, patches, rc and frames of out['doc'] are what Codec.encode makes of prompt, ids, pictures and sounds."""
    model, seen = muse(stop=1.0), 0
    for p, o in zip(prompts()[:3], generate(model, codec, prompts()[:3], **dict(SMALL, max_new=40))):
        if o['images'] or o['audio']:
            segments, ids, images, sounds = [], o['doc']['ids'][len(p['ids']):].tolist(), iter(o['images']), iter(o['audio'])
            while ids:
                if ids[0] == sp['boi'] and sp['eoi'] in ids or ids[0] == sp['boa'] and sp['eoa'] in ids and ids[1] != sp['eoa']:
                    end = ids.index(sp['eoi' if ids[0] == sp['boi'] else 'eoa']) + 1
                    segments.append(('image', next(images)) if ids[0] == sp['boi'] else ('audio', next(sounds)))
                elif ids[0] in (sp['boi'], sp['boa']) and ids[1:2] != [sp['eoa']]:
                    break                                             # cut off
                else:
                    segments, end = segments + [('ids', ids[:1])], 1
                ids = ids[end:]
            e, n, seen = codec.encode(segments), len(p['ids']), seen + 1
            for k, a, b in (('ids', n, len(ids)), ('patches', len(p['patches']), 0), ('frames', len(p['frames']), 0)):
                got = o['doc'][k][a:len(o['doc'][k]) - b] if b else o['doc'][k][a:][:len(e[k])]
                np.testing.assert_array_equal(got, e[k])
            np.testing.assert_allclose(o['doc']['rc'][len(p['rc']):][:len(e['rc'])], e['rc'], atol=1e-6)
    assert seen


@pytest.mark.parametrize('name', MODELS)
def test_score_equals_the_training_loss(name):
    model = muse(**MODELS[name])
    docs = [codec.encode(d) for d in toy.documents(10)]
    got, one = score(model, codec, docs), score(model, codec, docs, batch=1)
    for i, e in enumerate(docs):
        _, out, b = trained_path(model, e)
        want = -float((out['txt_each'] * b['txt_w']).sum())
        assert got[i] == pytest.approx(want, abs=1e-4) and one[i] == pytest.approx(want, abs=1e-4)
    assert len(set(got)) == 10


def test_score_of_a_document_without_targets_is_zero():
    assert score(muse(), codec, [codec.encode([('text', 'nothing', 0)]), codec.encode([('text', 'a')])]) == [0, 0]


# ---------------------------------------------------------------- what comes back

def test_seeds_and_numbers_decide_all():
    model, ps = muse(), prompts()
    a, b, c = (generate(model, codec, ps, **dict(SMALL, seed=s, max_new=20)) for s in (1, 1, 2))
    for x, y in zip(a, b):
        assert_same(x, y)
    assert [o['ids'] for o in c] != [o['ids'] for o in a]
    same = generate(model, codec, [ps[0]] * 4, **dict(SMALL, max_new=20))
    assert len({tuple(o['ids']) for o in same}) == 4 and same[0]['ids'] == a[0]['ids']           # equal prompts get numbers of their own


def test_stream_reports_every_id_of_its_row():
    model, ps, heard = muse(), prompts(), {}
    out = generate(model, codec, ps, **SMALL, batch=3, stream=lambda row, i: heard.setdefault(row.index, []).append(i))
    for i, o in enumerate(out):
        assert heard[i] in (o['ids'], o['ids'] + [sp['eot']])
        assert len(o['logp']) == len(o['logq']) == len(o['w']) == len(heard[i])
    assert any(len(h) > len(o['ids']) for h, o in zip(heard.values(), (out[i] for i in heard)))   # someone said <eot>: counted, not shown
    assert all(sp['eot'] not in o['ids'] for o in out)


def test_blind_zeroes_the_payloads_of_the_prompt_and_nothing_else():
    model, ps = muse(), prompts()
    black = dict(ps[1], patches=np.full_like(ps[1]['patches'], 200))
    for p in (ps[1], ps[2]):
        feed, dark = features(codec, p), features(codec, p, True)
        assert (feed[0] == dark[0]).all() and (feed[1] == dark[1]).all() and feed[2].shape == dark[2].shape
        assert feed[2].any() and not dark[2].any()
    a, b = (generate(model, codec, [p], blind=True, temperature=0, max_new=8)[0]['logp'] for p in (ps[1], black))
    c, d = (generate(model, codec, [p], blind=False, temperature=0, max_new=8)[0]['logp'] for p in (ps[1], black))
    assert a == b and c != d and a != c
    assert score(model, codec, [ps[1]], blind=True) == score(model, codec, [black], blind=True) != score(model, codec, [black])


def test_generated_ids_obey_the_grammar_and_its_limits():
    """Of an untrained model: every header fits, every picture has its patches, every sound its frames, in ids and in what comes back."""
    model, seen = muse(4.0), 0
    for o in generate(model, codec, [codec.encode([('text', t)]) for t in 'abcdefgh'], seed=3, max_new=80, max_patches=5, flow_steps=1):
        ids, at, images, sounds = o['ids'], 0, [], []
        while at < len(ids):
            if ids[at] == sp['boi'] and at + 2 < len(ids):
                h, w = ids[at + 1] - L, ids[at + 2] - L
                assert 1 <= h <= 5 and 1 <= w and h * w <= 5
                body = ids[at + 3:at + 3 + h * w + 1]
                assert body == ([sp['img']] * (h * w) + [sp['eoi']])[:len(body)]
                images += [(8 * h, 8 * w, 3)] if len(body) == h * w + 1 else []
                at += 3 + len(body)
            elif ids[at] == sp['boa']:
                n = 0
                while at + 1 + n < len(ids) and ids[at + 1 + n] == sp['aud']:
                    n += 1
                assert at + 1 + n == len(ids) or ids[at + 1 + n] == sp['eoa']
                sounds += [n] if n else []                            # one that was cut off counts
                at += n + 2
            else:
                assert ids[at] not in [sp[k] for k in ('img', 'eoi', 'aud', 'eoa', 'pad', 'eot')]
                at += 1
        assert [x.shape for x in o['images']] == images and [len(x) for x in o['audio']] == sounds
        assert o['text'] == codec.untext([i for i in ids if i not in (sp['img'], sp['aud'])])
        seen += len(images) + len(sounds)
    assert seen > 5


def test_a_model_without_heads_makes_no_pictures_and_sounds():
    model = muse(6.0, image=False, audio=False)
    for o in generate(model, codec, [codec.encode([('text', t)]) for t in 'abcd'], seed=1, max_new=40, max_patches=4):
        assert not o['images'] and not o['audio'] and sp['boi'] not in o['ids'] and sp['boa'] not in o['ids']


def test_ids_of_a_wider_vocabulary_are_never_said():
    """A head with more rows than the tokenizer has ids (padded to a round number)."""
    model = muse(vocab_size=V + 12)
    model.head.data[V:] *= 10
    assert max(i for o in generate(model, codec, prompts(), **SMALL) for i in o['ids']) < V


# ---------------------------------------------------------------- grammar

def row(*segments):
    return Row(codec, codec.encode(list(segments)))


def test_a_picture_by_the_grammar():
    r = row(('text', 'a'))
    assert r.mode == TEXT and r.follow(sp['point']) == (-1,) * 4 and r.mode == TEXT
    assert r.follow(L + 32, sp['point']) == (32.5 / 64, -1, -1, -1) and r.follow(L, L + 32) == (.5 / 64, 32.5 / 64, -1, -1)
    r.follow(sp['boi'])
    assert r.mode == HEIGHT and r.side(12) == 12 and r.side(1000) == 63
    assert r.follow(L + 3, sp['boi']) == (3.5 / 64, -1, -1, -1)
    assert r.mode == WIDTH and r.side(12) == 4 and r.side(1) == 1  # 3 w <= 12; at least one
    assert r.follow(L + 2, L + 3) == (2.5 / 64, 3.5 / 64, .5 / 3, .25)
    rng, made = np.random.default_rng(0), []
    for k in range(6):
        assert r.mode == PICTURE and r.todo == 6 - k
        own, nxt = ((k // 2 + .5) / 3, (k % 2 + .5) / 2), (((k + 1) // 2 + .5) / 3, ((k + 1) % 2 + .5) / 2) if k < 5 else (-1, -1)
        assert r.follow(sp['img']) == own + nxt
        made.append(torch.from_numpy(rng.uniform(-1.5, 1.5, D).astype(np.float32)))
        r.patches.append(None), r.rc.append(own), r.made[sp['img']].append(made[-1])
    assert r.mode == PICTURE and not r.todo and not r.pictures
    r.follow(sp['eoi'])
    assert r.mode == TEXT
    r.follow(sp['boi']), r.follow(L + 1), r.follow(L + 1)            # a second one begins anew
    assert r.mode == PICTURE and r.todo == 1
    r.follow(sp['img']), r.patches.append(None), r.rc.append((.5, .5)), r.made[sp['img']].append(made[0]), r.follow(sp['eoi'])
    r.finish()
    a, b = r.result['images']
    assert (a == unpatchify(to_uint8(np.stack(made)), 3, 2)).all() and a.shape == (24, 16, 3) and b.shape == (8, 8, 3)


def test_a_sound_that_is_cut_off_is_kept():
    model = muse(1.0)
    model.head.data[sp['aud']] *= 0
    model.head.data[sp['eoa']] *= 0
    engine = Engine(model, codec, flow_steps=1)
    rows = [engine.add(codec.encode([('ids', [sp['boa']])]), index=i, max_new=3, seed=1) for i in range(20)]
    engine.run()
    whole = [r.result for r in rows if r.result['ids'] == [sp['aud']] * 3]
    assert whole and all([x.shape for x in o['audio']] == [(3, 128)] and o['text'] == '' for o in whole)
    assert all(not r.result['audio'] for r in rows if r.result['ids'][0] == sp['eoa'])               # an empty one is none


def test_a_prompt_leaves_the_row_where_it_ends():
    picture, sound = np.zeros((16, 8, 3), np.uint8), np.zeros((2, 128), np.float32)
    for segments, mode, tail in (([('image', picture)], TEXT, 0), ([('image', picture), ('audio', sound)], TEXT, 0),
                                 ([('ids', [sp['boi'], L + 6])], WIDTH, 2),
                                 ([('image', picture), ('ids', [sp['boi'], L + 2, L + 2])], PICTURE, 3), ([('ids', [sp['boa']])], SOUND, 1),
                                 ([('ids', [sp['boa'], sp['eoa']])], TEXT, 0), ([('text', 'a'), ('ids', [sp['boi']])], HEIGHT, 1)):
        r = row(*segments)
        assert (r.mode, r.tail) == (mode, tail)
        assert mode != PICTURE or r.centre() == (.25, .25)


def test_prompt_features_equal_those_of_the_loader():
    """Ids, payloads and coordinates of a fed prompt against collate, for pictures, a crop, sounds and points; whole, and cut anywhere
    outside a picture."""
    rng = np.random.default_rng(0)
    image = lambda h, w: rng.integers(0, 256, (8 * h, 8 * w, 3)).astype(np.uint8)
    e = codec.encode([('image', image(2, 3)), ('ids', [sp['point'], L + 3, L + 60, sp['box'], L, L + 1, L + 2, L + 63]),
                      ('audio', rng.standard_normal((3, 128)).astype(np.float32)),
                      ('image', image(1, 2), 0, (0.5, 0.25, 1, 0.5)), ('text', 'end')])
    s = dict(ids=e['ids'], w=e['w'], patch=e['patches'], rc=e['rc'], frame=e['frames'], doc=np.array([[0, 0, 0], [len(e['ids']), 8, 3]]))
    n = len(e['ids']) - 1
    b, _ = collate([[(s, 0, 0, n)]], n, codec, 1, [(1, 0, 0)])
    ids, coords, x = features(codec, e)
    rc = torch.full((n, 4), -1.0)
    live = (b['rc'] != -1).any(1)
    rc[b['rc_i'][live]] = b['rc'][live]
    assert torch.equal(torch.from_numpy(coords[:-1]), rc)
    want = torch.zeros(n, D)
    for k, c in (('img', 8), ('aud', 3)):
        want[b[f'xin_{k}_i'][:c]] = b[f'xin_{k}'][:c]
    assert torch.equal(torch.from_numpy(x), want[np.isin(ids[:-1], (sp['img'], sp['aud']))])
    for cut in (13, 15, 18, 20):
        k, f = (int((ids[:cut] == sp[m]).sum()) for m in ('img', 'aud'))
        rest = dict(ids=ids[cut:], patches=e['patches'][k:], rc=e['rc'][k:], frames=e['frames'][f:])
        np.testing.assert_array_equal(features(codec, rest, before=ids[cut - 1])[1], coords[cut:])


# ---------------------------------------------------------------- random numbers, choose

def test_uniform_numbers():
    """In (0, 1), even, uncorrelated along each argument; a hash: the same for ever."""
    u = uniform(np.arange(8)[:, None, None], np.arange(50)[:, None], np.arange(50), 0)
    assert u.shape == (8, 50, 50) and 0 < u.min() and u.max() < 1 and len(np.unique(u)) == u.size
    hist = np.histogram(u, 20, (0, 1))[0] / u.size * 20
    assert abs(hist - 1).max() < 4 * (20 / u.size) ** .5
    for axis in range(3):
        a, b = np.moveaxis(u, axis, 0)[1:].ravel(), np.moveaxis(u, axis, 0)[:-1].ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / a.size ** .5
    assert uniform(1, 2, 3).tolist() == uniform(np.uint64(1), 2, np.array([3])).tolist() != uniform(1, 3, 2).tolist()
    e = normal(np.ones(300, np.int64), np.arange(300), D)
    assert e.shape == (300, D) and abs(e.mean()) < .02 and abs(e.std() - 1) < .02 and abs(np.corrcoef(e[:, 0], e[:, 1])[0, 1]) < .25


LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, 9.0, 2.5])
BIAS = torch.tensor([0, 0, 0, 0, -INF, 0])


def drawn(n=4000, temperature=1.0, top_k=6, top_p=2.0):
    """Frequencies (6,) and the log-probability that was said of each id; a third of the rows wants something else."""
    full = lambda v, other: torch.where(torch.arange(n) % 3 > 0, v, other).double()
    i, logp, logq = choose(LOGITS.expand(n, 6), BIAS, full(temperature, 0.7), torch.from_numpy(uniform(5, np.arange(n))), full(top_k, 2),
                           full(top_p, 2.0))
    mine = torch.arange(n) % 3 > 0
    torch.testing.assert_close(logp.float(), torch.log_softmax(LOGITS, 0)[i], atol=2e-6, rtol=0)
    assert all(len(logq[mine & (i == k)].unique()) <= 1 for k in range(6))
    return torch.bincount(i[mine], minlength=6) / mine.sum(), {int(k): float(logq[mine & (i == k)][0]) for k in i[mine].unique()}


def follows(result, p):
    freq, said = result
    assert ((freq - p).abs() < 4 * (p * (1 - p) / 2600).sqrt() + 1e-9).all(), (freq, p)
    for i, logq in said.items():
        assert logq == pytest.approx(math.log(p[i]), abs=1e-5)


def only(p, keep):
    q = torch.zeros(6)
    q[keep] = p[keep]
    return q / q.sum()


def test_choose_follows_temperature_top_k_and_top_p():
    p = (LOGITS + BIAS).softmax(0)                                    # sorted: 1, 5, 3, 0, 2 with .466 .283 .171 .063 .038
    follows(drawn(), p)
    follows(drawn(temperature=0.5), ((LOGITS + BIAS) / 0.5).softmax(0))
    follows(drawn(temperature=2.0), ((LOGITS + BIAS) / 2.0).softmax(0))
    follows(drawn(top_k=1), only(p, [1]))
    follows(drawn(top_k=3), only(p, [1, 5, 3]))
    follows(drawn(top_p=0.0), only(p, [1]))                           # never nothing
    follows(drawn(top_p=0.4), only(p, [1]))                           # the least set with at least that mass
    follows(drawn(top_p=0.5), only(p, [1, 5]))
    follows(drawn(top_p=0.9), only(p, [1, 5, 3]))
    follows(drawn(top_p=0.93), only(p, [1, 5, 3, 0]))
    sharp = ((LOGITS + BIAS) / 0.5).softmax(0)                        # .604 .222 .. after the temperature: .8 is reached by two
    follows(drawn(temperature=0.5, top_p=0.8), only(sharp, [1, 5]))
    follows(drawn(top_k=3, top_p=0.8), only(p, [1, 5]))               # of the three that top_k left, .466 + .283 of .920 is .814
    assert float(p[[1, 5]].sum()) < 0.8 < float(only(p, [1, 5, 3])[[1, 5]].sum())


def test_choose_greedy_and_the_edges_of_u():
    zero, edge = torch.zeros(2).double(), torch.tensor([2.0 ** -41, 1 - 2.0 ** -41], dtype=torch.float64)
    i, logp, logq = choose(LOGITS.expand(2, 6), BIAS, zero, edge)
    assert i.tolist() == [1, 1] and logq.tolist() == [0, 0] and logp[0] == pytest.approx(float(torch.log_softmax(LOGITS, 0)[1]))
    assert choose(LOGITS.expand(2, 6), BIAS, zero + 1, edge)[0].tolist() == [0, 5]        # never an id without probability
    last = torch.tensor([-INF, 0, 0, 0, -INF, -INF])
    assert choose(LOGITS.expand(2, 6), last, zero + 1, edge)[0].tolist() == [1, 3]


def test_a_row_with_nan_spoils_no_other():
    """A policy that has diverged on one prompt: some id comes out of it, and the rows beside it choose as if it were not there."""
    one, u = torch.ones(3).double(), torch.tensor([.2, .5, .8], dtype=torch.float64)
    for t in (one, 0 * one):
        fine, _, _ = choose(LOGITS.expand(3, 6), BIAS, t, u)
        i, logp, _ = choose(torch.stack((LOGITS, LOGITS * math.nan, LOGITS)), BIAS, t, u)
        assert i[[0, 2]].tolist() == fine[[0, 2]].tolist() and 0 <= i[1] < 6 and logp[1].isnan() and not logp[[0, 2]].isnan().any()


# ---------------------------------------------------------------- checkpoints and the command line

def save(out, step, model):
    state = [*((f'param/{n}', p) for n, p in model.named_parameters()),
             *((f'buffer/{n}', b) for n, b in model.named_buffers() if n.endswith('.bias'))]
    save_checkpoint(out, f'step_{step:08d}', ((n, Spec(tuple(x.shape)), x.data.float()) for n, x in state),
                    dict(step=step, model=asdict(model.cfg), codec=codec.state()), solo_mesh())
    return out / f'step_{step:08d}'


def spoil(folder, name=None):
    """One byte of its largest file, or of the named one."""
    path = folder / name if name else max(folder.iterdir(), key=lambda f: f.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('name', ['manifest.json', None])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, name):
    """One line says so; if all are damaged, or the damaged one was named, it is an error."""
    old, new = (save(tmp_path, k, build(ModelConfig(**TINY), solo_mesh(), k)[0]) for k in (1, 2))
    both = [load_model(p)[0] for p in (tmp_path, old)]
    assert not torch.equal(both[0].wte, both[1].wte) and not capsys.readouterr().err
    spoil(new, name)
    assert torch.equal(load_model(tmp_path)[0].wte, both[1].wte)
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and str(new) in err and str(old) in err
    with pytest.raises(ValueError, match='step_00000002'):
        load_model(new)
    spoil(old, name)
    with pytest.raises(ValueError, match='step_00000001'):
        load_model(tmp_path)


@pytest.fixture(scope='module')
def talker(tmp_path_factory):
    """The folder of a checkpoint that says points, pictures and sounds."""
    model = muse(6.0, stop=.3)
    model.head.data[[sp['point'], *range(L, L + 64)]] *= 2
    return save(tmp_path_factory.mktemp('talker'), 1, model).parent


def run(*args, processes=1, stdin=''):
    """sample.py, under torchrun if there are several processes -> what it printed."""
    start = ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--standalone'] if processes > 1 else []
    done = subprocess.run([sys.executable, *start, 'sample.py', *args], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return ''.join(line for line in done.stdout.splitlines(True) if not line.startswith('overriding '))


def test_torchrun_says_what_one_process_says(talker, tmp_path):
    """tp and pp, streamed text and the files of pictures and sounds, each written once."""
    model, asked, empty = load_model(talker)[0], codec.encode(turn(codec, 'q')), codec.encode(turn(codec, ''))
    draws = lambda seed: generate(model, codec, [asked], max_new=60, seed=seed, flow_steps=3, guide=1.5, unprompted=empty)[0]
    seed = next(s for s in range(100) if draws(s)['images'] or draws(s)['audio'])
    flags = [f'--out_dir={talker}', '--prompt=q', '--max_new=60', f'--seed={seed}', '--flow_steps=3', '--temperature=1']
    want = run(*flags, f'--save={tmp_path}/one').replace(f'{tmp_path}/one', '')
    assert '.png' in want or '.wav' in want
    for how in ('tp', 'pp'):
        assert run(*flags, f'--{how}=2', f'--save={tmp_path}/{how}', processes=2).replace(f'{tmp_path}/{how}', '') == want
        for f in (tmp_path / 'one').iterdir():
            if f.suffix == '.png':                                     # sums over tp differ in the last digit, and rounding may show it
                one, many = (np.asarray(Image.open(x)).astype(int) for x in (f, tmp_path / how / f.name))
                assert one.shape == many.shape and abs(one - many).max() <= 1


def test_chat_goes_on_from_ids(tmp_path):
    """What was answered is read again as the ids that it was, points and all, and every turn has its own random numbers."""
    model = muse(1.0, image=False, audio=False)
    model.head.data[L:] *= 2
    save(tmp_path, 1, model)
    model, doc, want = load_model(tmp_path)[0], None, []
    for k in range(2):
        asked = codec.encode(turn(codec, 'hello'))
        doc = {n: np.concatenate([doc[n], asked[n]]) for n in asked} if doc else asked
        doc = generate(model, codec, [doc], max_new=16, seed=5 + k)[0]['doc']
        want.append(codec.untext(doc['ids'][-16:]))
        doc = dict(doc, ids=np.r_[doc['ids'], sp['eot']], w=np.r_[doc['w'], 0])
    strip = lambda text: re.sub('[^ -~]', '', text).strip()           # control characters are shown as U+FFFD
    out = run(f'--out_dir={tmp_path}', '--chat', '--max_new=16', '--seed=5', '--guide=1', '--temperature=1',
              stdin='hello\nhello\n/new\nhello\n')
    said = [strip(s) for s in re.split('(?m)^(?:> )+', out)[1:]]      # prompts stand at the beginning of a line
    assert re.search(r'<\d+>', want[0]) and said[:3] == [strip(want[0]), strip(want[1]), strip(want[0])] and said[0] != said[1]


def test_a_turn_after_an_answer_that_was_cut_off():
    picture, sound = np.full((8, 16, 3), 7, np.uint8), np.ones((2, 128), np.float32)
    whole = codec.encode([('image', picture), ('text', 'a'), ('audio', sound), ('ids', [sp['eot']])])
    asked = [('ids', [sp['user']]), ('image', picture[:, :8])]
    after = codec.encode(asked)
    def check(doc, ids, patches, frames):
        got = follow_up(codec, doc, asked)
        assert got['ids'].tolist() == [*ids, *after['ids'].tolist()] and len(got['w']) == len(got['ids'])
        assert len(got['patches']) == len(got['rc']) == patches + 1 and len(got['frames']) == frames
    ids = whole['ids'].tolist()
    check(whole, ids, 2, 2)                                           # <boi> h w img img <eoi> a <boa> aud aud <eoa> <eot>
    check(cut(whole, 11), ids, 2, 2)                                  # only <eot> is missing
    check(cut(whole, 9), [*ids[:9], sp['eoa'], sp['eot']], 2, 1)      # inside the sound
    check(cut(whole, 7), [*ids[:7], sp['eot']], 2, 0)
    lead = codec.encode([('text', 'b'), ('image', picture)])
    for n in (2, 3, 4, 5):                                            # inside the picture
        check(cut(lead, n), [98, sp['eot']], 0, 0)
