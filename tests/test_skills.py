"""data/charts, data/objects, data/visual: answers recounted from the pixels, judges, what is held out, floors, thoughts in the engine."""
import random
import re
import subprocess
import sys
import zlib
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import sample
from data import skills
from data.charts import charts as G, prepare as GP, task as GT
from data.codec import Codec, unpatchify
from data.shards import open_shards
from data.objects import objects as O, prepare as OP, task as OT
from data.scenes import scenes as S
from data.visual import prepare as VP, task as VT, visual as V
from model import ModelConfig, build
from parallel import solo_mesh

C = Codec('bytes', 64)
SETS = dict(charts=(GP, GT), objects=(OP, OT), visual=(VP, VT))
ALL = [(n, s) for n, (_, task) in SETS.items() for s in task.SKILLS]

def rngs(n, word=''):
    return [random.Random(f'{word}{i}') for i in range(n)]

def truth(p):
    """What a model that makes no mistake puts out."""
    thought = ''.join(C.untext(v) if k == 'ids' else '' for k, v, *_ in p.get('thought', ()))
    return dict(text=thought + p['answer'], images=[p['after']] if 'after' in p else p.get('steps') or [])

# -----------------------------------------------------------------------------
# what is drawn is what is asked about

def test_charts_show_their_numbers():
    """Bars, slices and highest points measured in the picture, in pixels, against the numbers that the answers come from."""
    for rng in rngs(150):
        ch = G.chart(rng, rng.random() < .5, rng.choice(['bar', 'pie', 'scatter']))
        x, dark = ch.img.astype(int), (ch.img == G.INK).all(-1)
        near = {o.name: abs(x - S.PALETTE[o.colour]).max(-1) <= 8 for o in ch.items}
        if ch.kind == 'pie':
            legend = ch.img.shape[1] - (29 if min(ch.img.shape[:2]) < 128 else 33)
            left = {n: m[:, :legend + 2].sum() for n, m in near.items()}
            for o in ch.items:                                          # less the white lines between slices
                assert abs(left[o.name] / sum(left.values()) - o.data[0] / 100) < .04, (o, left)
            continue
        column = dark.sum(0)[:ch.img.shape[1] // 2].argmax()            # the axis
        rows = np.flatnonzero(dark[:, column])
        top, floor = rows[0], rows[-1]
        assert (ch.img[floor, column + 1] == G.INK).all()
        legend = ch.img.shape[1] if ch.kind == 'bar' else np.flatnonzero((ch.img[floor] == G.INK).all(-1)).max() + 1
        if len({o.colour for o in ch.items}) == len(ch.items):
            for o in ch.items:
                seen = np.flatnonzero(near[o.name][:floor, column + 1:legend].any(1))
                if ch.kind == 'bar' or len(seen):                       # points may hide each other
                    pixels = floor - seen.min() - (2 if ch.kind == 'scatter' else 0)
                    v = max(v for _, v in o.data) if ch.kind == 'scatter' else o.data[0]
                    hidden = ch.kind == 'scatter' and len(ch.items) > 1
                    off = pixels / (floor - top) * ch.step * ch.lines - v
                    assert abs(off) <= 1.6 / (floor - top) * ch.step * ch.lines or hidden and off < 0, (o, off)

def test_first_above_literally():
    assert G.first_above([0, 10, 20], 15) == 1.5 and G.first_above([0, 10, 5], 10) == 1
    assert G.first_above([0, 5], 10) == np.inf and G.first_above([10, 20], 10) is None

def test_chart_trends_can_be_seen():
    for rng in rngs(200):
        for o in G.chart(rng, kind=rng.choice(['line', 'scatter'])).items:
            v = [d[1] if isinstance(d, tuple) else d for d in o.data]
            assert o.trend == 'flat' or (v[-1] > v[0]) == (o.trend == 'up') and v[-1] != v[0]
            slope = np.polyfit(np.arange(len(v)), v, 1)[0]
            assert o.trend == 'flat' or (slope > 0) == (o.trend == 'up')

def test_objects_stay_visible_and_apart():
    sizes = set()
    for rng in rngs(120):
        sc = O.scene(rng, rng.random() < .5)
        assert sc.img.dtype == np.uint8 and 1 <= len(sc.objs) <= 12
        sizes.add(len(sc.objs))
        for i, o in enumerate(sc.objs):
            assert (sc.top == i).sum() >= .6 * (O.mask(o.kind, o.w, o.h) >= .5).sum()
            part = sc.img[sc.top == i].astype(float)                    # its colour, lit or shaded, and an edge that is mixed
            tone = np.add(S.PALETTE[o.colour], o.tone)
            assert np.mean([min(abs(v - s * tone).max() for s in (1, O.SHADE)) < 2 for v in part]) > .4
    assert {1, 2, 10, 11, 12} <= sizes

def test_objects_recounted_from_the_top_map():
    """count, points, relation and where against what stands in the scene, written a second time."""
    n = Counter()
    for rng in rngs(150):
        sc = O.scene(rng)
        named = lambda words: [o for o in sc.objs if all(w in (o.colour, o.kind) for w in words.split())]
        q, a, _ = O.count(rng, sc, C)
        assert a == [str(len(named(re.fullmatch(r'how many(.*)\?', q[0])[1])))]
        q, a, _ = O.points(rng, sc, C)
        some = named(q[0].removeprefix('point to every').removesuffix(' object'))
        xy = [(a[k + 1], a[k + 2]) for k in range(0, len(a) - 1, 3)]
        assert len(some) == len(xy) == int(a[-1]) and xy == sorted(xy)
        if found := O.relation(rng, sc, C):
            m = re.fullmatch(r'is (\w+ \w+) (left of|above|larger than) (\w+ \w+)\?', found[0][0])
            (p,), (q,) = named(m[1]), named(m[3])
            d = {'left of': q.x + q.w / 2 - p.x - p.w / 2, 'above': q.y + q.h / 2 - p.y - p.h / 2, 'larger than': p.w * p.h - q.w * q.h}
            assert (d[m[2]] > 0) == (found[1] == ['yes'])
            n['relation'] += 1
        if found := O.where(rng, sc, C):
            (o,), (H, W) = named(re.fullmatch(r'where is (.*)\?', found[0][0])[1]), sc.top.shape
            assert found[1] == [f"{'top' if o.y + o.h / 2 < H / 2 else 'bottom'} {'left' if o.x + o.w / 2 < W / 2 else 'right'}"]
            n['where'] += 1
    assert min(n.values()) > 50

def test_edits_change_what_was_asked_and_nothing_else():
    for rng in rngs(120):
        kind, held = rng.choice(O.EDITS), rng.random() < .5
        before, request, after, objs = O.edit(rng, kind, C, held)
        changed = (before != after).any(-1)
        r, c = np.nonzero(changed)
        assert 0 < changed.sum() <= 17 * 17 and np.ptp(r) < 17 and np.ptp(c) < 17
        was, now = (Counter((o['colour'], o['kind']) for o in OT.read_picture(x)) for x in (before, after))
        assert now.total() - was.total() == dict(add=1, remove=-1, recolour=0)[kind] or Counter((o.colour, o.kind) for o in objs) != now
        assert request[0].split()[0] == dict(recolour='make').get(kind, kind) and objs

def solve(img):
    """A maze's picture -> {colour of exit: can it be reached}, {cell: steps}; walls are dark pixels at the borders."""
    n, x = len(img) // 8, img.astype(int)
    dark = (x.sum(-1) < 200)
    cell = lambda r, c: dark[8 * r:8 * r + 8, 8 * c:8 * c + 8]
    middle = lambda r, c: img[8 * r + 3, 8 * c + 3]
    start = next((r, c) for r in range(n) for c in range(n) if (middle(r, c) == V.INK).all())
    side = {(0, 1): lambda m: m[1:7, 7], (0, -1): lambda m: m[1:7, 0], (1, 0): lambda m: m[7, 1:7], (-1, 0): lambda m: m[0, 1:7]}
    far = {start: 0}
    todo = [start]
    for r, c in todo:
        for (dr, dc), edge in side.items():
            new = r + dr, c + dc
            if not edge(cell(r, c)).any() and new not in far:
                far[new] = far[r, c] + 1
                todo.append(new)
    return {k: far.get(next((r, c) for r in range(n) for c in range(n) if (middle(r, c) == S.PALETTE[k]).all())) for k in V.EXITS}, far

def test_mazes_solved_from_pixels():
    for rng in rngs(60):
        r = V.maze(rng, rng.random() < .5)
        exits, far = solve(r.img)
        assert [k for k in exits if exits[k] is not None] == [r.answer] and exits[r.answer] >= 4
        assert len(r.steps) == -(-exits[r.answer] // V.STRIDE)
        for k, step in enumerate(r.steps, 1):                           # floods reach so far and no farther
            wet = {(i // 8, j // 8) for i, j in np.argwhere((step == V.MARK).all(-1))}
            assert wet | {next(iter(far))} == {c for c in far if far[c] <= k * V.STRIDE}

def test_tangles_lead_from_the_digit_to_the_dot():
    for rng in rngs(60):
        r = V.tangle(rng, rng.random() < .5)
        line, W = int(r.question.split()[2]) - 1, r.img.shape[1]
        y, x = np.nonzero((r.steps[-1] == V.MARK).all(-1))
        assert abs(y[x == x.min()].mean() - (8 + 16 * line)) < 3
        end = int(y[x == x.max()].mean()) // 16
        assert (r.img[8 + 16 * end, W - 4] == S.PALETTE[r.answer]).all()
        ends = [np.nonzero((s == V.MARK).all(-1))[1].max() for s in r.steps]
        assert all(a + 10 < b for a, b in zip(ends, ends[1:])) and not (r.img == V.MARK).all(-1).any()

def test_puzzles_have_one_right_piece():
    for rng in rngs(60):
        r = V.puzzle(rng, rng.random() < .5)
        pieces = [r.img[56:72, 1 + 18 * k:17 + 18 * k] for k in range(4)]
        assert [np.array_equal(p, r.steps[0]) for p in pieces].index(True) == 'abcd'.index(r.answer)
        off = [abs(p.astype(int) - r.steps[0]).mean() for p in pieces]
        assert sorted(off)[0] == 0 and sorted(off)[1] > 25
        y, x = np.argwhere((r.img[:48] == S.GREY).all(-1)).min(0)
        whole = r.img.astype(int).copy()
        def seam(p):                                                    # how well its border goes on outside
            return sum(abs(a.astype(int) - b).mean() for a, b in ((p[0], whole[y - 1, x:x + 16]), (p[-1], whole[y + 16, x:x + 16]),
                                                                  (p[:, 0], whole[y:y + 16, x - 1]), (p[:, -1], whole[y:y + 16, x + 16])))
        assert np.argmin([seam(p) for p in pieces]) == 'abcd'.index(r.answer)

def read_digit(img):
    """The digit on a crop: the template whose shape, of two widths and at any place near the middle, goes best with what differs there."""
    x = img.astype(float)
    a = abs(x - np.median(x[10:22, 10:22].reshape(-1, 3), 0)).sum(-1)[4:28, 4:28]
    best = -1, ''
    for w in (6, 9):
        seen = np.lib.stride_tricks.sliding_window_view(a, (12, w + 2)).reshape(-1, 12 * (w + 2))
        seen = seen - seen.mean(1, keepdims=True)
        for d in S.DIGITS:
            t = np.pad(S.mask(d, w, 10), 1).ravel()
            t = t - t.mean()
            best = max(best, (float((seen @ t / (np.linalg.norm(seen, axis=1) + 1e-6) / np.linalg.norm(t)).max()), d))
    return best[1]

def test_peek_needs_the_look():
    """In the crop a template reads the digit; in the picture that is shown the nearest of 550 other objects, label known, does not."""
    rs = [V.peek(rng, i % 2 == 0) for i, rng in enumerate(rngs(700))]
    crop = [V.look(r.source, r.box)[1] for r in rs[:150]]
    right = np.mean([read_digit(c) == r.answer for c, r in zip(crop, rs)])
    assert right > .95, right
    def seen(r):
        y, x = (int((a + b) / 2 * len(r.img)) for a, b in ((r.box[1], r.box[3]), (r.box[0], r.box[2])))
        a = r.img[y - 3:y + 3, x - 3:x + 3].astype(float)
        a = abs(a - np.median(a, (0, 1))).sum(-1).ravel()
        return a / (np.linalg.norm(a) + 1e-6)
    known, asked = np.array([seen(r) for r in rs[150:]]), np.array([seen(r) for r in rs[:150]])
    near = np.argsort(-asked @ known.T, 1)[:, :9]
    vote = [Counter(rs[150 + k].answer for k in row).most_common(1)[0][0] for row in near]
    assert np.mean([v == r.answer for v, r in zip(vote, rs)]) < .3

def test_look_gives_the_pixels_of_the_box():
    source = np.random.default_rng(0).integers(0, 256, (96, 192, 3)).astype(np.uint8)
    kind, img, w, box = V.look(source, (.25, .25, .25 + 32 / 192, .25 + 16 / 96))
    assert (kind, w) == ('image', 0) and np.array_equal(img, source[24:40, 48:80]) and np.allclose(box, (.25, .25, 80 / 192, 40 / 96))
    for box in [(0, 0, 1, 1), (0, 0, 1, .02), (0, 0, .01, 1), (.1, .1, .101, .9), (.3, .2, .9, .4)]:
        seen = V.look(source, box)
        assert seen is None or seen[1].size // 192 <= V.CROP and C.encode([seen])['ids'][0] == C.sp['boi']
    assert V.look(source, (.5, .5, .5, .9)) is None is V.look(source, (.6, .5, .4, .9)) and V.look(source, (0, 0, 1.2, 1)) is None
    for r in map(V.peek, rngs(40)):                     # box to loc tokens to crop and back to the frame: within one bin
        ids = next(v for k, v, *_ in V.thought(r, C) if k == 'ids' and C.sp['look'] in v)
        rc = C.encode(V.thought(r, C))['rc']
        said, half = [C.unloc(i) for i in ids[1:5]], .5 * np.ptp(rc, 0) / 3
        back = [*(rc.min(0) - half)[::-1], *(rc.max(0) + half)[::-1]]
        assert np.abs(np.subtract(back, said)).max() < 1 / 64 and np.abs(np.subtract(r.box, said)).max() <= 1 / 64

# -----------------------------------------------------------------------------
# documents

@pytest.mark.parametrize('name', SETS)
def test_documents_are_what_the_script_says(name):
    turn = r'<user>[^<]+(<point><\d+><\d+>)?<assistant>([^<]*(<(point|box)>(<\d+>)+)*[^<]+|<box>(<\d+>){4}|<point>(<\d+>){2})<eot>'
    picture = r'<boi><\d+><\d+><I><eoi>'
    think = rf'<think>(<box>(<\d+>){{4}}<look>{picture}|(<draw>{picture})+)</think>'
    forms = dict(charts=[rf'{picture}({turn})+'], objects=[rf'{picture}({turn})+',
                 rf'{picture}<user>[^<]+(<point><\d+><\d+>)?<assistant>{picture}<eot>'],
                 visual=[rf'{picture}<user>think: [^<]+<assistant>{think}\w+<eot>', rf'{picture}<user>say: [^<]+<assistant>\w+<eot>'])[name]
    used = Counter()
    for i in range(60):
        doc = SETS[name][0].document(i, 'train', C)
        e = C.encode(doc)
        text = re.sub('(<img>)+', '<I>', C.untext(e['ids']))
        hits = [k for k, f in enumerate(forms) if re.fullmatch(f, text)]
        assert len(hits) == 1, text
        used[hits[0]] += 1
        at = 0                                          # patches come back as the pictures that went in
        for kind, v, *_ in doc:
            if kind == 'image':
                h, w = v.shape[0] // 8, v.shape[1] // 8
                assert v.dtype == np.uint8 and np.array_equal(unpatchify(e['patches'][at:at + h * w], h, w), v)
                at += h * w
        assert at == len(e['patches']) and len(e['ids']) < 700
        speaker, inserted, before = None, False, None                 # questions and what the environment gave have no weight
        for t, w in zip(e['ids'].tolist(), e['w'].tolist()):
            speaker = t if t in (C.sp['user'], C.sp['assistant']) else speaker
            inserted = t == C.sp['boi'] and before == C.sp['look'] or inserted and before != C.sp['eoi']
            before = t
            if speaker and t != C.sp['eoi']:
                assert w == int(speaker == C.sp['assistant'] and t != speaker and not inserted), text
    assert len(used) == len(forms)

GENERATED = 'chain charts countdown lookup objects peek point pytool scenes signs spawn twice visual'.split()

@pytest.mark.parametrize('name', GENERATED)
def test_shards_hold_the_split_they_are_named_after(name, tmp_path):
    """What prepare.py writes as `train` are training documents: a loop variable bound late once made them all those of `val`."""
    ROOT = Path(skills.__file__).parents[1]
    flags = ['--n_train=3', '--n_val=2', f'--out={tmp_path / "out"}']
    subprocess.run([sys.executable, ROOT / 'data' / name / 'prepare.py', *flags], check=True)
    document = import_module(f'data.{name}.prepare').document
    for split, n in (('train', 3), ('val', 2)):
        s = open_shards(tmp_path / 'out', split, C)
        made = [C.encode(document(i, split, C)) for i in range(n)]
        for key, k in (('ids', 'ids'), ('patch', 'patches'), ('w', 'w')):
            assert np.array_equal(s[key], np.concatenate([d[k] for d in made])), (split, key)

@pytest.mark.parametrize('name', SETS)
def test_documents_depend_on_seed_split_and_number_only(name):
    prep, task = SETS[name]
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(C.encode(a).values(), C.encode(b).values()))
    random.seed(1), np.random.seed(1)
    one = [prep.document(i, 'train', C, 3) for i in range(12)]
    state = random.getstate(), np.random.get_state()[1].tolist()
    again = [prep.document(i, 'train', C, 3) for i in reversed(range(12))][::-1]
    assert all(map(same, one, again)) and state == (random.getstate(), np.random.get_state()[1].tolist())
    assert not same(one[0], prep.document(0, 'train', C, 4)) and not same(one[0], prep.document(0, 'val', C, 3))
    told = lambda p: (p['answer'], p['question'], C.encode(p['prompt'])['patches'].tobytes())
    a, b, c = [[told(p) for p in task.problems(task.SKILLS[1], 6, C, seed=s)] for s in (5, 5, 6)]
    assert a == b != c
    with pytest.raises(ValueError, match='there are'):
        task.problems('dance', 1, C)

def compositions(name, monkeypatch):
    """-> function(call) -> what `call` draws: [(held?, composition)], taken where pictures are painted."""
    seen = []
    if name == 'charts':
        real = G.paint
        what = lambda kind, o: (kind, o.name, o.data[0]) if kind in ('bar', 'pie') else (kind, o.name, o.colour, o.trend)
        monkeypatch.setattr(G, 'paint', lambda rng, kind, title, items, *a: (
            seen.extend(what(kind, o) for o in items), real(rng, kind, title, items, *a))[1])
    elif name == 'objects':
        real = O.paint
        monkeypatch.setattr(O, 'paint', lambda objs, ground: (seen.extend((o.colour, o.kind) for o in objs), real(objs, ground))[1])
    else:
        for kind, f in V.RIDDLES.items():
            monkeypatch.setitem(V.RIDDLES, kind, lambda *a, f=f: (r := f(*a), seen.extend(map(repr, r.what)))[0])
    def drawn(call):
        seen.clear()
        call()
        return set(seen)
    return drawn

@pytest.mark.parametrize('name', SETS)
def test_training_never_shows_what_is_held_out(name, monkeypatch):
    """No composition that makes a held-out problem held-out is ever drawn in training, found by comparing sets, not by asking the hash."""
    prep, task = SETS[name]
    drawn = compositions(name, monkeypatch)
    n = dict(charts=400, objects=300, visual=200)[name]
    train = set().union(*(drawn(lambda: prep.document(i, 'train', C)) for i in range(n)))
    for skill in task.SKILLS[:4]:
        train |= drawn(lambda: task.problems(skill, 20, C, split='train'))
        for i, p in enumerate(task.problems(skill, 8, C)):
            assert p['held'] == (i % 2 == 0)
    for i in range(60):
        new = drawn(lambda: prep.document(i, 'val', C)) - train
        assert i % 2 or new                             # every even one has something that training never had
    hashed = dict(charts=lambda c: G.held_item(c[0], G.Item(c[1], c[2], [c[2]], c[-1])), objects=lambda c: O.is_held(*c),
                  visual=lambda c: zlib.crc32(c.encode()) % 8 == 0)[name]
    assert not any(map(hashed, train))

def test_objects_hold_out_what_scenes_hold_out():
    """Else a mixture of the two would train on held-out pairs."""
    assert set(S.HELD) <= set(O.HELD) and 5 <= len(O.HELD) <= 8 and not set(O.HELD) & set(O.FREE)

def test_thoughts_and_straight_answers_have_equal_positions():
    n = defaultdict(list)
    for i in range(450):
        doc = VP.document(i, 'train', C, shares=(.2, .3, .3))
        q = next(v for k, v, *_ in doc if k == 'text')
        kind = next(k for k, w in dict(peek='digit', maze='exit', tangle='lead', puzzle='piece').items() if w in q)
        n[kind, q.split(':')[0]].append(sum(v.size // 192 + 4 if k == 'image' else len(v) for k, v, *_ in doc))
    for kind in V.RIDDLES:                              # what p_say = .5 says, from lengths: the drawn numbers would scatter
        longer = np.mean(n[kind, 'think']) / np.mean(n[kind, 'say'])
        assert abs(longer / VP.LONGER[kind] - 1) < .12, (kind, longer)
        assert len(n[kind, 'say']) > .7 * len(n[kind, 'think'])

@pytest.mark.parametrize('kind,shares', [('peek', (1, 0, 0)), ('maze', (0, 1, 0)), ('tangle', (0, 0, 1)), ('puzzle', (0, 0, 0))])
def test_lessons_in_reading_and_in_aiming_are_parts_of_the_thought(kind, shares):
    """p_see=1 gives the riddles of p_say = p_see = 0, without the thought: its last picture is the prompt's, with the same answer; p_aim=1
    those with the box to look at as the answer, or of riddles that look nowhere what p_see=1 gives."""
    for i in range(20):
        see, think = (VP.document(i, 'train', C, shares=shares, p_say=0., p_see=p) for p in (1., 0.))
        last = [s for s in think if s[0] == 'image'][0 if kind == 'puzzle' else -1]        # a piece alone says nothing
        shown, = [s for s in see if s[0] == 'image']
        assert np.array_equal(shown[1], last[1]) and shown[2] == 0 and see[-2] == think[-2]
        assert not {C.sp['think'], C.sp['draw'], C.sp['look']} & {t for k, v, *_ in see if k == 'ids' for t in v}
        assert kind == 'puzzle' or shown[3:] == last[3:]           # a crop says where it is from
        aim = VP.document(i, 'train', C, shares=shares, p_say=0., p_aim=1.)
        if kind == 'peek':                                         # the box of the thought, on what is shown
            box = next(v for k, v, *_ in think if k == 'ids' and C.sp['look'] in v)
            assert [v for k, v, *_ in aim[-2:]] == [box[:5], [C.sp['eot']]] and np.array_equal(aim[0][1], think[0][1])
        else:
            assert len(aim) == len(see) and all(np.array_equal(a[1], b[1]) for a, b in zip(aim, see))

# -----------------------------------------------------------------------------
# judges

@pytest.mark.parametrize('name,skill', ALL)
def test_truth_is_right_and_corrupted_answers_are_wrong(name, skill):
    task = SETS[name][1]
    ps = task.problems(skill, 30, C)
    other = lambda p: next(q for q in ps if q['answer'] != p['answer'])
    if skill in O.EDITS:                                # the judge's own accuracy: test_edit_judge_on_held_out_truth
        for p in ps:
            assert task.verify(p, {'images': [p['prompt'][0][1]]}) == 0 == task.verify(p, {'images': []})
            assert task.verify(p, {'images': [np.full((64, 64, 3), 250, np.uint8)]}) == 0 or not p['objs']
            assert task.verify(p, {'images': [p['after'][:32]]}) == 0
        assert task.verify(p, {'images': [np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)]}) == 0
        return
    for p in ps:
        out = truth(p)
        assert task.verify(p, out) == 1 == task.verify(p, dict(out, text=out['text'] + '<eot><user>more'))
        assert task.verify(p, {'text': p['answer'] + ' ' + other(p)['answer']}) == 0 == task.verify(p, {'text': ''})
        assert C.encode(p['prompt'])['w'].sum() == 0 and C.encode(p['prompt'])['ids'][-1] == C.sp['assistant']
        if skill not in ('point', 'box', 'points', 'value', 'difference'):
            assert task.verify(p, {'text': out['text'].removesuffix(p['answer']) + other(p)['answer']}) == 0
        for bad in ({}, None, {'text': None}, {'ids': [10 ** 9]}, {'text': '<point><99><99>'}, {'text': '<box><9><9><9><9>'},
                    {'text': 'a' * 9999}):
            assert task.verify(p, bad, C) == 0

def test_numbers_count_within_one_grid_step():
    p = dict(skill='value', answer='40', step=10)
    assert [GT.verify(p, {'text': t}) for t in ('40', '30', '50', '29', '51', '-40', '40.0', '4e1')] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert GT.judge(p, {'text': '45'}) == dict(score=1, exact=0) and GT.verify(dict(p, answer='cat', step=0), {'text': 'ant'}) == 0

def test_points_are_matched_within_half_an_object():
    p = dict(skill='points', n_loc=64, at=[(.25, .25, .125, .125), (.75, .75, .125, .25)])
    score = lambda text: OT.judge(p, {'text': text})
    assert score('<point><16><16><point><48><48>2') == dict(score=1, number=1)
    assert score('<point><19><16><point><48><54>2')['score'] == 1 and score('<point><20><16><point><48><56>2')['score'] == 0
    assert score('<point><16><16>1') == dict(score=pytest.approx(2 / 3), number=0)
    assert score('<point><16><16><point><16><16><point><48><48>3')['score'] == pytest.approx(.8)           # one object is found once
    assert OT.judge(dict(p, at=[]), {'text': '0'})['score'] == 1 and OT.judge(dict(p, at=[]), {'text': '<point><1><1>1'})['score'] == 0
    assert OT.matched('ab', 'xy', lambda a, b: a + b in ('ax', 'ay', 'bx')) == 2         # where the nearest first would find one

def test_edit_judge_on_held_out_truth():
    """What the reader itself gets right on the asked pictures, clean and with noise, and on crowded scenes, where objects hide others."""
    ps = [p for k in O.EDITS for p in OT.problems(k, 60, C)]
    noisy = lambda i, x: np.clip(x + np.random.default_rng(i).normal(0, 12, x.shape), 0, 255).astype(np.uint8)
    clean = np.mean([OT.verify(p, {'images': [p['after']]}) for p in ps])
    rough = np.mean([OT.verify(p, {'images': [noisy(i, p['after'])]}) for i, p in enumerate(ps)])
    hits = made = asked = 0
    for sc in map(O.scene, rngs(40)):
        seen = OT.read_picture(sc.img)
        hits += OT.matched(sc.objs, seen, lambda o, s: (o.colour, o.kind) == (s['colour'], s['kind']) and
                           np.hypot(o.x + o.w / 2 - s['centre'][0], o.y + o.h / 2 - s['centre'][1]) <= (o.w + o.h) / 4)
        made, asked = made + len(seen), asked + len(sc.objs)
    crowd = OT.f1(hits, made, asked)
    print(f'judge of edits: {clean:.3f} of true pictures accepted, {rough:.3f} with noise; objects of crowded scenes: F1 {crowd:.3f}')
    assert clean >= .97 and rough >= .9 and crowd > .85

def test_edit_judge_is_strict():
    for p in OT.problems('recolour', 20, C) + OT.problems('add', 20, C):
        o, *rest = p['objs']
        back = np.broadcast_to(np.float32(np.median(p['after'].reshape(-1, 3), 0)), (64, 64, 3))
        draw = lambda *objs: {'images': [O.paint(list(objs), back)]}
        if not OT.verify(p, draw(o, *rest)):            # the few that the reader cannot read
            continue
        kind = 'square' if o.kind != 'square' else 'circle'
        colour = next(c for c in O.COLOURS if c != o.colour)
        for wrong in (o._replace(kind=kind), o._replace(colour=colour), o._replace(x=o.x - 12 if o.x > 20 else o.x + 12)):
            assert OT.verify(p, draw(wrong, *rest)) == 0
        assert OT.verify(p, draw(*rest)) == 0 and OT.verify(p, {'images': [255 - draw(o, *rest)['images'][0]]}) == 0

def test_drawn_thoughts_are_compared_patch_by_patch():
    for kind in ('maze', 'tangle', 'puzzle'):
        for p in VT.problems(kind, 10, C):
            out = truth(p)
            assert VT.judge(p, out) == dict(score=1, drawn=1)
            shown = [p['prompt'][0][1]] * len(p['steps'])
            if kind != 'puzzle':
                assert VT.judge(p, dict(out, images=shown))['drawn'] == 0
                late = VT.judge(p, dict(out, images=[shown[0], *p['steps'][:-1]]))['drawn']
                assert late <= 1 / len(p['steps'])
            assert VT.judge(p, dict(out, images=[None]))['drawn'] == 0
            assert VT.judge(p, dict(out, images=p['steps'][:1]))['drawn'] == 1 / len(p['steps'])

def test_the_control_may_not_think():
    p, = VT.problems('say maze', 1, C)
    assert VT.verify(p, {'text': p['answer']}) == 1 and VT.verify(p, {'text': '<think><draw></think>' + p['answer']}) == 0
    q, = VT.problems('maze', 1, C)
    assert np.array_equal(q['prompt'][0][1], p['prompt'][0][1]) and q['answer'] == p['answer']              # the same riddle
    w, = VT.problems('wait maze', 1, C)
    assert len(C.encode(w['thought'])['ids']) == len(C.encode(q['thought'])['ids'])   # as many positions
    assert all(np.array_equal(v, p['prompt'][0][1]) for k, v, *_ in w['thought'] if k == 'image')

GRID = [''.join(f'<point><{x}><{y}>' for x in range(k, 64, 2 * k + 1) for y in range(k, 64, 2 * k + 1)) + '4' for k in (6, 8, 10, 16)]
FIXED = dict(point=[f'<point><{x}><{y}>' for x in range(5, 64, 6) for y in range(5, 64, 6)],
             box=[f'<box><{a}><{b}><{a + s}><{b + s}>' for s in (12, 20, 28, 40) for a in range(0, 64 - s, 8) for b in range(0, 64 - s, 8)],
             points=['0', *GRID], value=map(str, range(60)), difference=map(str, range(60)))

@pytest.mark.parametrize('name,skill', [(n, s) for n, s in ALL if s not in O.EDITS and not s.startswith('say ')])
def test_the_best_constant_answer_is_chance(name, skill):
    """Chosen on some problems, scored on others: within three standard errors of what CHANCE says."""
    task, n = SETS[name][1], 160 if skill in ('peek', 'maze') else 300
    a, b = (task.problems(skill, n, C, seed=s) for s in (1, 2))
    cases = [*FIXED.get(skill, {p['answer'] for p in a})]
    best = max(cases, key=lambda t: sum(task.verify(p, {'text': t}) for p in a))
    scores = [task.verify(p, {'text': best}) for p in b]
    chance = a[0]['chance']
    spread = 3 * max(np.std(scores), np.sqrt(chance * (1 - chance) / 4)) / np.sqrt(n)
    assert abs(np.mean(scores) - chance) < spread + .01, (best, np.mean(scores), chance)

@pytest.mark.parametrize('skill', ['maze', 'tangle', 'puzzle'])
def test_simple_looks_do_not_answer(skill):
    """The nearest exit as the crow flies, the dot across: no better than guessing."""
    n, right = 200, 0
    for r in (V.RIDDLES[skill](rng, i % 2 == 0) for i, rng in enumerate(rngs(n, 'look'))):
        if skill == 'maze':
            start, *at = [np.argwhere((r.img == c).all(-1)).mean(0) for c in (V.INK,)] + [None] * 4
            m = r.img.reshape(len(r.img) // 8, 8, -1, 8, 3)[:, 3, :, 3]
            where = lambda c: np.argwhere((m == c).all(-1))[0]
            right += min(V.EXITS, key=lambda k: np.hypot(*(where(S.PALETTE[k]) - where(V.INK)))) == r.answer
        elif skill == 'tangle':
            line = int(r.question.split()[2]) - 1
            right += (r.img[8 + 16 * line, -4] == S.PALETTE[r.answer]).all()
        else:
            mean = r.img[:48, 8:56].mean((0, 1))
            right += 'abcd'[np.argmin([abs(r.img[56:72, 1 + 18 * k:17 + 18 * k].mean((0, 1)) - mean).sum() for k in range(4)])] == r.answer
    assert right / n < .25 + 4 * np.sqrt(.25 * .75 / n), right / n

# -----------------------------------------------------------------------------
# in the engine

def tiny():
    cfg = ModelConfig(vocab_size=C.n_vocab, n_layer=1, n_head=2, n_kv_head=2, n_embd=32, ff=48, flow_width=32, flow_depth=1)
    return build(cfg, solo_mesh(), 0)[0].eval()

def scripted(monkeypatch, ids):
    """A tiny model whose every choice is made for it, in order: what remains is the engine's own doing."""
    todo = list(ids)
    def choose(logits, bias, *more):
        assert len(logits) == 1 and bias.reshape(-1, logits.shape[1])[0, todo[0]] == 0, 'grammar forbids it'
        return torch.tensor([todo.pop(0)]), torch.zeros(1).double(), torch.zeros(1).double()
    monkeypatch.setattr(sample, 'choose', choose)
    return tiny()

@pytest.mark.parametrize('skill', ['peek', 'maze', 'puzzle', 'say maze'])
def test_a_thought_in_the_engine_is_the_document_of_training(skill, monkeypatch):
    """Where a model says what the supervised trace says, environment and grammar do the rest: ids, weights, coordinates, crops agree."""
    p = VT.problems(skill, 2, C)[1]
    trace = C.encode([*p['prompt'], *p.get('thought', []), ('text', p['answer']), ('ids', [C.sp['eot']])])
    n = len(C.encode(p['prompt'])['ids'])
    free = np.r_[np.where(trace['w'], trace['ids'], -1)][n:]
    says = [i for i in free[free >= 0].tolist()]
    # <eoi> is forced and has weight 0 in training; a step is still taken for it and its patches, whatever `choose` says there
    at, script = 0, []
    while at < len(trace['ids']) - n:
        i = int(trace['ids'][n + at])
        if i == C.sp['boi'] and trace['w'][n + at] == 0:                # inserted: no steps
            at = at + 1 + int(np.flatnonzero(trace['ids'][n + at:] == C.sp['eoi'])[0])
            continue
        script.append(says[0] if i in (C.sp['img'], C.sp['eoi']) else i)
        at += 1
    net = scripted(monkeypatch, script)
    engine = sample.Engine(net, C, rows=4, flow_steps=1, max_patches=p['patches'], on_stop=lambda row: VT.on_stop(p, row, C))
    row = engine.add(C.encode(p['prompt']), temperature=0, stop=p['stop'], max_new=p['max_new'])
    engine.run()
    doc = row.result['doc']
    assert doc['ids'].tolist() == trace['ids'].tolist() and np.allclose(doc['rc'], trace['rc'], atol=1e-6)
    own = trace['w'].astype(bool) & (trace['ids'] != C.sp['img'])       # pictures made here: in the trace learned, to the sampler forced
    assert doc['w'][own].all() and not doc['w'][~own & (trace['ids'] != C.sp['img'])].any()
    assert VT.judge(p, row.result)['score'] == 1
    if skill == 'peek':
        assert np.array_equal(doc['patches'], trace['patches']) and not doc['w'][(doc['ids'] == C.sp['img'])].any()
    else:
        assert len(row.result['images']) == (len(p['steps']) if 'thought' in p else 0)

def test_what_cannot_be_looked_at_ends_the_answer():
    p, = VT.problems('peek', 1, C)
    sp, L = C.sp, C.loc0
    asked = lambda *ids, q=p: VT.on_stop(q, SimpleNamespace(ids=list(ids)), C)
    assert asked(sp['box'], L + 4, L + 4, L + 15, L + 15, sp['look'])[0][0] == 'image'
    for bad in ([sp['look']], [sp['box'], L + 4, L + 4, 65, L + 15, sp['look']], [sp['box'], L + 9, L + 4, L + 4, L + 15, sp['look']],
                [sp['point'], L + 4, L + 4, L + 15, L + 15, sp['look']], [sp['box'], L + 4, L + 4, L + 15, L + 15, sp['eot']]):
        assert asked(*bad) is None
    assert asked(sp['box'], L, L, L + 9, L + 9, sp['look'], q=VT.problems('maze', 1, C)[0]) is None

def test_table_has_thoughts_given_and_swapped():
    """A model that has learned nothing: every row is there; `swapped` gets thoughts of the same form that end in another answer."""
    net = tiny()
    said = []
    rows = list(skills.table(net, C, dict(charts='', visual=''), 2, said.append))
    names = [r['skill'] for r in rows]
    assert names == GT.SKILLS + [x for k in VT.CHANCE for x in (k, f'{k} given', f'{k} swapped')] + [f'say {k}' for k in VT.CHANCE]
    assert len(said) == len(rows) + 1 and all(len(line) < 70 for line in said)
    ps = VT.problems('maze', 20, C)
    for p in ps:
        q = VT.stranger(p, ps)
        assert q is None or q['answer'] != p['answer'] and q['steps'][0].shape == p['steps'][0].shape

def test_table_hands_over_what_was_made():
    """keep() gets the problems and the sighted results of the skills asked for, once each; the score is the judge's of these results."""
    kept = []
    rows = list(skills.table(tiny(), C, dict(charts='', objects=''), 3, lambda line: None, lambda *a: kept.append(a), ['value', 'add']))
    assert [(r['data'], r['skill'], r['cases'], r['chance']) for r in rows] == [('charts', 'value', 3, 25.), ('objects', 'add', 3, 0.)]
    assert [k[:2] for k in kept] == [('charts', 'value'), ('objects', 'add')]
    for row, (data, skill, ps, results) in zip(rows, kept):
        assert row['score'] == 100 * np.mean([SETS[data][1].verify(p, r) for p, r in zip(ps, results)])
        assert [p['answer'] for p in ps] == [p['answer'] for p in SETS[data][1].problems(skill, 3, C)]
