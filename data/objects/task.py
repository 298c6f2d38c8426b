"""
Questions about pictures of many objects and edits that were never trained on, and the rules that judge. See objects.py, prepare.py.

    for p in problems('points', 64, codec):             # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': '<point><9><40>1'})  # in [0, 1]

The judges only read: text by comparison or a regular expression, pictures by colour, connected areas and templates.
"""
import random
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.objects import objects as O
from data.scenes.prepare import ask

# skill -> what the best answer scores that is always the same (tests/test_skills.py counts it)
CHANCE = dict(what=.11, count=.27, where=.25, relation=.5, point=.04, box=.05, points=.14, recolour=0., remove=0., add=0.)
SKILLS = list(CHANCE)
MAX_NEW = 72                                            # positions of an answer: a picture of 64 patches, or 12 points

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """-> n dicts: skill, prompt (segments), question and answer (str as codec.untext gives it), chance, n_loc, held (every even
    one if split is 'val', none if it is 'train'), max_new, and for the judges of point: mask, bool (H, W); box: box, 4 fractions;
    points: centres and sizes [(x, y, w, h)] as fractions; edits: after, uint8 (64, 64, 3), and objs. The same for the same arguments."""
    if skill not in SKILLS or split not in ('train', 'val'):
        raise ValueError(f'no problems of skill={skill!r}, split={split!r}: there are {", ".join(SKILLS)}; train, val')
    return [problem(skill, random.Random(f'objects/problem/{seed}/{split}/{skill}/{i}'), split == 'val' and i % 2 == 0, codec)
            for i in range(n)]

def problem(skill, rng, held, codec):
    """One of problems(), drawn from rng (random.Random)."""
    p, found = dict(skill=skill, chance=CHANCE[skill], n_loc=codec.n_loc, held=held, max_new=MAX_NEW), None
    if skill in O.EDITS:
        img, q, p['after'], p['objs'] = O.edit(rng, skill, codec, held)
        a = []
    while skill not in O.EDITS and not found:           # a scene that allows the question
        sc = O.scene(rng, held)
        found = O.QUESTIONS[skill](rng, sc, codec)
        if found:
            q, a, o = found
            img, (H, W) = sc.img, sc.top.shape
    if skill == 'point':
        p['mask'] = O.inside(o, (H, W))
    if skill == 'box':
        p['box'] = tuple(codec.unloc(i) for i in a[1:])
    if skill == 'points':
        p['at'] = [((o.x + o.w / 2) / W, (o.y + o.h / 2) / H, o.w / W, o.h / H) for o in o]
    show = lambda parts: ''.join(x if isinstance(x, str) else codec.untext([x]) for x in parts)
    return dict(p, prompt=ask(codec, q, [('image', img, 0)]), question=show(q), answer=show(a))

def areas(label):
    """int (H, W), -1: none -> for each connected area (8 neighbours) of one label: (label, rows, columns)."""
    pad = np.pad(label, 1, constant_values=-1)
    W, at = pad.shape[1], np.flatnonzero(pad >= 0)
    name, flat = np.arange(pad.size), pad.ravel()
    near = [np.where(flat[at + d] == flat[at], at + d, at) for d in (1, -1, W, -W, W + 1, W - 1, 1 - W, -W - 1)]
    old = None
    while old is None or (old != name[at]).any():       # the largest number of an area spreads over it, in jumps
        old = name[at]
        for n in near:
            name[at] = np.maximum(name[at], name[n])
        name[at] = name[name[at]]
    for k in np.unique(name[at]):
        r, c = np.divmod(at[name[at] == k], W)
        yield int(pad[r[0], c[0]]), r - 1, c - 1

TONES = np.float32([np.float32(O.PALETTE[c]) * s for c in O.COLOURS for s in (1, (1 + O.SHADE) / 2, O.SHADE)])

def read_picture(img):
    """uint8 (H, W, 3) -> list of dict(colour, kind, area in pixels, box (x, y, w, h), centre (x, y)), largest first: every connected
    area of at least 16 coloured pixels that are nearest to one colour of the palette, lit or shaded."""
    x, found = np.asarray(img, np.float32), []
    if x.ndim != 3 or x.shape[2] != 3 or not x.size:
        return []
    vivid, label, off = np.ptp(x, axis=2), np.full(x.shape[:2], -1), np.zeros(x.shape[:2])
    some = vivid > 50
    d = ((x[some][:, None] - TONES) ** 2).sum(-1)
    label[some], off[some] = d.argmin(-1) // 3, d.min(-1)
    for colour, r, c in areas(label):
        full = vivid[r, c] > .5 * np.median(vivid[r, c])                # pixels that the object covers by half or more
        r, c = r[full], c[full]
        if len(r) >= 16 and np.ptp(r) > 3 and np.ptp(c) > 3 and np.median(off[r, c]) < 50 ** 2:       # ... else an edge's mixed colours
            a = np.zeros((np.ptp(r) + 1, np.ptp(c) + 1), bool)
            a[r - r.min(), c - c.min()] = True
            like = lambda k: (a & (t := O.mask(k, *a.shape[::-1]) >= .5)).sum() / (a | t).sum()
            found.append(dict(colour=O.COLOURS[colour], kind=max(O.KINDS, key=like), area=len(r),
                              box=(int(c.min()), int(r.min()), a.shape[1], a.shape[0]),
                              centre=((c.min() + c.max() + 1) / 2, (r.min() + r.max() + 1) / 2)))
    return sorted(found, key=lambda o: -o['area'])

def matched(a, b, near):
    """How many of a can be paired with one of b each, where near(i, j) allows it: a maximum matching (augmenting paths)."""
    of = {}
    def grow(i, seen):
        for j in range(len(b)):
            if j not in seen and near(a[i], b[j]):
                seen.add(j)
                if j not in of or grow(of[j], seen):
                    of[j] = i
                    return True
        return False
    return sum(grow(i, set()) for i in range(len(a)))

def f1(hits, made, asked):
    return 2 * hits / (made + asked) if made + asked else 1.

def verify(problem, output, codec=None):
    """-> float: the score of judge()."""
    return judge(problem, output, codec)['score']

def judge(problem, output, codec=None):
    """output: dict of what the model made: text (str, specials as <name>), or ids if codec is given; images [uint8 (H, W, 3)] ->
    dict with score in [0, 1]; point: inside the object; box: IoU; points: F1 of pairs within half an object (number: is the number
    right?); edits: 1 if the picture read holds exactly the objects asked for, each within half an object of its place (objects:
    their F1, ground: is what lies around unchanged?); else 1 for the exact answer."""
    try:
        with np.errstate(all='ignore'):
            return judge_well(problem, output, codec)
    except Exception:                                   # whatever a model may have made, it is only a wrong answer
        return dict(score=0.)

def judge_well(p, out, codec):
    """judge() for an output that can be read; else any exception."""
    if p['skill'] in O.EDITS:
        img = np.asarray(out['images'][-1])
        if img.shape != p['after'].shape:
            return dict(score=0.)
        seen = read_picture(img)
        hits = matched(p['objs'], seen, lambda o, s: (o.colour, o.kind) == (s['colour'], s['kind']) and
                       np.hypot(o.x + o.w / 2 - s['centre'][0], o.y + o.h / 2 - s['centre'][1]) <= (o.w + o.h) / 4)
        free = ~np.any([O.inside(o, img.shape[:2]) for o in p['objs']] + [np.zeros(img.shape[:2], bool)], 0)
        same = float(np.median(abs(img.astype(int) - p['after'])[free]) <= 24)
        return dict(score=float(hits == len(seen) == len(p['objs'])) * same, objects=f1(hits, len(seen), len(p['objs'])), ground=same)
    text = codec.untext(out['ids']) if codec and 'ids' in out else out['text']
    text = re.split('<eot>|<user>', text)[0].strip()
    if p['skill'] not in ('point', 'box', 'points'):
        return dict(score=float(text == p['answer']))
    one = dict(point='(?:<point>(?:<[0-9]{1,4}>){2})', points='(?:<point>(?:<[0-9]{1,4}>){2}){0,64}([0-9]{1,2})',
               box='<box>(?:<[0-9]{1,4}>){4}')[p['skill']]
    found = re.fullmatch(one, text, re.ASCII)
    v = [(int(i) + .5) / p['n_loc'] for i in re.findall('<([0-9]+)>', found[0])]
    if max(v, default=0) >= 1:
        return dict(score=0.)
    if p['skill'] == 'point':
        H, W = p['mask'].shape
        return dict(score=float(p['mask'][int(v[1] * H), int(v[0] * W)]))
    if p['skill'] == 'points':
        made = list(zip(v[::2], v[1::2]))
        hits = matched(p['at'], made, lambda o, m: abs(o[0] - m[0]) <= o[2] / 2 and abs(o[1] - m[1]) <= o[3] / 2)
        return dict(score=f1(hits, len(made), len(p['at'])), number=float(int(found[1]) == len(p['at'])))
    b, area = p['box'], lambda q: max(0, q[2] - q[0]) * max(0, q[3] - q[1])
    both = area((max(v[0], b[0]), max(v[1], b[1]), min(v[2], b[2]), min(v[3], b[3])))
    return dict(score=both / (area(v) + area(b) - both))
