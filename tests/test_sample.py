"""The generation engine: against recomputing everything, against the training path, alone against batched; the grammar; choose() by formula."""
import math

import numpy as np
import pytest
import torch

import sample
import toy
from data.codec import to_uint8, unpatchify
from data.loader import collate
from model import D, ModelConfig, Muse
from sample import Cache, Row, choose, generate, join, score, step
from toy import codec

sp, L, V = codec.sp, codec.loc0, codec.n_vocab
TINY = dict(vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ff=48, flow_width=32, flow_depth=1, zero_init=False)
INF = float('inf')


def muse(eager=3.0, stop=None, **more):
    """float64, so that equal means equal; special tokens that matter to the grammar come up often, <eot> as `stop` says."""
    model = Muse(ModelConfig(**{**TINY, **more})).double().eval()
    for k in ('eot', 'boi', 'boa', 'aud', 'eoa'):
        (model.wte if model.cfg.tie else model.head).data[sp[k]] *= stop if k == 'eot' and stop else eager
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
            [('image', picture(1, 2)), ('image', picture(2, 2), 0, (0.5, 0.0, 1.0, 0.5)), ('ids', [sp['point'], L + 5, L + 40, sp['boi'], L + 2, L + 2])],
            [('text', 'x')],
            [('ids', [sp['user']]), ('audio', sound[:2]), ('ids', [sp['boi'], L + 3])]]
    return [codec.encode(d) for d in docs]


@pytest.fixture
def payloads(monkeypatch):
    """{prompt index: [payload of each generated patch or frame]}, filled by generate(seed=1)."""
    got, take = {}, Row.take
    def spy(self, i, x, logp):
        if self.rng.initial_seed() >= 1_000_003 and x is not None:   # not the unprompted twins
            got.setdefault(self.rng.initial_seed() - 1_000_003, []).append(x)
        take(self, i, x, logp)
    monkeypatch.setattr(Row, 'take', spy)
    return got


def run(model, ps, payloads, **options):
    """generate() with what it did: outputs, each with 'payloads' (n, D)."""
    payloads.clear()
    out = generate(model, codec, ps, **(dict(seed=1, max_new=14, max_patches=6, flow_steps=3) | options))
    for i, o in enumerate(out):
        o['payloads'] = np.stack(payloads[i]) if i in payloads else np.zeros((0, D), np.float32)
    return out


def assert_same(a, b, which=None):
    for i in which or range(len(a)):
        assert a[i]['ids'] == b[i]['ids'], i
        np.testing.assert_allclose(a[i]['logp'], b[i]['logp'], atol=1e-5, err_msg=str(i))
        np.testing.assert_allclose(a[i]['payloads'], b[i]['payloads'], atol=1e-5, err_msg=str(i))
        assert len(a[i]['images']) == len(b[i]['images']) and len(a[i]['audio']) == len(b[i]['audio'])


HOW = dict(greedy=dict(temperature=0), seeded=dict(temperature=1.0), filtered=dict(temperature=0.8, top_k=20, top_p=0.9))
MODELS = dict(dense=dict(softcap=15.0), experts=dict(n_expert=4, top_k=2, expert_ff=16, shared_ff=16, act='swiglu'), tied=dict(tie=True, n_kv_head=1))


# ---------------------------------------------------------------- cached, batched, padded

@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('name', MODELS)
def test_cached_equals_uncached(name, how, payloads):
    model, ps = muse(**MODELS[name]), prompts()
    got, want = (run(model, ps, payloads, cached=c, **HOW[how]) for c in (True, False))
    assert_same(got, want)
    assert sum(len(o['payloads']) for o in got) > 9 and sum(len(o['images']) for o in got) >= 2       # patches, frames and whole pictures
    if how == 'seeded':
        assert len({len(o['ids']) for o in got}) > 2                  # rows that ended left the batch


@pytest.mark.parametrize('how', HOW)
def test_neighbours_and_padding_change_nothing(how, payloads):
    """All eight together, in batches of one and three, and next to other prompts."""
    model, ps = muse(), prompts()
    want = run(model, ps, payloads, batch=8, **HOW[how])
    for batch in (1, 3):
        assert_same(run(model, ps, payloads, batch=batch, **HOW[how]), want)
    long = codec.encode([('text', 'a much longer neighbour than all of the others' * 3)])
    assert_same(run(model, ps[:4] + [long, long], payloads, **HOW[how]), want, range(4))
    assert_same(run(model, ps[:1], payloads, **HOW[how]), want, [0])


def test_guidance_runs_cached_uncached_and_in_any_batch(payloads):
    model, ps = muse(stop=1.0), prompts()
    empty = codec.encode([('ids', [sp['user'], sp['assistant']])])
    want = run(model, ps, payloads, max_new=24, guide=2.0, unprompted=empty)
    plain = run(model, ps, payloads, max_new=24)
    assert_same(run(model, ps, payloads, max_new=24, guide=2.0, unprompted=empty, batch=1), want)
    assert_same(run(model, ps, payloads, max_new=24, guide=2.0, unprompted=empty, cached=False), want)
    assert_same(run(model, ps, payloads, max_new=24, guide=1.0, unprompted=empty), plain)
    assert sum(len(o['images']) for o in want) > 0 and sum(len(o['audio']) for o in want) > 0
    for a, b in zip(plain, want):                                     # up to the first payload nothing differs, that one does
        n = len(a['payloads'])
        assert not n or np.abs(a['payloads'][0] - b['payloads'][0]).max() > 1e-3
        first = next((k for k, i in enumerate(a['ids']) if i in (sp['img'], sp['aud'])), None)
        assert a['ids'][:first] == b['ids'][:first]


@pytest.mark.parametrize('which', [3, 5, 7])
def test_guidance_of_a_prompt_that_ends_inside_a_picture(which):
    empty = codec.encode([('ids', [sp['user']])])
    out, = generate(muse(), codec, prompts()[which:which + 1], guide=2.0, unprompted=empty, max_new=10, max_patches=4, flow_steps=1)
    assert len(out['images']) >= 1


def test_guided_payloads_equal_the_formula(payloads, monkeypatch):
    """A 1x2 picture: x_1(h0) + g (x_1(h) - x_1(h0)), h0 after the unprompted and the same header and patch, with the row's own noise."""
    model, empty, p = muse(), codec.encode([('ids', [sp['user'], sp['assistant']])]), codec.encode([('text', 'dot')])
    said = iter([sp['boi'], L + 1, L + 2])
    monkeypatch.setattr(sample, 'choose', lambda *a: (next(said), 0.0))
    x = run(model, [p], payloads, guide=1.7, unprompted=empty, max_new=5, noise=0.6)[0]['payloads']
    def before(q):                                                    # hidden states that the two patches are made from
        ids = np.r_[q['ids'], sp['boi'], L + 1, L + 2, sp['img'], sp['img']]
        return trained_path(model, ids, np.ones(len(ids), np.uint8), x, np.array(grid_rc(1, 2), np.float32), np.zeros((0, 128), np.float32))[0][-2:]
    rng = torch.Generator().manual_seed(1_000_003)
    e = torch.stack([torch.randn(D, generator=rng) for _ in range(2)]) * 0.6
    np.testing.assert_allclose(x, model.image_out.sample(before(p), e, 3, 1.7, before(empty)), atol=1e-5)


def test_seeds_and_prompts_decide_all(payloads):
    model, ps = muse(), prompts()
    a, b = (run(model, ps, payloads, max_new=20) for _ in range(2))
    assert_same(a, b)
    c = generate(model, codec, ps, seed=2, max_new=20, max_patches=6, flow_steps=3)
    assert [o['ids'] for o in c] != [o['ids'] for o in a]
    same = generate(model, codec, [ps[0]] * 4, seed=1, max_new=20, max_patches=6, flow_steps=3)
    assert len({tuple(o['ids']) for o in same}) == 4 and same[0]['ids'] == a[0]['ids']           # equal prompts get numbers of their own


def test_stream_reports_every_id_of_its_row():
    model, ps, heard = muse(), prompts(), {}
    out = generate(model, codec, ps, seed=1, max_new=14, max_patches=6, flow_steps=3, batch=3, stream=lambda row, i: heard.setdefault(row, []).append(i))
    for i, o in enumerate(out):
        assert heard[i] in (o['ids'], o['ids'] + [sp['eot']])
        assert len(o['logp']) == len(heard[i])
    assert any(len(h) > len(o['ids']) for h, o in zip(heard.values(), (out[i] for i in heard)))   # someone said <eot>: counted, not shown
    assert all(sp['eot'] not in o['ids'] for o in out)


def test_blind_zeroes_the_payloads_of_the_prompt_and_nothing_else():
    model, ps = muse(), prompts()
    black = dict(ps[1], patches=np.full_like(ps[1]['patches'], 200))
    for p in (ps[1], ps[2]):
        feed, dark = Row(codec, p, 0, False).feed, Row(codec, p, 0, True).feed
        for k in ('ids', 'rc'):
            assert (feed[k] == dark[k]).all()
        for k in ('img', 'aud'):
            assert (feed[k][0] == dark[k][0]).all() and feed[k][1].shape == dark[k][1].shape and not dark[k][1].any()
    a, b = (generate(model, codec, [p], blind=True, temperature=0, max_new=8)[0]['logp'] for p in (ps[1], black))
    c, d = (generate(model, codec, [p], blind=False, temperature=0, max_new=8)[0]['logp'] for p in (ps[1], black))
    assert a == b and c != d and a != c
    assert score(model, codec, [ps[1]], blind=True) == score(model, codec, [black], blind=True) != score(model, codec, [black])


# ---------------------------------------------------------------- against the training path

def trained_path(model, ids, w, patches, rc, frames):
    """One document through collate and Muse.forward, payloads as floats: hidden states (n, C) and the losses."""
    s = dict(ids=ids, w=w, patch=np.zeros((len(patches), D), np.uint8), rc=rc, frame=np.zeros((len(frames), 128), np.float32),
             doc=np.array([[0, 0, 0], [len(ids), len(patches), len(frames)]]))
    b, _ = collate([[(s, 0, 0, len(ids) - 1)]], len(ids) - 1, codec, 1, [(1, 0, 0)])
    b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
    n = int((ids[:-1] == sp['img']).sum())                            # the last position is no input
    b['xin_img'][:n] = torch.from_numpy(patches[:n])
    n = int((ids[:-1] == sp['aud']).sum())
    b['xin_aud'][:n, :128] = torch.from_numpy(frames[:n])
    keep = []
    hook = model.norm.register_forward_hook(lambda m, a, y: keep.append(y[0]))
    with torch.no_grad():
        out = model(b)
    hook.remove()
    return keep[0].detach(), out, b


def grid_rc(h, w):
    return [((r + .5) / h, (c + .5) / w) for r in range(h) for c in range(w)]


@pytest.mark.parametrize('name', MODELS)
def test_log_probabilities_equal_those_of_the_trainer(name, payloads):
    """
    Generated ids and payloads go through the loader and the model as a document: -nll of linear_cross_entropy is the sampler's log-probability, plus
    that of what the grammar left to choose from.
    """
    model, ps = muse(**MODELS[name]), prompts()
    checked, hard = 0, 0
    for p, o in zip(ps, run(model, ps, payloads)):
        new = np.array(o['ids'] + [sp['eot']] * (len(o['logp']) > len(o['ids'])))
        ids, n0 = np.concatenate([p['ids'], new]), len(p['ids'])
        kinds = [i for i in new if i in (sp['img'], sp['aud'])]
        made = {k: [x for i, x in zip(kinds, o['payloads']) if i == sp[k]] for k in ('img', 'aud')}
        rc, grid, at = [], [], 0
        for i, k in enumerate(ids):                                   # centres of the generated patches from their header
            if k == sp['boi'] and i + 2 < len(ids):
                grid = grid_rc(ids[i + 1] - L, ids[i + 2] - L)
            if k == sp['img']:
                if i >= n0:
                    rc.append(grid[0])
                grid = grid[1:]
        patches = np.concatenate([p['patches'] / np.float32(127.5) - 1, np.reshape(made['img'], (-1, D))])
        frames = np.concatenate([p['frames'], np.reshape(made['aud'], (-1, D))[:, :128]])
        w = np.r_[np.zeros(n0, np.uint8), np.ones(len(new), np.uint8)]
        h, out, b = trained_path(model, ids, w, patches, np.concatenate([p['rc'], np.reshape(rc, (-1, 2))]).astype(np.float32), frames)
        n = int(b['txt_w'].sum())
        nll = dict(zip(b['txt_i'][:n].tolist(), out['txt_each'][:n].tolist()))
        header = None
        sound = (p['ids'] == sp['boa']).sum() > (p['ids'] == sp['eoa']).sum()
        for j in range(n0):                                           # header that the prompt left open
            header = [] if ids[j] == sp['boi'] else header + [ids[j] - L] if header is not None and len(header) < 2 else None
        header = None if header is not None and len(header) == 2 else header
        for j, (i, logp) in enumerate(zip(new, o['logp'])):
            at = n0 + j - 1
            p_all = torch.softmax(model.logits(h[at:at + 1])[0].detach().double(), 0)
            if i == sp['img'] or i == sp['eoi']:
                assert logp == 0                                      # forced
            else:
                free = [k for k in range(V) if k not in [sp[x] for x in ('img', 'eoi', 'aud', 'eoa', 'pad')]]
                free = free if header is None else range(L + 1, L + 1 + min(63, 6 // (header[0] if header else 1)))
                free = [sp['aud'], sp['eoa']] if sound else free
                assert i in free
                assert logp == pytest.approx(-nll[at] - math.log(float(p_all[list(free)].sum())), abs=1e-4)
                checked, hard = checked + 1, hard + (header is not None or sound)
            header = [] if i == sp['boi'] else header + [i - L] if header is not None and len(header) < 1 else None
            sound = i == sp['boa'] or sound and i != sp['eoa']
    assert checked > 25 and hard > 5


def test_payloads_come_from_the_hidden_state_that_training_conditions_on(payloads):
    """A forced 1x2 picture: each patch is head.sample of the training path's hidden state one position earlier, with the row's noise."""
    model = muse()
    p = codec.encode([('text', 'ab'), ('ids', [sp['boi'], L + 1, L + 2])])
    x = run(model, [p], payloads, temperature=0, max_new=3, noise=0.8)[0]['payloads']
    ids = np.concatenate([p['ids'], [sp['img'], sp['img'], sp['eoi'], sp['eot']]])
    h, _, _ = trained_path(model, ids, np.ones(len(ids), np.uint8), x, np.array(grid_rc(1, 2), np.float32), np.zeros((0, 128), np.float32))
    rng = torch.Generator().manual_seed(1_000_003)
    for k in range(2):
        want = model.image_out.sample(h[len(p['ids']) - 1 + k][None], torch.randn(D, generator=rng)[None] * 0.8, 3)
        np.testing.assert_allclose(x[k], want[0], atol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_score_equals_the_training_loss(name):
    model = muse(**MODELS[name])
    docs = [codec.encode(d) for d in toy.documents(10)]
    got, one = score(model, codec, docs), score(model, codec, docs, batch=1)
    for i, e in enumerate(docs):
        _, out, b = trained_path(model, e['ids'], e['w'], e['patches'] / np.float32(127.5) - 1, e['rc'], e['frames'])
        want = -float((out['txt_each'] * b['txt_w']).sum())
        assert got[i] == pytest.approx(want, abs=1e-4) and one[i] == pytest.approx(want, abs=1e-4)
    assert len(set(got)) == 10
    assert not model.norm._forward_hooks                              # nothing left behind


def test_score_of_a_document_without_targets_is_zero():
    assert score(muse(), codec, [codec.encode([('text', 'nothing', 0)]), codec.encode([('text', 'a')])]) == [0, 0]


# ---------------------------------------------------------------- grammar

def row(*segments):
    return Row(codec, codec.encode(list(segments)), 0, False)


def legal(r, max_patches=12):
    return torch.isfinite(r.allowed(torch.zeros(V), max_patches)).nonzero().flatten().tolist()


def test_a_picture_by_the_grammar():
    r = row(('text', 'a'))
    assert r.forced() is None
    assert set(range(V)) - set(legal(r)) == {sp[k] for k in ('img', 'eoi', 'aud', 'eoa', 'pad')}
    r.take(sp['boi'], None, 0.0)
    assert legal(r) == list(range(L + 1, L + 13)) and r.forced() is None                 # a height of 1 to max_patches, never 0
    r.take(L + 3, None, 0.0)
    assert legal(r) == list(range(L + 1, L + 5))                     # 3 w <= 12
    assert legal(r, 1) == [L + 1] and len(legal(r, 1000)) == 63      # at least one; at most n_loc - 1
    r.take(L + 2, None, 0.0)
    rng, made = np.random.default_rng(0), []
    for k in range(6):
        assert r.forced() == sp['img']
        made.append(rng.uniform(-1.5, 1.5, D).astype(np.float32))
        r.take(sp['img'], made[-1], 0.0)
        own = [np.float32((k // 2 + .5) / 3), np.float32((k % 2 + .5) / 2)]
        nxt = [np.float32(((k + 1) // 2 + .5) / 3), np.float32(((k + 1) % 2 + .5) / 2)] if k < 5 else [-1, -1]
        assert r.feed['rc'][0].tolist() == own + nxt
        assert r.feed['img'][0].tolist() == [0] and (r.feed['img'][1][0] == made[-1]).all() and len(r.feed['aud'][0]) == 0
    assert r.forced() == sp['eoi'] and not r.images
    r.take(sp['eoi'], None, 0.0)
    assert r.forced() is None and sp['boi'] in legal(r)
    assert (r.images[0] == unpatchify(to_uint8(np.stack(made)), 3, 2)).all() and r.images[0].shape == (24, 16, 3)
    r.take(sp['boi'], None, 0.0), r.take(L + 1, None, 0.0), r.take(L + 1, None, 0.0)     # a second one begins anew
    assert r.forced() == sp['img']
    r.take(sp['img'], made[0], 0.0), r.take(sp['eoi'], None, 0.0)
    assert len(r.images) == 2 and r.images[1].shape == (8, 8, 3)


def test_a_sound_by_the_grammar():
    r = row(('ids', [sp['boa']]))
    for k in range(3):
        assert r.forced() is None and legal(r) == sorted([sp['aud'], sp['eoa']])
        r.take(sp['aud'], np.full(D, k, np.float32), 0.0)
        assert len(r.feed['aud'][0]) == 1 and len(r.feed['img'][0]) == 0 and (r.feed['rc'] == -1).all()
    assert not r.audio
    r.take(sp['eoa'], None, 0.0)
    assert len(r.audio) == 1 and r.audio[0].shape == (3, 128) and r.audio[0][:, 0].tolist() == [0, 1, 2]
    assert sp['aud'] not in legal(r)
    r.take(sp['boa'], None, 0.0), r.take(sp['eoa'], None, 0.0)        # an empty one is none
    assert len(r.audio) == 1


def test_a_sound_that_is_cut_off_is_kept(monkeypatch):
    monkeypatch.setattr(sample, 'choose', lambda *a: (sp['aud'], 0.0))
    out, = generate(muse(), codec, [codec.encode([('ids', [sp['boa']])])], max_new=3, flow_steps=1)
    assert [x.shape for x in out['audio']] == [(3, 128)] and out['ids'] == [sp['aud']] * 3 and out['text'] == ''


def test_a_prompt_leaves_the_row_where_it_ends():
    picture = np.zeros((16, 8, 3), np.uint8)
    assert row(('image', picture)).forced() is None and not row(('image', picture)).images
    assert sp['boi'] in legal(row(('image', picture), ('audio', np.zeros((2, 128), np.float32))))
    assert legal(row(('ids', [sp['boi'], L + 6]))) == [L + 1, L + 2]
    r = row(('image', picture), ('ids', [sp['boi'], L + 2, L + 2]))
    assert r.forced() == sp['img'] and r.feed['rc'][-1, 2:].tolist() == [0.25, 0.25]
    assert row(('ids', [sp['boa']])).in_audio and not row(('ids', [sp['boa'], sp['eoa']])).in_audio


def test_prompt_features_equal_those_of_the_loader():
    """Ids, payloads and coordinates of a fed prompt against collate, for pictures, a crop, sounds and points."""
    rng = np.random.default_rng(0)
    image = lambda h, w: rng.integers(0, 256, (8 * h, 8 * w, 3)).astype(np.uint8)
    e = codec.encode([('image', image(2, 3)), ('ids', [sp['point'], L + 3, L + 60, sp['box'], L, L + 1, L + 2, L + 63]),
                      ('image', image(1, 2), 0, (0.5, 0.25, 1, 0.5)), ('audio', rng.standard_normal((3, 128)).astype(np.float32)), ('text', 'end')])
    s = dict(ids=e['ids'], w=e['w'], patch=e['patches'], rc=e['rc'], frame=e['frames'], doc=np.array([[0, 0, 0], [len(e['ids']), 8, 3]]))
    n = len(e['ids']) - 1
    b, _ = collate([[(s, 0, 0, n)]], n, codec, 1, [(1, 0, 0)])
    feed = Row(codec, e, 0, False).feed
    rc = torch.full((n, 4), -1.0)
    live = (b['rc'] != -1).any(1)
    rc[b['rc_i'][live]] = b['rc'][live]
    assert torch.equal(torch.from_numpy(feed['rc'][:-1]), rc)
    for k, c in (('img', 8), ('aud', 3)):
        assert feed[k][0].tolist() == b[f'xin_{k}_i'][:c].tolist() and torch.equal(torch.from_numpy(feed[k][1]), b[f'xin_{k}'][:c])


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


def test_feeds_join_as_one():
    """What was fed piece by piece is what the whole prompt feeds."""
    e = codec.encode([('text', 'ab'), ('image', np.full((8, 16, 3), 7, np.uint8)), ('audio', np.ones((2, 128), np.float32)),
                      ('ids', [sp['point'], L + 3, L + 4])])
    r = Row(codec, {k: v[:2] if k == 'ids' else v[:0] for k, v in e.items()}, 0, False)
    feeds, p, f = [r.feed], iter(e['patches'] / np.float32(127.5) - 1), iter(np.pad(e['frames'], ((0, 0), (0, 64))))
    for i in e['ids'][2:].tolist():
        r.take(i, next(p) if i == sp['img'] else next(f) if i == sp['aud'] else None, 0.0)
        feeds.append(r.feed)
    got, want = join(feeds), Row(codec, e, 0, False).feed
    for k in ('ids', 'rc'):
        np.testing.assert_allclose(got[k], want[k], atol=1e-7)
    for k in ('img', 'aud'):
        assert (got[k][0] == want[k][0]).all() and (got[k][1] == want[k][1]).all()


# ---------------------------------------------------------------- choose

LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, -INF, 2.5])


def drawn(n=1500, **kw):
    """Frequencies (6,) and the log-probability that was said of each id."""
    rng, count, said = torch.Generator().manual_seed(0), torch.zeros(6), {}
    options = dict(temperature=1.0, top_k=0, top_p=1.0) | kw
    for _ in range(n):
        i, logp = choose(LOGITS.clone(), **options, rng=rng)
        count[i] += 1
        said.setdefault(i, logp)
        assert said[i] == logp
    return count / n, said


def follows(result, p):
    freq, said = result
    assert ((freq - p).abs() < 4 * (p * (1 - p) / 1500).sqrt() + 1e-9).all(), (freq, p)
    for i, logp in said.items():
        assert logp == pytest.approx(math.log(p[i]), abs=1e-5)


def only(p, keep):
    q = torch.zeros(6)
    q[keep] = p[keep]
    return q / q.sum()


def test_choose_follows_temperature_top_k_and_top_p():
    p = LOGITS.softmax(0)                                             # sorted: 1, 5, 3, 0, 2 with .466 .283 .171 .063 .038
    follows(drawn(), p)
    follows(drawn(temperature=0.5), (LOGITS / 0.5).softmax(0))
    follows(drawn(temperature=2.0), (LOGITS / 2.0).softmax(0))
    follows(drawn(top_k=1), only(p, [1]))
    follows(drawn(top_k=3), only(p, [1, 5, 3]))
    follows(drawn(top_k=100), p)
    follows(drawn(top_p=0.4), only(p, [1]))                           # the least set with at least that mass
    follows(drawn(top_p=0.5), only(p, [1, 5]))
    follows(drawn(top_p=0.9), only(p, [1, 5, 3]))
    follows(drawn(top_p=0.93), only(p, [1, 5, 3, 0]))
    sharp = (LOGITS / 0.5).softmax(0)                                 # .604 .222 .. after the temperature: .9 is reached by two
    follows(drawn(temperature=0.5, top_p=0.8), only(sharp, [1, 5]))
    follows(drawn(top_k=3, top_p=0.8), only(p, [1, 5]))               # of the three that top_k left, .466 + .283 of .920 is .814
    assert float(p[[1, 5]].sum()) < 0.8 < float(only(p, [1, 5, 3])[[1, 5]].sum())


def test_choose_greedy():
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    i, logp = choose(LOGITS.clone(), 0, 0, 1.0, rng)
    assert i == 1 and logp == pytest.approx(math.log(LOGITS.softmax(0)[1])) and torch.equal(rng.get_state(), before)
