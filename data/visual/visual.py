"""
What `visual` consists of: four riddles that are easier with a thought in pictures, and those thoughts.

    peek     a large picture is shown at a sixth of its size: the digits on its objects cannot be read. The thought asks for a box,
             <box> x0 y0 x1 y1 <look>, and the environment inserts that part of the original (look() below, weight 0)
    maze     which exit can be reached? The thought draws how far one gets in 3, 6, 9 ... steps, a picture each, a cell is a patch
    tangle   where does a line lead? The thought marks it from crossing to crossing
    puzzle   which piece is missing? The thought draws it, then compares

Two changes against the design: <look> comes behind its box, since the engine stops at single ids, and the maze's thought floods the
corridors from the start instead of drawing the way out: each picture follows from the one before it by looking at neighbours only.

Held out by hash, never in a training document: 1/8 of (colour, shape, digit), of mazes, of the orders of lines, of the colours and
shapes of puzzles; and the colour-shape pairs that `objects` holds out.
"""
import math
import zlib
from collections import namedtuple
import numpy as np
from PIL import Image, ImageDraw
from data.media import PATCH
from data.objects import objects as O
from data.scenes import scenes as S
from data.scenes.scenes import COLOURS, PALETTE

# img: what is shown; steps: the pictures of the thought; what: its compositions, as is_held() takes them; source, box: what peek may look
# at and where it should, else None
Riddle = namedtuple('Riddle', 'kind img question answer steps what source box', defaults=(None, None))
EXITS = ['red', 'green', 'blue', 'yellow']
MARK, INK, FLOOR = (190, 140, 250), (40, 40, 40), (245, 245, 245)
SMALLER, CROP, STRIDE = 6, 16, 3                                        # peek: times; patches of a crop; maze: steps per picture

is_held = lambda what: zlib.crc32(repr(what).encode()) % 8 == 0

# peek
def look(source, box):
    """
    source uint8 (H, W, 3), box (x0, y0, x1, y1) as fractions -> that part as a document segment of weight 0, in the nearest whole patches
    and no more than CROP of them, so that looking at everything shows nothing new; None for an empty box.
    """
    H, W = source.shape[:2]
    x0, y0, x1, y1 = (round(f * n) for f, n in zip(box, (W, H, W, H)))
    if not (0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H):
        return None
    s = min(1, math.sqrt(CROP * PATCH ** 2 / (x1 - x0) / (y1 - y0))) / PATCH
    nr, nc = max(1, round((y1 - y0) * s)), max(1, round((x1 - x0) * s))
    nr, nc = (nr, min(nc, CROP // nr)) if nr < nc else (min(nr, CROP // nc), nc)
    if nr * nc > CROP:                                                  # a strip: one patch wide
        nr, nc = min(nr, CROP), min(nc, CROP)
    part, size = Image.fromarray(source[y0:y1, x0:x1]), (PATCH * nc, PATCH * nr)
    part = part if part.size == size else part.resize(size, Image.Resampling.BILINEAR)
    return 'image', np.array(part), 0, (x0 / W, y0 / H, x1 / W, y1 / H)

def smaller(source):
    """uint8 (H, W, 3) -> the means of SMALLER x SMALLER pixels."""
    H, W = source.shape[:2]
    return np.rint(source.reshape(H // SMALLER, SMALLER, W // SMALLER, SMALLER, 3).mean((1, 3), dtype=np.float32)).astype(np.uint8)

def peek(rng, held=False):
    """3 or 4 objects of different colours on 192x192, a small digit in a random tone on each."""
    side, n, kinds = 192, rng.randint(3, 4), ['circle', 'square', 'triangle', 'diamond']
    while True:
        what = [(c, rng.choice([k for k in kinds if (c, k) in O.FREE])) for c in rng.sample(COLOURS, n)]
        digits = [rng.choice(S.DIGITS) for _ in what]
        marks = [('peek', c, k, d) for (c, k), d in zip(what, digits)]
        placed = any(map(is_held, marks)) == held and O.place(rng, (side, side), what, (40, 52), overlap=False)
        if placed:
            break
    objs, back = placed[0], O.ground(rng, (side, side), plain=True)
    objs = [o._replace(texture='plain') for o in objs]
    source = O.paint(objs, back).astype(np.float32)
    for o, d in zip(objs, digits):
        w, h = rng.choice([(6, 10), (6, 10), (9, 10)])
        x, y = o.x + o.w // 2 - w // 2 + rng.randint(-4, 4), o.y + o.h // 2 - h // 2 + rng.randint(-4, 4)
        part, tone = source[y:y + h, x:x + w], np.float32(np.add(PALETTE[o.colour], o.tone))
        tone = tone * rng.uniform(.2, .6) if rng.random() < .5 else tone + (255 - tone) * rng.uniform(.4, .9)
        part += S.mask(d, w, h)[..., None] * (tone - part)
    source = np.clip(np.rint(source), 0, 255).astype(np.uint8)
    i = rng.choice([i for i, m in enumerate(marks) if is_held(m) == held])
    o, half = objs[i], 16
    cx, cy = (min(max(v, half), side - half) for v in (o.x + o.w // 2, o.y + o.h // 2))
    box = ((cx - half) / side, (cy - half) / side, (cx + half) / side, (cy + half) / side)
    return Riddle('peek', smaller(source), f'digit on {o.colour}?', digits[i], [], marks, source, box)

# maze
def trees(rng, n):
    """n x n cells -> {cell: [cells next to it that it is open to]} and {cell: which of 4 trees}: corridors grow, the first most."""
    cells = [(r, c) for r in range(n) for c in range(n)]
    tips = [[s] for s in rng.sample(cells, 4)]
    of, links = {t[0]: k for k, t in enumerate(tips)}, {c: [] for c in cells}
    while any(tips):
        k = rng.choices(range(4), [(3 if k == 0 else 1) * bool(t) for k, t in enumerate(tips)])[0]
        at = len(tips[k]) - 1 if rng.random() < .8 else rng.randrange(len(tips[k]))
        r, c = tips[k][at]
        free = [x for x in ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)) if x in links and x not in of]
        if not free:
            tips[k].pop(at)
            continue
        new = rng.choice(free)
        of[new] = k
        links[r, c].append(new)
        links[new].append((r, c))
        tips[k].append(new)
    return links, of

def distances(links, start):
    """-> {cell: steps from start}, of those that can be reached."""
    far, queue = {start: 0}, [start]
    for cell in queue:
        for x in links[cell]:
            if x not in far:
                far[x] = far[cell] + 1
                queue.append(x)
    return far

def paint_maze(links, n, start, exits, wet=()):
    """exits: {cell: colour} -> uint8 (8n, 8n, 3); a wall is a pixel on both sides."""
    img = np.empty((PATCH * n, PATCH * n, 3), np.uint8)
    img[:] = FLOOR
    for r, c in links:
        cell = img[PATCH * r:PATCH * r + PATCH, PATCH * c:PATCH * c + PATCH]
        if (r, c) in wet:
            cell[:] = MARK
        for near, wall in (((r - 1, c), cell[0]), ((r + 1, c), cell[-1]), ((r, c - 1), cell[:, 0]), ((r, c + 1), cell[:, -1])):
            if near not in links[r, c]:
                wall[:] = INK
        if (r, c) == start:
            cell[2:6, 2:6] = INK
        if (r, c) in exits:
            cell[2:6, 2:6] = PALETTE[exits[r, c]]
    return img

def maze(rng, held=False):
    """How many wrong exits are nearer to the start than the right one, as the crow flies, is drawn first: that says nothing."""
    nearer, colours = rng.randrange(4), rng.sample(EXITS, 4)
    while True:
        n = rng.choice((5, 6, 6, 7))
        links, of = trees(rng, n)
        some = next(c for c in of if of[c] == 0)
        start = max(distances(links, some).items(), key=lambda x: x[1])[0]
        far = distances(links, start)
        goal = max(far, key=far.get)
        what = 'maze', sorted((c, sorted(near)) for c, near in links.items()), start
        if not 4 <= far[goal] <= 5 * STRIDE or is_held(what) != held:
            continue
        d = lambda c: (c[0] - start[0]) ** 2 + (c[1] - start[1]) ** 2
        side = rng.sample([True] * nearer + [False] * (3 - nearer), 3)
        wrong = [[c for c in of if of[c] == k and (d(c) < d(goal) if near else d(c) > d(goal))] for k, near in enumerate(side, 1)]
        if all(wrong):
            exits = dict(zip([goal, *map(rng.choice, wrong)], colours))
            draw = lambda steps: paint_maze(links, n, start, exits, {c for c in far if far[c] <= steps})
            steps = [draw(k) for k in range(STRIDE, far[goal] + STRIDE, STRIDE)]
            return Riddle('maze', draw(-1), 'which exit?', colours[0], steps, [what])

# tangle
def tangle(rng, held=False):
    """4 lines that change places 3 or 4 times between the digits on the left and the dots on the right."""
    n, ends, asked = rng.choice((3, 3, 4)), rng.sample(EXITS, 4), rng.randrange(4)
    while True:
        orders = [list(range(4))] + [rng.sample(range(4), 4) for _ in range(n)]           # orders[k][line]: its place at knot k
        if is_held(('tangle', orders)) == held and orders[0] != orders[1]:
            break
    W, H, t = 16 * n + 16, 64, np.arange(17)
    lines = []
    for line in range(4):
        at = [8 + 16 * o[line] for o in orders]
        lines.append([(8 + 16 * k + x, a + (b - a) * (1 - math.cos(math.pi * x / 16)) / 2)
                      for k, (a, b) in enumerate(zip(at, at[1:])) for x in t.tolist()])
    def draw(marked):
        im = Image.new('RGB', (W, H), FLOOR)
        d = ImageDraw.Draw(im)
        for line in lines:
            d.line(line, INK, 2)
        if marked:
            d.line(lines[asked][:17 * marked], MARK, 3)
        img = np.array(im)
        for k in range(4):
            y = 8 + 16 * k
            img[y - 5:y + 5, 0:6][S.mask(str(k + 1), 6, 10) > 0] = INK
            img[y - 3:y + 3, W - 7:W - 1] = PALETTE[ends[k]]
        return img
    steps, answer = [draw(k + 1) for k in range(n)], ends[orders[-1][asked]]
    return Riddle('tangle', draw(0), f'where does {asked + 1} lead?', answer, steps, [('tangle', orders)])

# puzzle
def puzzle(rng, held=False):
    """A striped 48x48 ground with a large shape on it, 16x16 of it missing; below it 4 pieces, 3 turned, mirrored or recoloured."""
    while True:
        colours, kind = rng.sample(COLOURS, 3), rng.choice(['circle', 'square', 'diamond'])
        what = 'puzzle', sorted(colours[:2]), colours[2], kind
        if is_held(what) != held or (colours[2], kind) in O.HELD:
            continue
        a, period, phase = rng.uniform(0, math.pi), rng.uniform(10, 18), rng.random()
        y, x = np.indices((48, 48))
        stripe = ((x * math.cos(a) + y * math.sin(a)) / period + phase) % 1 < .5
        full = np.where(stripe[..., None], np.uint8(PALETTE[colours[0]]), np.uint8(PALETTE[colours[1]]))
        r0, c0, s = 8 * rng.randint(1, 3), 8 * rng.randint(1, 3), rng.randint(16, 24)
        ox, oy = (min(max(v + 8 + rng.choice((-1, 1)) * rng.randint(5, 9) - s // 2, 0), 48 - s) for v in (c0, r0))
        full[oy:oy + s, ox:ox + s][O.mask(kind, s, s) >= .5] = PALETTE[colours[2]]
        piece = full[r0:r0 + 16, c0:c0 + 16].copy()
        swap = piece.copy()
        for one, other in zip(colours, colours[1:] + colours[:1]):
            swap[(piece == PALETTE[one]).all(-1)] = PALETTE[other]
        four, others = [piece], [piece[::-1], piece[:, ::-1], piece[::-1, ::-1], piece.transpose(1, 0, 2), np.rot90(piece), swap]
        for new in rng.sample(others, 6):
            if len(four) < 4 and all(np.abs(new.astype(int) - p).mean() > 25 for p in four):
                four.append(new)
        if len(four) == 4:
            break
    img, order = np.full((72, 72, 3), 250, np.uint8), rng.sample(range(4), 4)
    img[:48, 8:56] = full
    img[r0:r0 + 16, 8 + c0:24 + c0] = S.GREY
    for k, i in enumerate(order):
        img[56:72, 1 + 18 * k:17 + 18 * k] = four[i]
    return Riddle('puzzle', img, 'which piece?', 'abcd'[order.index(0)], [piece], [what])

RIDDLES = dict(peek=peek, maze=maze, tangle=tangle, puzzle=puzzle)

# thoughts
def where(r, codec):
    """-> the ids of the box that r, of kind peek, is to be looked at in."""
    return [codec.sp['box'], *(codec.loc(min(f, 1)) for f in r.box)]

def thought(r, codec, wait=False):
    """
    Riddle -> segments <think> ... </think>, all learned but for the crop of peek. wait: as many pictures as it would have drawn, but
    without what they say: the picture that was shown, or grey (the control with as many positions before the answer).
    """
    sp, inner = codec.sp, []
    if r.source is not None:
        box = where(r, codec)
        inner = [('ids', [*box, sp['look']]), look(r.source, [codec.unloc(i) for i in box[1:]])]
    for step in r.steps:
        blank = r.img if step.shape == r.img.shape else np.full_like(step, S.GREY)
        inner += [('ids', [sp['draw']]), ('image', blank if wait else step)]
    return [('ids', [sp['think']]), *inner, ('ids', [sp['/think']])]
