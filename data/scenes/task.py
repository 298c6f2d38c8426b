"""
Questions about scenes that were never trained on, and the rules that judge the answers. See scenes.py, prepare.py.

    for p in problems('where', 64, codec):              # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': 'top left<eot>'})    # in [0, 1]

The judges only read: text by comparison or a regular expression, pictures by connected areas, nearest colour and
template, sound by the peak of its spectrum. What cannot be read scores 0. Nothing is evaluated, no random state moves.
"""
import random
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.codec import mel
from data.scenes import scenes as S
from data.scenes.prepare import ask

# skill -> what the best answer scores that sees neither picture nor sound (point, box: always the same, in the middle)
CHANCE = dict(what=.04, count=.36, where=.25, relation=.5, point=.17, box=.17, chart=.17, caption=.02, notes=0.,
              draw=.17, play=0.)
SKILLS = list(CHANCE)
QUESTIONS = dict(what=S.what, count=S.count, where=S.where, relation=S.relation, point=S.point, box=S.box,
                 caption=S.caption, chart=S.bars)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """-> n dicts: skill, prompt (segments), question and answer (str as codec.untext gives it), chance, n_loc, held
    (has it a held-out combination: every even one if split is 'val', none if it is 'train'), and for the judges of
    point: mask, bool (H, W); box: box, 4 fractions; draw: objs, [(colour, kind)] from left to right. The same for the
    same arguments; drawn apart from the documents of prepare.py. ValueError: unknown skill or split."""
    if skill not in SKILLS or split not in ('train', 'val'):
        raise ValueError(f'no problems of skill={skill!r}, split={split!r}: there are {", ".join(SKILLS)}; train, val')
    return [problem(skill, random.Random(f'problem/{seed}/{split}/{skill}/{i}'), split == 'val' and i % 2 == 0, codec)
            for i in range(n)]

def problem(skill, rng, held, codec):
    """One of problems(), drawn from rng (random.Random)."""
    p, before, inner = dict(skill=skill, chance=CHANCE[skill], n_loc=codec.n_loc, held=held), [], []
    if skill in ('notes', 'play'):
        notes = S.melody(rng, held)
        q, a = ['notes?'] if skill == 'notes' else ['play: ' + ' '.join(notes)], [' '.join(notes)]
        inner = [('audio', mel(S.wave(rng, notes)), 0)] if skill == 'notes' else []
    elif skill == 'draw':
        objs = S.poster(rng, held).objs
        q, a, p['objs'] = ['draw: ' + S.describe(objs)], [S.describe(objs)], [(o.colour, o.kind) for o in objs]
    else:
        out, found = S.HELD + S.HELD_DIGITS, None
        while not found:                                # a scene that allows the question, about what is held out in it
            sc = S.chart(rng, held) if skill == 'chart' else S.scene(rng, held)
            found = QUESTIONS[skill](rng, sc, codec)
            o = found and found[2]
            if held and skill in ('what', 'where', 'point', 'box') and o and (o.colour, o.kind) not in out \
                    or held and isinstance(o, str) and found[1] != [str(S.HELD_BAR[o])]:
                found = None
        q, a, before, (H, W) = found[0], found[1], [('image', sc.img, 0)], sc.img.shape[:2]
        if skill == 'point':
            p['mask'] = S.inside(o, (H, W))
        if skill == 'box':
            p['box'] = tuple(codec.unloc(i) for i in a[1:])               # as exact as loc tokens can say it
    show = lambda parts: ''.join(x if isinstance(x, str) else codec.untext([x]) for x in parts)
    return dict(p, prompt=ask(codec, q, before, inner), question=show(q), answer=show(a))

def read_picture(img):
    """uint8 (H, W, 3) -> list of dict(colour, kind, area in pixels, centre (x, y) in pixels), largest first: every
    connected area of at least 12 pixels that differs from the background (the median of the border)."""
    x = np.asarray(img, np.float32)
    back = np.median(np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]), 0)
    left, found = abs(x - back).max(-1) > 60, []
    for start in np.argwhere(left):
        todo, part = [tuple(start)] * bool(left[tuple(start)]), []
        left[tuple(start)] = False
        while todo:                                     # flood fill over 8 neighbours
            r, c = todo.pop()
            part.append((r, c))
            for rc in [(i, j) for i in (r - 1, r, r + 1) for j in (c - 1, c, c + 1)]:
                if 0 <= rc[0] < x.shape[0] and 0 <= rc[1] < x.shape[1] and left[rc]:
                    left[rc] = False
                    todo.append(rc)
        if len(part) < 12:
            continue
        r, c = np.array(part).T
        far = abs(x[r, c] - back).sum(-1)               # the half that is least mixed with the background
        tone = np.median(x[r, c][far >= np.median(far)], 0)
        colour = min(S.COLOURS, key=lambda k: abs(tone - S.PALETTE[k]).sum())
        a = np.zeros((np.ptp(r) + 1, np.ptp(c) + 1))    # coverage: how far each pixel is on the way from back to tone
        a[r - r.min(), c - c.min()] = ((x[r, c] - back) @ (tone - back) / ((tone - back) ** 2).sum()).clip(0, 1)
        kind = max(S.SHAPES + S.DIGITS, key=lambda k: alike(a, k))
        found.append(dict(colour=colour, kind=kind, area=len(part), centre=(c.mean() + .5, r.mean() + .5)))
    return sorted(found, key=lambda o: -o['area'])

def alike(a, kind):
    """Coverage (h, w) -> its intersection over union with the shape or digit stretched to (h, w)."""
    h, w = a.shape
    digit = kind in S.DIGITS and S.mask(kind, 9, 15)[np.arange(h) * 15 // h][:, np.arange(w) * 9 // w]
    t = digit if kind in S.DIGITS else S.mask(kind, w, h)
    return np.minimum(a, t).sum() / np.maximum(a, t).sum()

def read_notes(wave):
    """float (n,) at 8 kHz -> list of note names, one each .2 s; '?' for silence and for what is far from the scale."""
    x, step, notes = np.asarray(wave, np.float64), int(S.NOTE_S * S.RATE), []
    hz = np.fft.rfftfreq(1 << 14, 1 / S.RATE)
    for i in range(round(len(x) / step)):
        part = x[i * step:(i + 1) * step][step // 10:-step // 10]
        power = abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 14)) * ((hz > 950) & (hz < 2100))
        off = {n: abs(np.log2(f / max(hz[np.argmax(power)], 1))) for n, f in S.HZ.items()}              # in octaves
        best = min(off, key=off.get)
        notes.append(best if (part ** 2).mean() > 1e-6 and off[best] < .05 else '?')
    return notes

def verify(problem, output, codec=None):
    """-> float: the score of judge()."""
    return judge(problem, output, codec)['score']

def judge(problem, output, codec=None):
    """output: dict of what the model made, any of text (str, specials as <name>), ids (instead of text, if codec is
    given), images [uint8 (H, W, 3)], audio [float (n,)]. -> dict with score in [0, 1]; point: inside the object; box:
    IoU; draw: score = colour: the largest areas, as many as asked, have the asked colours, shape: likewise, exact:
    both, in the asked order; play: score: all notes right, right: the part of them; else 1 for the exact answer."""
    try:
        with np.errstate(all='ignore'):
            return judge_well(problem, output, codec)
    except Exception:                                   # whatever a model may have made, it is only a wrong answer
        return dict(score=0.)

def judge_well(p, out, codec):
    """judge() for an output that can be read; else any exception."""
    if p['skill'] == 'draw':
        seen = sorted(read_picture(out['images'][0])[:len(p['objs'])], key=lambda o: o['centre'][0])
        seen = [(o['colour'], o['kind']) for o in seen]
        colour, shape = (float(sorted(o[k] for o in seen) == sorted(o[k] for o in p['objs'])) for k in (0, 1))
        return dict(score=colour, colour=colour, shape=shape, exact=float(seen == p['objs']))
    if p['skill'] == 'play':
        asked, got = p['answer'].split(), read_notes(out['audio'][0])
        right = sum(a == b for a, b in zip(asked, got)) / max(len(asked), len(got))
        return dict(score=float(asked == got), right=right)
    text = codec.untext(out['ids']) if codec and 'ids' in out else out['text']
    text = re.split('<eot>|<user>', text)[0].strip()
    if p['skill'] not in ('point', 'box'):
        return dict(score=float(text == p['answer']))
    found = re.fullmatch(f"<{p['skill']}>" + '<([0-9]{1,4})>' * (2 if p['skill'] == 'point' else 4), text)
    v = [(int(i) + .5) / p['n_loc'] for i in found.groups()]
    if p['skill'] == 'point':
        H, W = p['mask'].shape
        return dict(score=float(p['mask'][int(v[1] * H), int(v[0] * W)]))
    b, area = p['box'], lambda q: max(0, q[2] - q[0]) * max(0, q[3] - q[1])
    both = area((max(v[0], b[0]), max(v[1], b[1]), min(v[2], b[2]), min(v[3], b[3])))
    return dict(score=both / (area(v) + area(b) - both) if max(v) < 1 else 0.)
