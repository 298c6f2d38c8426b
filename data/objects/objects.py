"""
What `objects` consists of: pictures of 64x64 to 160x160 with up to 12 textured shapes that overlap, on uneven, noisy grounds;
questions about them, and edits of smaller, clean ones. Everything is drawn from the random.Random given. Pixels are (x, y), y down.

An object shows at least 60% of itself; objects of one colour stay apart. Held out, never in a training document: the colour-shape
pairs that `scenes` holds out, and for the two new shapes 1/8 of the pairs by hash.
"""
import zlib
from collections import Counter, namedtuple
from functools import lru_cache
import numpy as np
from data.scenes import scenes as S
from data.scenes.scenes import COLOURS, PALETTE, locs

KINDS = S.SHAPES + ['diamond', 'tee']
TEXTURES = ['plain', 'plain', 'striped', 'dotted', 'checked']
SHADE = .78                                                             # of the dark part of a texture
SIZES = [(64, 64)] * 15 + [(64, 96), (96, 64), (96, 96), (128, 128), (160, 160)]                 # height, width

# x, y: upper left corner, in pixels; tone: what each channel is off by
Obj = namedtuple('Obj', 'colour kind texture x y w h tone')
Scene = namedtuple('Scene', 'img objs top')                             # top: int (H, W), the object seen at a pixel, -1: none

def is_held(colour, kind):
    return (colour, kind) in S.HELD if kind in S.SHAPES else zlib.crc32(f'{colour} {kind}'.encode()) % 8 == 0

PAIRS = [(c, k) for c in COLOURS for k in KINDS]
HELD = [p for p in PAIRS if is_held(*p)]
FREE = [p for p in PAIRS if not is_held(*p)]

# drawing
@lru_cache(None)
def mask(kind, w, h):
    """-> float32 (h, w): the part of each pixel that the shape covers."""
    if kind in S.SHAPES:
        return S.mask(kind, w, h)
    v, u = (np.indices((8 * h, 8 * w)) + .5) / np.reshape((h, w), (2, 1, 1)) / 4 - 1
    m = abs(u) + abs(v) <= 1 if kind == 'diamond' else (v <= -.34) | (abs(u) <= .34)
    return m.reshape(h, 8, w, 8).mean((1, 3), dtype=np.float32)

@lru_cache(None)
def texture(name, w, h):
    """-> float32 (h, w, 1): what the colour is multiplied by."""
    y, x = np.indices((h, w))
    dark = dict(plain=x < 0, striped=(x + y) % 6 < 3, dotted=(x % 5 < 2) & (y % 5 < 2), checked=x // 4 % 2 != y // 4 % 2)[name]
    return np.where(dark, np.float32(SHADE), np.float32(1))[..., None]

def inside(o, hw):
    """Obj -> bool (H, W): where a point counts as on it, covered or not; a ring's hole belongs to it."""
    m = np.zeros(hw, bool)
    m[o.y:o.y + o.h, o.x:o.x + o.w] = mask('circle' if o.kind == 'ring' else o.kind, o.w, o.h) >= .5
    return m

def paint(objs, ground):
    """objs from the lowest to the highest, ground float32 (H, W, 3) -> uint8 (H, W, 3)."""
    img = ground.copy()
    for o in objs:
        part = img[o.y:o.y + o.h, o.x:o.x + o.w]
        part += mask(o.kind, o.w, o.h)[..., None] * (np.float32(np.add(PALETTE[o.colour], o.tone)) * texture(o.texture, o.w, o.h) - part)
    return np.clip(np.rint(img), 0, 255).astype(np.uint8)

def ground(rng, hw, plain=False):
    """A grey level, or one that changes across the picture, with noise -> float32 (H, W, 3)."""
    img = np.full((*hw, 3), rng.choice([S.WHITE, S.WHITE, S.BLACK, S.GREY]), np.float32)
    if not plain and rng.random() < .5:
        img += rng.uniform(-40, 40) * np.linspace(-1, 1, hw[1], dtype=np.float32)[:, None]
    if not plain and rng.random() < .5:
        img += np.random.default_rng(rng.getrandbits(32)).standard_normal((*hw, 1), np.float32) * rng.uniform(3, 12)
    return img

def place(rng, hw, what, sizes, overlap):
    """what: [(colour, kind)] -> [Obj] in drawing order and `top`, or None where no room was found."""
    objs, top, full = [], np.full(hw, -1), []
    for colour, kind in what:
        for _ in range(30):
            w = rng.randint(*sizes)
            h = w if rng.random() < .6 else rng.randint(*sizes)
            o = Obj(colour, kind, rng.choice(TEXTURES), rng.randint(0, hw[1] - w), rng.randint(0, hw[0] - h), w, h,
                    tuple(rng.randint(-8, 8) for _ in range(3)))
            if any(o.x < p.x + p.w + 2 and p.x < o.x + w + 2 and o.y < p.y + p.h + 2 and p.y < o.y + h + 2
                   for p in objs if not overlap or p.colour == colour):
                continue
            m, part = mask(kind, w, h) >= .5, top[o.y:o.y + h, o.x:o.x + w]
            lost = Counter(part[m].tolist())
            seen = np.bincount(top.ravel() + 1, minlength=len(objs) + 1)[1:]
            if all(seen[k] - n >= .6 * full[k] for k, n in lost.items() if k >= 0):
                part[m] = len(objs)
                objs.append(o)
                full.append(int(m.sum()))
                break
        else:
            return None
    return objs, top

def scene(rng, held=False):
    """1 to 12 objects -> Scene; held: one of them is a held-out pair, else none is. Some colour comes several times."""
    placed = None
    while not placed:
        hw = rng.choice(SIZES)
        n = rng.randint(1, 6) if hw == (64, 64) or rng.random() < .4 else rng.randint(4, 12)
        often, what = rng.choice(COLOURS), [rng.choice(HELD)] * held
        while len(what) < n:
            what.append(rng.choice([p for p in FREE if p[0] == often] if rng.random() < .3 else FREE))
        rng.shuffle(what)
        sizes = (10, 17) if min(hw) == 64 else (11, 24)
        placed = place(rng, hw, what, sizes, overlap=rng.random() < .6)
    objs, top = placed
    return Scene(paint(objs, ground(rng, hw)), objs, top)

# questions: (rng, scene, codec) -> question, answer (lists of str and ids), the object asked about or None; None: left open
def alone(sc):
    """Objects whose colour and shape nothing else has; those with a held-out pair only, if there are any."""
    have = Counter((o.colour, o.kind) for o in sc.objs)
    one = [o for o in sc.objs if have[o.colour, o.kind] == 1]
    return [o for o in one if is_held(o.colour, o.kind)] or one

def pick(rng, sc):
    some = alone(sc)
    return rng.choice(some) if some else None

name = lambda o: f'{o.colour} {o.kind}'

def what(rng, sc, codec):
    held = [i for i, o in enumerate(sc.objs) if is_held(o.colour, o.kind)]
    i = rng.choice(held or range(len(sc.objs)))
    (H, W), seen = sc.top.shape, np.argwhere(sc.top == i)
    for _ in range(20):                                                 # a pixel of it whose bin's centre is on it as well
        y, x = seen[rng.randrange(len(seen))]
        ids = locs(codec, sc.img, x + .5, y + .5)
        if sc.top[int(codec.unloc(ids[1]) * H), int(codec.unloc(ids[0]) * W)] == i:
            return ['what ', codec.sp['point'], *ids], [name(sc.objs[i])], sc.objs[i]

def group(rng, sc, none=True):
    """Words for a set of objects -> words, the objects: each number of them, from none (or 1) to all, as often as the others."""
    words = ['', *(f' {c}' for c in COLOURS), *(f' {k}' for k in KINDS), *(f' {c} {k}' for c, k in PAIRS)]
    sets = {}
    for w in words:
        some = [o for o in sc.objs if {*w.split()} <= {o.colour, o.kind}]
        sets.setdefault(len(some), []).append((w, some))
    return rng.choice(sets[rng.choice([n for n in sets if n or none])])

def count(rng, sc, codec):
    words, some = group(rng, sc)
    return [f'how many{words}?'], [str(len(some))], None

def points(rng, sc, codec):
    """A point for every instance, in (x, y) order, then the number."""
    words, some = group(rng, sc, rng.random() < .3)
    ids = sorted(locs(codec, sc.img, o.x + o.w / 2, o.y + o.h / 2) for o in some)
    return [f'point to every{words or " object"}'], [*(i for xy in ids for i in (codec.sp['point'], *xy)), str(len(some))], some

def where(rng, sc, codec):
    (H, W), o = sc.top.shape, pick(rng, sc)
    x, y = (2 * o.x + o.w - W, 2 * o.y + o.h - H) if o else (0, 0)
    if min(abs(x), abs(y)) >= 8:
        return [f'where is {name(o)}?'], [f'{"top" if y < 0 else "bottom"} {"left" if x < 0 else "right"}'], o

def relation(rng, sc, codec):
    tests = {'left of': lambda a, b: 2 * a.x + a.w + 10 <= 2 * b.x + b.w, 'above': lambda a, b: 2 * a.y + a.h + 10 <= 2 * b.y + b.h,
             'larger than': lambda a, b: a.w * a.h > 1.5 * b.w * b.h and a.kind == b.kind}
    have = Counter((o.colour, o.kind) for o in sc.objs)
    one, first = [o for o in sc.objs if have[o.colour, o.kind] == 1], alone(sc)
    rel = rng.choice([*tests])
    pairs = [(a, b) for a in one for b in one if (a in first or b in first) and tests[rel](a, b)]
    if pairs:
        a, b = rng.choice(pairs)
        yes = rng.random() < .5
        p, q = (a, b) if yes else (b, a)
        return [f'is {name(p)} {rel} {name(q)}?'], ['yes' if yes else 'no'], a

def point(rng, sc, codec):
    o = pick(rng, sc)
    return o and ([f'point to {name(o)}'], [codec.sp['point'], *locs(codec, sc.img, o.x + o.w / 2, o.y + o.h / 2)], o)

def box(rng, sc, codec):
    o = pick(rng, sc)
    return o and ([f'box {name(o)}'], [codec.sp['box'], *locs(codec, sc.img, o.x, o.y, o.x + o.w, o.y + o.h)], o)

QUESTIONS = dict(what=what, count=count, where=where, relation=relation, point=point, box=box, points=points)

# edits
EDITS = ['recolour', 'remove', 'add']

def edit(rng, kind, codec, held=False):
    """
    One of EDITS of a clean 64x64 picture of 1 to 4 objects, remove: 2 to 4 -> (picture before, request: list of str and ids, picture
    after, objects after). held: the object in question is a held-out pair, before or after; else there is none in either picture.
    """
    hw, placed, new = (64, 64), None, None
    pair = lambda h: rng.choice(HELD if h else FREE)
    while not placed or not new:
        what = [pair(False) for _ in range(rng.randint(1 + (kind == 'remove'), 4))]                    # an empty picture is no answer
        if held and (kind != 'recolour' or rng.random() < .5):
            what[0] = pair(True)
        if len({*what}) < len(what):                                    # each can be named
            continue
        placed = place(rng, hw, what, (12, 17), overlap=False)
        colours = [c for c in COLOURS if c != what[0][0] and (c, what[0][1]) not in what]
        new = [c for c in colours if is_held(c, what[0][1]) == (held and not is_held(*what[0]))]
        new = new if kind == 'recolour' else colours
    (o, *others), back, locate = placed[0], ground(rng, hw, plain=True), lambda o: locs(codec, back, o.x + o.w / 2, o.y + o.h / 2)
    if kind == 'recolour':
        colour = rng.choice(new)
        return paint([o, *others], back), [f'make {name(o)} {colour}'], paint([n := o._replace(colour=colour), *others], back), [n, *others]
    request = [f'add {name(o)} ', codec.sp['point'], *locate(o)] if kind == 'add' else [f'remove {name(o)}']
    small, full = (paint(others, back), others), (paint([o, *others], back), [o, *others])
    before, after = (small, full) if kind == 'add' else (full, small)
    return before[0], request, *after
