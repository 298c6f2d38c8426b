"""data/scenes: geometry, questions recounted from the pixels, balance, held-out combinations, judges."""
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
from data.codec import Codec, mel, unmel
from data.shards import open_shards
from data.scenes import prepare as P, scenes as S, task as T
from data.workers import made

ROOT = Path(__file__).resolve().parents[1]
C = Codec('bytes', 64)
OUT = S.HELD + S.HELD_DIGITS

def bits(a):
    return [''.join('.#'[int(v >= .5)] for v in row) for row in a]

def rngs(n, word=''):
    return [random.Random(f'{word}{i}') for i in range(n)]

def read(img):
    """The objects of a picture from its pixels alone."""
    return sorted(T.read_picture(img), key=lambda o: o['centre'])

# -----------------------------------------------------------------------------
# drawing

def test_masks_literally():
    assert bits(S.mask('7', 3, 5)) == ['###', '..#', '..#', '..#', '..#']
    assert bits(S.mask('4', 6, 5)) == ['##..##', '##..##', '######', '....##', '....##']
    assert bits(S.mask('triangle', 5, 4)) == ['..#..', '..#..', '.###.', '#####']
    assert bits(S.mask('cross', 7, 7)) == ['..###..'] * 2 + ['#######'] * 3 + ['..###..'] * 2
    assert bits(S.mask('square', 3, 2)) == ['###', '###']
    assert bits(S.mask('ring', 8, 8))[3:5] == ['##....##'] * 2 and bits(S.mask('circle', 8, 8))[0] == '..####..'
    assert abs(S.mask('circle', 14, 14).sum() / 14 ** 2 - np.pi / 4) < .01
    assert len({S.mask(d, 3, 5).tobytes() for d in S.DIGITS}) == 10

def test_inside_literally():
    at = lambda kind: bits(S.inside(S.Obj('red', kind, 3, 1, 3, 5), (8, 8)))
    assert at('ring') == at('circle') == ['........', '....#...'] + ['...###..'] * 3 + ['....#...'] + ['........'] * 2
    assert at('1') == at('square') == ['........'] + ['...###..'] * 5 + ['........'] * 2

def test_pictures_show_their_objects():
    for rng in rngs(300):
        sc = S.scene(rng, rng.random() < .5)
        assert sc.img.dtype == np.uint8 and sc.img.shape[:2] in S.SIZES
        seen, truth = read(sc.img), sorted(sc.objs, key=lambda o: o.x + o.w / 2)
        assert sorted((o['colour'], o['kind']) for o in seen) == sorted((o.colour, o.kind) for o in truth)
        for o in truth:                                 # not one pixel moved, nor x and y exchanged
            m = np.zeros(sc.img.shape[:2], bool)
            m[o.y:o.y + o.h, o.x:o.x + o.w] = S.mask(o.kind, o.w, o.h) > .99
            assert (abs(sc.img[m].astype(int) - S.PALETTE[o.colour]) <= 8).all()

def test_charts_show_their_bars():
    for rng in rngs(200):
        ch, seen = S.chart(rng, rng.random() < .5), []
        for c in range(4):
            column = ch.img[:28, 8 * c + 4].astype(int)
            near = [k for k in S.COLOURS if (column[27] == S.PALETTE[k]).all()]
            seen += [(near[0], (column == S.PALETTE[near[0]]).all(1).sum() / 4)] if near else []
        assert seen == ch.bars and len({v for _, v in ch.bars}) == len({c for c, _ in ch.bars}) == len(seen)

# -----------------------------------------------------------------------------
# questions

def recount(question, img):
    """The answer found from the pixels, or None if the question leaves it open (or the skill is judged otherwise)."""
    objs, (H, W) = read(img), img.shape[:2]
    def the(words):                                     # 'red' or 'red circle' -> the only one
        hits = [o for o in objs if words in (o['colour'], f"{o['colour']} {o['kind']}")]
        assert len(hits) == 1, (question, words, objs)
        return hits[0]
    if question == 'how many?':
        return str(len(objs))
    if m := re.fullmatch(r'how many (\w+)\?', question):
        return str(sum(o['colour'] == m[1] for o in objs))
    if m := re.fullmatch(r'where is (.+)\?', question):
        x, y = the(m[1])['centre']
        assert abs(x - W / 2) > 1 and abs(y - H / 2) > 1, 'on the border'
        return f"{'top' if y < H / 2 else 'bottom'} {'left' if x < W / 2 else 'right'}"
    if m := re.fullmatch(r'is (.+) (left of|above|larger than) (.+)\?', question):
        a, b = the(m[1]), the(m[3])
        size = lambda o: o['area'] * (1.35 if o['kind'] == 'ring' else 1)                  # its hole belongs to it
        d = {'left of': b['centre'][0] - a['centre'][0], 'above': b['centre'][1] - a['centre'][1],
             'larger than': size(a) - size(b)}[m[2]]
        assert abs(d) > 1.5, 'on the border'
        return 'yes' if d > 0 else 'no'
    if question == 'describe':
        x = [o['centre'][0] for o in objs]
        assert all(b - a > 1 for a, b in zip(x, x[1:]))
        return S.describe([S.Obj(o['colour'], o['kind'], 0, 0, 0, 0) for o in objs])
    if m := re.fullmatch(r'(point to|box) (.+)', question):
        the(m[2])

@pytest.mark.parametrize('skill', ['count', 'where', 'relation', 'caption', 'point', 'box'])
def test_answers_recounted_from_pixels(skill):
    for p in T.problems(skill, 300, C):
        again = recount(p['question'], p['prompt'][0][1])
        assert skill in ('point', 'box') or again == p['answer'], (p['question'], p['answer'], again)

def test_what_asks_inside_the_object():
    for p in T.problems('what', 400, C):
        img = p['prompt'][0][1]
        x, y = [(int(i) + .5) / 64 * n for i, n in zip(re.findall(r'<(\d+)>', p['question']), img.shape[1::-1])]
        o = min(read(img), key=lambda o: np.hypot(o['centre'][0] - x, o['centre'][1] - y))
        assert p['answer'] == f"{o['colour']} {o['kind']}"

def test_relations_literally():
    def asked(*objs):
        sc = S.Scene(np.zeros((40, 40, 3), np.uint8), [S.Obj(*o) for o in objs])
        found = [S.relation(rng, sc, C) for rng in rngs(60)]
        return {(*q, *a) for q, a, _ in filter(None, found)}
    square = 'blue', 'square', 20, 1, 9, 9
    assert asked(('red', 'circle', 1, 2, 12, 12), square) == {       # left by 17, lower by 2.5: too little to ask
        ('is red left of blue?', 'yes'), ('is blue left of red?', 'no'),
        ('is red larger than blue?', 'yes'), ('is blue larger than red?', 'no')}
    assert asked(('red', 'cross', 20, 20, 12, 12), square) == {      # a cross is wider but hardly larger
        ('is blue above red?', 'yes'), ('is red above blue?', 'no')}
    assert asked(('red', '3', 20, 2, 9, 15), ('blue', 'square', 20, 7, 5, 5)) == set()
    assert asked(('blue', 'ring', 1, 1, 9, 9), square) == {
        ('is blue ring left of blue square?', 'yes'), ('is blue square left of blue ring?', 'no')}

@pytest.mark.parametrize('n_loc', [64, 1000])
def test_points_and_boxes_say_where_it_is(n_loc):
    codec, n = Codec('bytes', n_loc), 0
    for rng in rngs(800):
        sc = S.scene(rng)
        (H, W), (_, a, o) = sc.img.shape[:2], S.point(rng, sc, codec)
        assert a[0] == codec.sp['point']
        assert S.inside(o, (H, W))[int(codec.unloc(a[2]) * H), int(codec.unloc(a[1]) * W)]
        q, _, o = S.what(rng, sc, codec)
        assert q[:2] == ['what ', codec.sp['point']]
        assert S.inside(o, (H, W))[int(codec.unloc(q[3]) * H), int(codec.unloc(q[2]) * W)]
        _, a, o = S.box(rng, sc, codec)
        off = np.array([codec.unloc(i) for i in a[1:]]) * [W, H, W, H] - [o.x, o.y, o.x + o.w, o.y + o.h]
        assert a[0] == codec.sp['box'] and (abs(off) <= np.array([W, H, W, H]) / n_loc).all()
        n += W != H
    assert n > 50                                       # oblong canvases tell x from y

def test_chart_answers():
    for rng in rngs(300):
        ch = S.chart(rng)
        (q,), (a,), _ = S.bars(rng, ch, C)
        heights = dict(ch.bars)
        if m := re.fullmatch(r'how tall is (\w+)\?', q):
            assert a == str(heights[m[1]])
        else:
            assert heights[a] == {'tallest': max, 'shortest': min}[q[9:-1]](heights.values())

@pytest.mark.parametrize('skill', ['what', 'count', 'where', 'relation', 'chart', 'caption', 'notes'])
def test_blind_guessing_is_near_chance(skill):
    """The most frequent answer to each question, learned from other problems; and the most frequent answer of all."""
    key = lambda p: re.sub(r'<\d+>', '', p['question'])
    table, ps = defaultdict(Counter), T.problems(skill, 1500, C)
    for p in T.problems(skill, 3000, C, seed=1) + T.problems(skill, 3000, C, seed=1, split='train'):
        table[key(p)][p['answer']] += 1
        table[None][p['answer']] += 1
    for k in (key, lambda p: None):
        right = np.mean([p['answer'] == (table.get(k(p)) or table[None]).most_common(1)[0][0] for p in ps])
        assert right < T.CHANCE[skill] + .1, (skill, right)
    if skill in ('where', 'relation'):
        assert right > T.CHANCE[skill] - .05            # and chance is not overstated

def test_blind_pointing_and_drawing_is_near_chance():
    ps = T.problems('point', 300, C)
    best = max(np.mean([T.verify(p, {'text': f'<point><{x}><{y}>'}) for p in ps])
               for x in range(4, 64, 8) for y in range(4, 64, 8))
    assert best < T.CHANCE['point'] + .1
    ps = T.problems('box', 300, C)
    best = max(np.mean([T.verify(p, {'text': f'<box><{a}><{b}><{a + s}><{b + s}>'}) for p in ps])
               for s in (20, 36, 60) for a in range(0, 64 - s, 8) for b in range(0, 64 - s, 8))
    assert best < T.CHANCE['box'] + .1
    ps = T.problems('draw', 600, C)
    for colour in S.COLOURS:
        one = S.paint(random.Random(0), (32, 32), 250, [S.Obj(colour, 'circle', 8, 8, 15, 15)])
        assert np.mean([T.verify(p, {'images': [one]}) for p in ps]) < T.CHANCE['draw'] + .1

# -----------------------------------------------------------------------------
# documents

def test_documents_literally():
    sp, seen = C.sp, set()
    for i in range(400):
        doc = P.document(i, 'train', C)
        e = C.encode(doc)
        text, n = C.untext(e['ids']), len(e['ids'])
        assert n <= 320 and e['ids'][-1] == sp['eot'] and e['w'][-1] == 1
        text = re.sub(r'(<img>)+', '<I>', re.sub(r'(<aud>)+', '<A>', text))
        name = r'(circle|square|triangle|cross|ring|\d)'
        turn = r'<user>[^<]+(<point><\d+><\d+>)?<assistant>([^<]+|<point>(<\d+>){2}|<box>(<\d+>){4})<eot>'
        forms = dict(ask=rf'<boi><\d+><\d+><I><eoi>({turn}){{1,7}}',
                     draw=rf'<user>(draw: a (\w+ )?{name}( and a (\w+ )?{name})?)?<assistant><boi><4><4><I><eoi><eot>',
                     notes=r'<user><boa><A><eoa>notes\?<assistant>[A-G]( [A-G]){0,3}<eot>',
                     play=r'<user>(play: [A-G]( [A-G]){0,3})?<assistant><boa><A><eoa><eot>')
        kind = [k for k, f in forms.items() if re.fullmatch(f, text)]
        assert len(kind) == 1, text
        seen.add(kind[0])
        speaker, media = None, 0                        # questions and roles are not learned, answers and <eot> are
        for t, w in zip(e['ids'].tolist(), e['w'].tolist()):
            if t in (sp['user'], sp['assistant']):
                assert w == 0
                speaker = t
            elif t in (sp['boi'], sp['boa'], sp['eoi'], sp['eoa']):
                media = t in (sp['boi'], sp['boa'])
            elif not media:
                assert w == int(speaker == sp['assistant']), text
            elif speaker == sp['assistant']:
                assert w == 1
        if kind[0] == 'notes':
            assert len(e['frames']) == 5 * len(re.findall(r'[A-G]\b', text.split('<assistant>')[1]))
    assert seen == {'ask', 'draw', 'notes', 'play'}

def test_documents_are_short_and_shared_out():
    docs = [C.encode(P.document(i, 'train', C)) for i in range(1500)]
    n = np.array([len(d['ids']) for d in docs])
    assert 60 < n.mean() < 150 and (n > 256).mean() < .01                # hardly any is cut by a row of 256
    start = Counter(int(d['ids'][0]) for d in docs)
    assert abs(start[C.sp['boi']] / 1500 - (1 - P.p_draw - P.p_notes - P.p_play)) < .04
    asked = [d for d in docs if d['ids'][0] == C.sp['boi']]
    assert .05 < np.mean([d['w'][1] for d in asked]) < .15
    drawn = [C.untext(d['ids']) for d in docs if d['ids'][0] == C.sp['user'] and len(d['patches'])]
    assert .04 < np.mean([t.startswith('<user><assistant>') for t in drawn]) < .18

def combinations(doc):
    """What a document shows or says: coloured things, bars and melodies."""
    pics = [v for kind, v, *_ in doc if kind == 'image']
    text = '|'.join(v if kind == 'text' else ' ' for kind, v, *_ in doc if kind in ('text', 'ids'))
    found = set(re.findall(rf"\b({'|'.join(S.COLOURS)}) ({'|'.join(S.SHAPES + S.DIGITS)})\b", text))
    chart = 'tall is' in text or 'which is' in text
    if chart:
        for c in range(4):
            column = pics[0][:28, 8 * c + 4].astype(int)
            heights = {k: int((column == v).all(1).sum()) // 4 for k, v in S.PALETTE.items()}
            found |= {(k, v) for k, v in heights.items() if v}
    elif pics:
        for o in T.read_picture(pics[0]):                # in the named colour itself, not in a nameless one near it
            x, y = (max(0, int(v) - 6) for v in o['centre'])
            there = abs(pics[0][y:y + 13, x:x + 13].astype(int) - S.PALETTE[o['colour']]).max(-1) <= 8
            found |= {(o['colour'], o['kind'])} if there.sum() >= 12 else set()
    for m in re.findall(r'[A-G](?: [A-G])+', text):
        found.add(m)
    return found

def is_held(c):
    return S.held_melody(c.split()) if isinstance(c, str) else c in OUT or S.HELD_BAR.get(c[0]) == c[1]

def test_held_out_combinations_never_in_training():
    seen = set()
    for i in range(3000):
        now = combinations(P.document(i, 'train', C))
        assert not any(map(is_held, now)), (i, now)
        seen |= now
    assert {(c, k) for c in S.COLOURS for k in S.SHAPES} - set(S.HELD) <= seen     # all others are
    assert {(c, v) for c in S.COLOURS for v in range(1, 7)} - set(S.HELD_BAR.items()) <= seen
    for skill in ('what', 'draw', 'chart', 'play'):
        for p in T.problems(skill, 100, C, split='train'):
            assert not p['held'] and not any(map(is_held, combinations(p['prompt'] + [('text', p['answer'])])))

def test_nameless_colours_are_far_from_the_named_and_only_a_shape_is_said_of_them():
    rng, kinds = random.Random(0), set()
    for _ in range(300):
        sc, drawn = S.scene(rng, p_nameless=.5), S.poster(rng, p_nameless=.5)
        names = [f'a {o.colour} {o.kind}' if o in S.named(drawn) else f'a {o.kind}' for o in drawn.objs]
        assert S.describe(drawn.objs) == ' and '.join(names)
        for sc, o in [(x, o) for x in (drawn, sc) for o in x.objs]:
            if o.colour not in S.PALETTE:
                far = [np.linalg.norm(np.subtract(o.colour, c)) for c in [*S.PALETTE.values(), [S.WHITE] * 3, [S.BLACK] * 3, [S.GREY] * 3]]
                assert min(far) > 80 and abs(sc.img[o.y:o.y + o.h, o.x:o.x + o.w].astype(int) - o.colour).max(-1).min() <= 8
                kinds.add(o.kind)
        asked = P.questions(rng, sc, C)
        assert sum(q[0] in ('what ', 'shape ') for q, _ in asked) <= len(sc.objs)          # each once
        for q, a in asked:
            about = [o for o in sc.objs if q[0] == 'what ' and S.inside(o, sc.img.shape[:2])[
                int(C.unloc(q[3]) * sc.img.shape[0]), int(C.unloc(q[2]) * sc.img.shape[1])]]
            assert all(f'{o.colour} {o.kind}' == a[0] for o in about), (q, a)
            assert '(' not in ''.join(x for x in q + a if isinstance(x, str)) and (q[0] != 'describe' or S.named(sc) == sc.objs), (q, a)
            assert q[0] != 'how many?' or a == [str(len(sc.objs))]
    assert kinds >= set(S.SHAPES)

def test_held_out_combinations_in_validation():
    for i in range(300):
        doc = P.document(i, 'val', C)
        empty = not any(kind == 'text' for kind, *_ in doc) and any(kind == 'audio' for kind, *_ in doc)
        assert empty or any(map(is_held, combinations(doc))) == (i % 2 == 0), i
    for skill in T.SKILLS:
        for i, p in enumerate(T.problems(skill, 60, C)):
            words = [('text', p['question'] + '|' + p['answer'])]
            said = skill in ('what', 'caption', 'notes', 'draw', 'play')         # else it is only in the picture
            found = combinations(words if said else p['prompt'] + words)
            assert p['held'] == (i % 2 == 0) == any(map(is_held, found)), (p['question'], p['answer'])

def test_documents_depend_on_seed_split_and_number_only():
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(C.encode(a).values(), C.encode(b).values()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    one = [P.document(i, 'train', C, 3) for i in range(60)]
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert same(P.document(41, 'train', C, 3), one[41])
    assert not same(P.document(41, 'val', C, 3), one[41]) and not same(P.document(41, 'train', C, 4), one[41])
    shares = (P.p_draw, P.p_chart, P.p_notes, P.p_play)
    for workers in (1, 2, 3):
        many = list(made(partial(P.document, split='train', codec=C, seed=3, shares=shares), 310, workers))
        assert len(many) == 310 and all(same(a, b) for a, b in zip(one, many))
        assert same(many[305], P.document(305, 'train', C, 3)) and not multiprocessing.active_children()
    a, b, c = [[p['answer'] for p in T.problems('box', 20, C, seed=s)] for s in (5, 5, 6)]
    assert a == b != c

def script(*flags):
    return [sys.executable, str(ROOT / 'data/scenes/prepare.py'), *flags]

def test_prepare_script(tmp_path):
    out = tmp_path / 'shards'
    r = subprocess.run(script('--n_train=70', '--n_val=20', f'--out={out}'), capture_output=True, text=True)
    assert r.returncode == 0 and '70 documents' in r.stdout and 'licence' in r.stdout, r.stderr
    s = open_shards(out, 'val', C)
    lo, hi = s['doc'][7, 0], s['doc'][8, 0]
    e = C.encode(P.document(7, 'val', C))
    assert np.array_equal(s['ids'][lo:hi], e['ids']) and np.array_equal(s['w'][lo:hi], e['w'])
    assert 'licence' in json.loads((out / 'meta.json').read_text())
    r = subprocess.run(script('--p_draw=1.5', f'--out={out}'), capture_output=True, text=True)
    assert r.returncode and 'p_draw' in r.stderr and len(r.stderr.strip().splitlines()) == 1

def children(pid):
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()

@pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes in /proc')
@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, 'worker'])
def test_prepare_interrupted_leaves_nothing(tmp_path, sig):
    """No folder that could be taken for a data set, no process; also if it is killed, or one of its workers is."""
    p = subprocess.Popen(script('--n_train=4000000', f'--out={tmp_path / "shards"}'), stderr=subprocess.PIPE, text=True)
    end = time.time() + 60
    while not list(tmp_path.glob('*/train.ids.bin')) and time.time() < end:
        time.sleep(.05)
    time.sleep(.5)
    workers = children(p.pid)
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL) if sig == 'worker' else p.send_signal(sig)
    _, err = p.communicate(timeout=60)                  # returns only when the workers have gone as well
    assert not any(Path(f'/proc/{w}').exists() for w in workers) or sig == signal.SIGKILL
    assert p.returncode == {signal.SIGKILL: -9, 'worker': 2}.get(sig, 130) and 'Traceback' not in err
    assert 'a worker process died' in err or sig != 'worker'
    assert not (tmp_path / 'shards').exists() and (sig == signal.SIGKILL or list(tmp_path.iterdir()) == [])

# -----------------------------------------------------------------------------
# judges

def test_picture_reader_on_held_out_posters():
    """What the rule-based reader itself gets right: clean pictures, noisy ones, blurred ones."""
    right = defaultdict(list)
    for i in range(300):
        p = T.problems('draw', 1, C, seed=i)[0]
        img = S.poster(random.Random(f'problem/{i}/val/draw/0'), True).img
        noisy = np.clip(img + np.random.default_rng(i).normal(0, 20, img.shape), 0, 255).astype(np.uint8)
        x = np.pad(img.astype(float), ((1, 1), (1, 1), (0, 0)), mode='edge')
        blurred = ((2 * x[1:-1, 1:-1] + x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 6).astype(np.uint8)
        for name, a in dict(clean=img, noisy=noisy, blurred=blurred).items():
            j = T.judge(p, {'images': [a]})
            right[name].append((j['score'], j['colour'], j['shape'], j['exact']))
    assert np.mean(right['clean'], 0).tolist() == [1, 1, 1, 1]
    assert np.mean(right['noisy'], 0)[1] >= .99 and np.mean(right['noisy'], 0)[2] >= .9
    assert np.mean(right['blurred'], 0)[1] >= .99 and np.mean(right['blurred'], 0)[2] >= .9

def test_draw_judge_is_strict():
    p = dict(skill='draw', objs=[('red', 'circle'), ('blue', 'square')])
    draw = lambda *objs: {'images': [S.paint(random.Random(0), (32, 32), 250, [S.Obj(*o) for o in objs])]}
    red, blue = ('red', 'circle', 2, 9, 11, 11), ('blue', 'square', 18, 9, 11, 11)
    assert T.judge(p, draw(red, blue)) == dict(score=1, colour=1, shape=1, exact=1)
    assert T.judge(p, draw(('blue', 'square', 2, 9, 11, 11), ('red', 'circle', 18, 9, 11, 11)))['exact'] == 0
    assert T.judge(p, draw(('red', 'ring', 2, 9, 11, 11), blue)) == dict(score=1, colour=1, shape=0, exact=0)
    assert T.verify(p, draw(red)) == 0 == T.verify(p, draw(red, ('green', 'square', 18, 9, 11, 11)))
    assert T.verify(p, draw()) == 0
    assert T.judge(p, draw(red, blue, ('green', 'square', 12, 24, 5, 5))) == dict(score=1, colour=1, shape=1, exact=1)
    rings = dict(skill='draw', objs=[('red', 'ring'), ('blue', 'ring')])
    assert T.judge(rings, draw(('red', 'ring', 2, 9, 11, 11), blue)) == dict(score=1, colour=1, shape=0, exact=0)
    colours = [(c, 'square', 1 + 10 * (i % 3), 2 + 14 * (i // 3), 8, 8 + i // 5) for i, c in enumerate(S.COLOURS)]
    one = dict(skill='draw', objs=[('red', 'square')])
    assert T.verify(one, draw(*colours)) == 0           # all colours at once is not the asked colour
    assert T.verify(one, {'images': [np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]}) == 0

def test_notes_read_after_the_round_trip():
    for i, p in enumerate(T.problems('play', 40, C)):
        w = S.wave(random.Random(i), p['answer'].split())
        assert w.dtype == np.float32 and len(w) == 1600 * len(p['answer'].split())
        assert T.read_notes(w) == p['answer'].split()
        back = unmel(mel(w).astype(np.float16).astype(np.float32))
        assert T.judge(p, {'audio': [back]}) == dict(score=1, right=1)
        wrong = p['answer'].split()
        wrong[1] = 'C' if wrong[1] != 'C' else 'D'
        n = len(wrong)
        assert T.judge(p, {'audio': [S.wave(random.Random(i), wrong)]}) == dict(score=0, right=(n - 1) / n)
        long = T.judge(p, {'audio': [np.concatenate([w, w[:1600]])]})
        assert long == dict(score=0, right=n / (n + 1))
    assert T.read_notes(np.zeros(3200)) == ['?', '?'] and T.read_notes(np.zeros(0)) == []
    t = np.arange(1600) / 8000
    assert T.read_notes(1e-4 * np.sin(2 * np.pi * 1046.5 * t)) == ['?']                  # silence, as good as
    assert [T.read_notes(np.sin(2 * np.pi * f * t)) for f in (1046.5, 1568, 1976)] == [['C'], ['G'], ['B']]
    assert T.read_notes(np.sin(2 * np.pi * 440 * t)) != ['A'] and T.read_notes(np.sin(2 * np.pi * 1109 * t)) == ['?']

@pytest.mark.parametrize('skill', [s for s in T.SKILLS if s not in ('draw', 'play')])
def test_right_answers_score_and_wrong_ones_do_not(skill):
    ps = T.problems(skill, 40, C)
    for i, p in enumerate(ps):
        for text in (p['answer'], p['answer'] + '<eot>', p['answer'] + '<eot><user>more', f" {p['answer']} "):
            assert T.verify(p, {'text': text}) == 1
        ids = C.encode([('text', '')])['ids'].tolist()
        for part in re.findall(r'<\w+>|[^<]+', p['answer']) + ['<eot>']:
            key = part.strip('<>')
            ids += C.text(part) if part[0] != '<' else [C.loc0 + int(key)] if key.isdigit() else [C.sp[key]]
        assert T.verify(p, {'ids': ids, 'text': 'ignored'}, C) == 1
        other = next(q for q in ps if q['answer'] != p['answer'])
        assert T.verify(p, {'text': other['answer']}) < 1 or skill == 'point'
        assert T.verify(p, {'text': p['answer'] + ' ' + other['answer']}) == 0
        assert C.encode(p['prompt'])['w'].sum() == 0 and C.encode(p['prompt'])['ids'][-1] == C.sp['assistant']

def test_iou_literally():
    p = dict(skill='box', n_loc=64, box=(10.5 / 64, 20.5 / 64, 30.5 / 64, 40.5 / 64))
    score = lambda *v: T.verify(p, {'text': '<box>' + ''.join(f'<{i}>' for i in v)})
    assert score(10, 20, 30, 40) == 1 and score(10, 20, 20, 40) == pytest.approx(.5)
    assert score(20, 30, 40, 50) == pytest.approx(1 / 7)
    assert score(30, 40, 10, 20) == score(40, 50, 60, 60) == score(10, 20, 30, 99) == 0
    assert score(10, 20, 30) == score(10, 20, 30, 40, 50) == 0

BAD = [{'text': t} for t in ['', None, 7, b'x', '<point>', '<point><1>', '<box><1><2>', '<point><99><1>',
                             '<point><1><9999>', '<point><-1><3>', '<point><1><2><3>', '<box><9><9><9><9>',
                             '__import__(1)', '\x00\ud800', 'a' * 100000]] + \
      [{'images': i} for i in [[], None, [None], ['x'], [np.zeros((0, 0, 3), np.uint8)], [np.zeros((4, 4))],
                               [np.full((32, 32, 3), 255, np.uint8)], [np.full((8, 8, 3), np.nan)]]] + \
      [{'audio': a} for a in [[], None, ['C E G'], [np.zeros(0)], [np.full(4800, np.nan)], [np.full(4800, np.inf)],
                              [np.zeros((2, 2))]]] + [{}, None, {'ids': [10 ** 9]}, {'ids': 'x'}, {'ids': None}]

@pytest.mark.filterwarnings('error')
def test_malformed_outputs_score_nothing():
    for skill in T.SKILLS:
        p = T.problems(skill, 1, C)[0]
        for out in BAD:
            assert T.verify(p, out) == 0 and T.verify(p, out, C) == 0, (skill, out)

def test_judges_leave_random_states_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for skill in T.SKILLS:
        p = T.problems(skill, 2, C)[0]
        T.judge(p, {'text': p['answer'], 'images': [S.poster(random.Random(0)).img], 'audio': [np.ones(4800)]})
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    for bad in [dict(skill='dance'), dict(skill='what', split='test')]:
        with pytest.raises(ValueError, match='there are what'):
            T.problems(n=1, codec=C, **bad)
