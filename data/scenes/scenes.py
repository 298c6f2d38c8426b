"""
What `scenes` consists of: pictures with coloured shapes, digits and bar charts, melodies, and questions about them.
Shared by prepare.py (documents) and task.py (problems, judges). Everything is drawn from the random.Random given.
Pixels are (x, y), x to the right, y down; a point is <point> x y, a box <box> x0 y0 x1 y1, in loc tokens.

Held out, never in a training document: 4 of the 30 colour-shape pairs (blue triangle, green cross, yellow ring, pink
square), 6 of the 60 coloured digits, for each colour one height of its bar, 1/8 of the melodies with 3 or 4 notes.
"""
import zlib
from collections import Counter, namedtuple
from functools import lru_cache
import numpy as np

PALETTE = dict(red=(222, 40, 40), green=(30, 160, 60), blue=(40, 70, 230), yellow=(240, 205, 30), pink=(240, 100, 200),
               cyan=(40, 205, 220))
COLOURS, SHAPES, DIGITS = list(PALETTE), ['circle', 'square', 'triangle', 'cross', 'ring'], list('0123456789')
WHITE, BLACK, GREY = 250, 14, 112                                       # backgrounds
SIZES = [(32, 32)] * 14 + [(32, 48), (48, 32), (40, 40), (40, 40), (48, 48), (64, 64)]    # height, width
HELD = [('blue', 'triangle'), ('green', 'cross'), ('yellow', 'ring'), ('pink', 'square')]
HELD_DIGITS = [(c, DIGITS[-i % 10]) for i, c in enumerate(COLOURS)]
HELD_BAR = dict(zip(COLOURS, (4, 2, 5, 1, 6, 3)))                       # colour -> height never seen in that colour
FONT = dict(zip(DIGITS, '75557 26227 71747 71717 55711 74717 74757 71111 75757 75717'.split()))   # 5 rows of 3 bits
HZ = {n: 1046.5 * 2 ** (s / 12) for n, s in zip('CDEFGAB', (0, 2, 4, 5, 7, 9, 11))}       # C6 to B6
NOTE_S, RATE = .2, 8000                                                 # seconds (5 positions), samples per second

Obj = namedtuple('Obj', 'colour kind x y w h')      # colour: a name, or (r, g, b) of none; x, y: upper left corner; all in pixels
Scene = namedtuple('Scene', 'img objs')                                 # uint8 (H, W, 3), [Obj]
Chart = namedtuple('Chart', 'img bars')                                 # uint8 (32, 32, 3), [(colour, height 1 to 6)]

# drawing
@lru_cache(None)
def mask(kind, w, h):
    """kind: a shape or a digit -> float32 (h, w): the part of each pixel that it covers."""
    if kind in FONT:
        bits = [[int(row) >> 2 - c & 1 for c in range(3)] for row in FONT[kind]]
        return np.float32(bits).repeat(h // 5, 0).repeat(w // 3, 1)
    v, u = (np.indices((8 * h, 8 * w)) + .5) / np.reshape((h, w), (2, 1, 1)) / 4 - 1      # in [-1, 1], 8x8 to a pixel
    r2 = u * u + v * v
    m = dict(circle=r2 <= 1, square=r2 < 9, triangle=abs(u) <= (v + 1) / 2, cross=np.minimum(abs(u), abs(v)) <= .34,
             ring=(r2 <= 1) & (r2 >= .28))[kind]
    return m.reshape(h, 8, w, 8).mean((1, 3), dtype=np.float32)

def inside(o, hw):
    """Obj -> bool (H, W): where a point counts as on it; the hole of a ring and the box of a digit belong to it."""
    m = np.zeros(hw, bool)
    kind = {'ring': 'circle', **dict.fromkeys(DIGITS, 'square')}.get(o.kind, o.kind)
    m[o.y:o.y + o.h, o.x:o.x + o.w] = mask(kind, o.w, o.h) >= .5
    return m

def paint(rng, hw, back, objs):
    """-> uint8 (H, W, 3), back: grey level; each channel of an object's colour is off by up to 8 levels."""
    img = np.full((*hw, 3), back, np.float32)
    for o in objs:
        a, part = mask(o.kind, o.w, o.h)[..., None], img[o.y:o.y + o.h, o.x:o.x + o.w]
        part += a * (np.float32([c + rng.randint(-8, 8) for c in PALETTE.get(o.colour, o.colour)]) - part)
    return np.clip(np.rint(img), 0, 255).astype(np.uint8)

def pick(rng, held, p_digit, colour=None):
    """-> (colour, kind): a held-out combination, or one that is not, of the given colour if any."""
    kinds, out = (DIGITS, HELD_DIGITS) if rng.random() < p_digit else (SHAPES, HELD)
    if held:
        return rng.choice(out)
    colour = colour or rng.choice(COLOURS)
    return colour, rng.choice([k for k in kinds if (colour, k) not in out])

def nameless(rng):
    """-> (r, g, b) far from every colour that has a name, and from the backgrounds."""
    while True:
        rgb = tuple(rng.randrange(256) for _ in range(3))
        if all(sum((a - b) ** 2 for a, b in zip(rgb, c)) > 80 ** 2 for c in (*PALETTE.values(), *((g,) * 3 for g in (WHITE, BLACK, GREY)))):
            return rgb

def without_names(rng, what, p):
    """[(colour, kind)] -> the same, a share p of them in colours that no word names."""
    return [(nameless(rng) if rng.random() < p else c, k) for c, k in what] if p else what

def scene(rng, held=False, n=0, p_nameless=0):
    """n objects (0: one to three) apart from each other -> Scene; held: one of them is a held-out combination, else
    none is. In 30% of the scenes two share their colour, otherwise all differ. p_nameless: share of objects without a named one."""
    n, (H, W) = n or rng.randint(1, 3), rng.choice(SIZES)
    twins, what, objs = n > 1 and rng.random() < .3, [], []
    while len(what) < n:
        again = twins and len(what) == 1
        new = pick(rng, held and not what, .12, what[0][0] if again else None)
        if new not in what and (again or new[0] not in [c for c, _ in what]):
            what.append(new)
    what = without_names(rng, what, p_nameless)
    while len(objs) < n:                                                # all anew if one finds no room
        objs = []
        for colour, kind in what:
            s = rng.randint(9, 14 if n < 3 else 12)
            w, h = (s, s) if kind in SHAPES else (6, 10) if s < 11 else (9, 15)
            x, y = rng.randint(1, W - w - 1), rng.randint(1, H - h - 1)
            if any(x < o.x + o.w + 2 and o.x < x + w + 2 and y < o.y + o.h + 2 and o.y < y + h + 2 for o in objs):
                break
            objs.append(Obj(colour, kind, x, y, w, h))
    rng.shuffle(objs)
    return Scene(paint(rng, (H, W), rng.choice([WHITE, WHITE, BLACK, GREY]), objs), objs)

def poster(rng, held=False, p_nameless=0):
    """The picture of a `draw` document: on white 32x32, one large object in the middle or two side by side -> Scene. See scene()."""
    n, what, objs = 1 + (rng.random() < .4), [pick(rng, held, .1)], []
    while len(what) < n:
        what += [new for new in [pick(rng, False, .1)] if new[0] != what[0][0]]
    rng.shuffle(what)
    for i, (colour, kind) in enumerate(without_names(rng, what, p_nameless)):
        s = rng.randint(14, 18) if n == 1 else rng.randint(10, 13)
        w, h = (s, s) if kind in SHAPES else (9, 15)
        cx, cy = 16 + rng.randint(-2, 2) if n == 1 else 8 + 16 * i, 16 + rng.randint(-2, 2)
        objs.append(Obj(colour, kind, cx - w // 2, cy - h // 2, w, h))
    return Scene(paint(rng, (32, 32), WHITE, objs), objs)

def chart(rng, held=False):
    """2 to 4 bars of different heights and colours on a grid, in columns of 8 pixels, 4 pixels per unit -> Chart."""
    n, bars = rng.randint(2, 4), []
    while not bars or any(HELD_BAR[c] == v for c, v in bars) != held:
        bars = list(zip(rng.sample(COLOURS, n), rng.sample(range(1, 7), n)))
    img, left = np.full((32, 32, 3), WHITE, np.uint8), rng.randint(0, 4 - n)
    img[3:28:4], img[28:30] = 205, 60                                   # grid lines, floor
    for i, (c, v) in enumerate(bars, left):
        img[28 - 4 * v:28, 8 * i + 1:8 * i + 7] = PALETTE[c]
    return Chart(img, bars)

# sound
def held_melody(notes):
    return len(notes) > 2 and zlib.crc32(' '.join(notes).encode()) % 8 == 0

def melody(rng, held=False, lengths=(3, 4)):
    """-> list of note names; a held-out melody or one that is not."""
    notes = None
    while not notes or held_melody(notes) != held:
        notes = [rng.choice(list(HZ)) for _ in range(rng.choice(lengths))]
    return notes

def wave(rng, notes):
    """-> float32 (1600 * notes,) at 8 kHz: each note fades in and out, a little out of tune, with its octave."""
    t, gain = np.arange(int(NOTE_S * RATE)) / RATE, rng.uniform(.3, .6)
    shape = np.minimum(1, np.minimum(t / .01, (NOTE_S - t) / .04)) * np.exp(-3 * t)
    phase = np.concatenate([2 * np.pi * HZ[n] * (1 + rng.uniform(-.004, .004)) * t for n in notes])
    return (gain * np.tile(shape, len(notes)) * (np.sin(phase) + .2 * np.sin(2 * phase))).astype(np.float32)

# questions: each takes (rng, scene, codec) and returns (question, answer, the object or bar asked about), question and
# answer as lists of str and ids, or None where the scene leaves it open

def named(sc):
    """The objects that can be spoken of."""
    return [o for o in sc.objs if o.colour in PALETTE]

def describe(objs):
    """'a red circle, a blue 3 and a ring', in the order given (canonical: from left to right); the ring's colour has no name."""
    names = [f'a {o.colour} {o.kind}' if o.colour in PALETTE else f'a {o.kind}' for o in objs]
    return ' and '.join([', '.join(names[:-1])] * (len(names) > 1) + names[-1:])

def refer(rng, sc, o, short=.5):
    """The colour alone if that is clear, with probability `short`; else colour and kind."""
    clear = sum(p.colour == o.colour for p in sc.objs) == 1
    return o.colour if clear and rng.random() < short else f'{o.colour} {o.kind}'

def locs(codec, img, *xy):
    """Pixels x, y, x, y, ... -> loc ids."""
    return [codec.loc(v / img.shape[1 - i % 2]) for i, v in enumerate(xy)]

def what(rng, sc, codec):
    o, (H, W) = rng.choice(sc.objs), sc.img.shape[:2]
    while True:                                                         # somewhere near its middle
        x, y = locs(codec, sc.img, o.x + o.w * rng.uniform(.3, .7), o.y + o.h * rng.uniform(.3, .7))
        if inside(o, (H, W))[int(codec.unloc(y) * H), int(codec.unloc(x) * W)]:
            return ['what ', codec.sp['point'], x, y], [f'{o.colour} {o.kind}'], o

def shape(rng, sc, codec):
    """As what(), without the colour, which may have no name: what is said of a shape must not lean on it."""
    (_, *at), _, o = what(rng, sc, codec)
    return ['shape ', *at], [o.kind], o

def count(rng, sc, codec):
    have = Counter(o.colour for o in sc.objs)
    if rng.random() < .5:
        return ['how many?'], [str(len(sc.objs))], None
    k = 2 if 2 in have.values() and rng.random() < .9 else rng.randint(0, 1)              # about equally often
    c = rng.choice([c for c in COLOURS if have[c] == k] or COLOURS)
    return [f'how many {c}?'], [str(have[c])], None

def where(rng, sc, codec):
    H, W = sc.img.shape[:2]
    off = [(2 * o.x + o.w - W, 2 * o.y + o.h - H, o) for o in sc.objs]                    # from the middle
    clear = [m for m in off if min(abs(m[0]), abs(m[1])) >= 6 and m[2].colour in PALETTE]
    if clear:
        x, y, o = rng.choice(clear)
        return [f'where is {refer(rng, sc, o)}?'], [f'{"top" if y < 0 else "bottom"} {"left" if x < 0 else "right"}'], o

def relation(rng, sc, codec):
    area = lambda o: int(inside(o, sc.img.shape[:2]).sum())
    tests = {'left of': lambda a, b: 2 * a.x + a.w + 8 <= 2 * b.x + b.w,
             'above': lambda a, b: 2 * a.y + a.h + 8 <= 2 * b.y + b.h,
             'larger than': lambda a, b: a.w >= b.w + 3 and area(a) > 1.25 * area(b) and {a.kind, b.kind} <= {*SHAPES}}
    pairs = [(rel, a, b) for rel, clearly in tests.items() for a in named(sc) for b in named(sc) if clearly(a, b)]
    if pairs:
        rel, a, b = rng.choice(pairs)
        yes = rng.random() < .5
        p, q = [refer(rng, sc, o, short=1) for o in ((a, b) if yes else (b, a))]
        return [f'is {p} {rel} {q}?'], ['yes' if yes else 'no'], a

def point(rng, sc, codec):
    if named(sc):
        o = rng.choice(named(sc))
        return [f'point to {refer(rng, sc, o)}'], [codec.sp['point'], *locs(codec, sc.img, o.x + o.w / 2, o.y + o.h / 2)], o

def box(rng, sc, codec):
    if named(sc):
        o = rng.choice(named(sc))
        return [f'box {refer(rng, sc, o)}'], [codec.sp['box'], *locs(codec, sc.img, o.x, o.y, o.x + o.w, o.y + o.h)], o

def caption(rng, sc, codec):
    objs = sorted(sc.objs, key=lambda o: 2 * o.x + o.w)
    if len(named(sc)) == len(objs) and all(2 * b.x + b.w - 2 * a.x - a.w >= 6 for a, b in zip(objs, objs[1:])):
        return ['describe'], [describe(objs)], objs[0]

def bars(rng, ch, codec):
    c, v = rng.choice(ch.bars)
    if rng.random() < .5:
        return [f'how tall is {c}?'], [str(v)], c
    word, best = rng.choice([('tallest', max), ('shortest', min)])
    return [f'which is {word}?'], [best(ch.bars, key=lambda b: b[1])[0]], None
