"""
What `charts` consists of: bars, lines, pies and scatter plots with axes, ticks, legend and title in Pillow's own font, and
questions about them. Everything is drawn from the random.Random given; pixels are (x, y), y down.

Values are multiples of half a grid step (pies: of 5 percent), so that what is asked can be seen at 96x96 pixels.

Held out, by hash, never in a training document: 1/8 of the (kind, name, value) of bars and pies, 1/8 of the (kind, name,
colour, trend) of lines and scatter plots.
"""
import math
import zlib
from collections import namedtuple
from functools import lru_cache
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from data.scenes.scenes import COLOURS, PALETTE

KINDS = ['bar', 'line', 'pie', 'scatter']
NAMES = 'ant bee cat dog elk fox hen owl pig rat'.split()
TITLES = 'rain sales heat speed cost visits'.split()
SIZES = [(96, 96)] * 12 + [(96, 128), (128, 96), (128, 128), (160, 160)]              # height, width
STEPS = [2, 10, 40, 100, 200, 400]                                                    # between two grid lines
TRENDS = ['up', 'flat', 'down']
INK, GRID, WHITE = (40, 40, 40), (215, 215, 215), (252, 252, 252)

# data: bar, pie [value]; line: values at x = 1, 2, ...; scatter: [(x, value)], x in [0, 1]
Item = namedtuple('Item', 'name colour data trend')
Chart = namedtuple('Chart', 'img kind title items step lines')                        # the axis ends at step * lines
font = lru_cache(None)(lambda size: ImageFont.load_default(size))

def held_item(kind, o):
    """Is it a held-out composition?"""
    what = (o.name, o.data[0]) if kind in ('bar', 'pie') else (o.name, o.colour, o.trend)
    return zlib.crc32(repr((kind, what)).encode()) % 8 == 0

# numbers
def slope(rng, trend, n, top):
    """-> n whole numbers in 0..top that clearly go up, down, or stay."""
    rise = 0 if trend == 'flat' else rng.randint(4, max(5, top * 2 // 3))
    low = rng.randint(1, top - rise - 1)
    v = [low + rise * i / (n - 1) + rng.uniform(-.8, .8) for i in range(n)]
    v = [min(top, max(0, round(x))) for x in v]
    return v[::-1] if trend == 'down' else v

def numbers(rng, kind, rising=False):
    """-> items, step and number of lines of a chart that is not drawn yet. rising: all go up (what crosses first?)."""
    step, lines = (5, 20) if kind == 'pie' else (rng.choice(STEPS), rng.randint(5, 8))
    unit, top = (5, 20) if kind == 'pie' else (step // 2, 2 * lines)
    n = rng.randint(3, 5) if kind in ('bar', 'pie') else rng.randint(2, 3)
    names, colours = rng.sample(NAMES, n), rng.sample(COLOURS, n)
    if kind == 'bar' and rng.random() < .4:                             # all in one colour
        colours = colours[:1] * n
    if kind == 'pie':
        cuts = sorted(rng.sample(range(1, 20), n - 1))
        data = [[unit * (b - a)] for a, b in zip([0, *cuts], [*cuts, 20])]
        trends = [None] * n
    elif kind == 'bar':
        data, trends = [[unit * v] for v in rng.sample(range(1, top + 1), n)], [None] * n
    else:
        points = rng.randint(4, 6) if kind == 'line' else rng.randint(6, 9)
        trends = ['up' if rising else rng.choice(TRENDS) for _ in names]
        data = [[unit * v for v in slope(rng, t, points, top)] for t in trends]
        if kind == 'scatter':                                           # apart in x, in order, so that the trend can be seen
            data = [[((i + rng.uniform(.15, .85)) / points, v) for i, v in enumerate(d)] for d in data]
    return [Item(*x) for x in zip(names, colours, data, trends)], step, lines

def chart(rng, held=False, kind=None, rising=False):
    """-> Chart that contains a held-out composition (held) or none."""
    kind = kind or rng.choice(KINDS)
    while True:
        items, step, lines = numbers(rng, kind, rising)
        if any(held_item(kind, o) for o in items) == held:
            title = rng.choice(TITLES)
            return Chart(paint(rng, kind, title, items, step, lines), kind, title, items, step, lines)

# drawing
def paint(rng, kind, title, items, step, lines, hw=None):
    """-> uint8 (H, W, 3)."""
    H, W = hw or rng.choice(SIZES)
    im = Image.new('RGB', (W, H), WHITE)
    d, size = ImageDraw.Draw(im), 8 if min(H, W) < 128 else 10
    d.fontmode = 'L'
    write = lambda x, y, s, anchor: d.text((x, y), s, INK, font(size), anchor)
    tone = {o.name: tuple(c + rng.randint(-8, 8) for c in PALETTE[o.colour]) for o in items}
    write(W / 2, 1, title, 'mt')
    high, legend = size + 3, kind != 'bar'                              # height of a line of text
    x0, y0 = (2 if kind == 'pie' else 4 + size * 2), high + 2
    x1, y1 = W - (size * 2 + 13 if legend else 3), H - (2 if kind == 'pie' else high)
    if legend:
        for i, o in enumerate(items):
            y = y0 + 2 + i * (high + 1)
            d.rectangle((x1 + 3, y, x1 + 3 + size - 3, y + size - 3), tone[o.name])
            write(x1 + size + 3, y - 1, o.name, 'lt')
    if kind == 'pie':
        r = min(x1 - x0, y1 - y0) / 2 - 1
        cx, cy, a = (x0 + x1) / 2, (y0 + y1) / 2, rng.uniform(0, 360)
        for o in items:
            b = a + 3.6 * o.data[0]
            d.pieslice((cx - r, cy - r, cx + r, cy + r), a, b, tone[o.name], WHITE)
            a = b
        return np.asarray(im)
    y_of = lambda v: y1 - (y1 - y0) * v / (step * lines)
    every = 2 if lines > 5 or step > 20 else 1
    for k in range(lines + 1):
        y = round(y_of(k * step))
        d.line((x0, y, x1, y), GRID if k else INK)
        if k % every == 0:
            write(x0 - 2, y, str(k * step), 'rm')
    d.line((x0, y0, x0, y1), INK)
    if kind == 'bar':
        wide = (x1 - x0) / len(items)
        for i, o in enumerate(items):
            x = x0 + wide * i
            d.rectangle((round(x + wide * .15) + 1, round(y_of(o.data[0])), round(x + wide * .85), y1 - 1), tone[o.name])
            write(x + wide / 2, y1 + 2, o.name, 'mt')
        return np.asarray(im)
    if kind == 'line':
        n = len(items[0].data)
        x_of = lambda i: x0 + 4 + (x1 - x0 - 7) * i / (n - 1)
        for i in range(n):
            write(x_of(i), y1 + 2, str(i + 1), 'mt')
        for o in items:
            d.line([(x_of(i), y_of(v)) for i, v in enumerate(o.data)], tone[o.name], 2)
        return np.asarray(im)
    for o in items:
        for x, v in o.data:
            x, y = x0 + 3 + (x1 - x0 - 5) * x, y_of(v)
            d.ellipse((x - 2, y - 2, x + 2, y + 2), tone[o.name])
    return np.asarray(im)

# questions: (rng, chart) -> question, answer, the item asked about (None: all), or None where the chart leaves it open
def values(rng, ch):
    """What the chart says of each item, and how to ask for it -> {name: value}, words."""
    if ch.kind == 'line':
        i = rng.randrange(len(ch.items[0].data))
        return {o.name: o.data[i] for o in ch.items}, f' at {i + 1}'
    if ch.kind == 'scatter':
        return {o.name: max(v for _, v in o.data) for o in ch.items}, ' at most'
    return {o.name: o.data[0] for o in ch.items}, ''

def some(rng, ch):
    """An item to ask about: one that is held out, if there is one."""
    return rng.choice([o for o in ch.items if held_item(ch.kind, o)] or ch.items)

def value(rng, ch):
    o, (v, at) = some(rng, ch), values(rng, ch)
    return f'how much is {o.name}{at}?', str(v[o.name]), o

def largest(rng, ch):
    v, at = values(rng, ch)
    word, best = rng.choice([('largest', max), ('smallest', min)])
    name = best(v, key=v.get)
    if list(v.values()).count(v[name]) == 1:
        return f'which is {word}{at}?', name, None

def difference(rng, ch):
    o, (v, at) = some(rng, ch), values(rng, ch)
    less = [n for n in v if v[n] < v[o.name]]
    more = [n for n in v if v[n] > v[o.name]]
    if less or more:
        n = rng.choice(less + more)
        a, b = (o.name, n) if n in less else (n, o.name)
        return f'how much more is {a} than {b}{at}?', str(v[a] - v[b]), o

def trend(rng, ch):
    if ch.kind in ('line', 'scatter'):
        o = some(rng, ch)
        return f'how does {o.name} go?', o.trend, o

def first_above(data, level):
    """Where the line first reaches the level, in steps from its first point; inf: never. None: it begins there."""
    if data[0] >= level:
        return None
    for i, (a, b) in enumerate(zip(data, data[1:])):
        if b >= level:
            return i + (level - a) / (b - a)
    return math.inf

def crossing(rng, ch):
    if ch.kind == 'line':
        for level in rng.sample([ch.step * k for k in range(1, ch.lines)], ch.lines - 1):
            at = {o.name: first_above(o.data, level) for o in ch.items}
            if None not in at.values():
                first, second = sorted(at.values())[:2]
                if first + .6 <= second:
                    return f'which crosses {level} first?', min(at, key=at.get), None

QUESTIONS = dict(value=value, largest=largest, difference=difference, trend=trend, crossing=crossing)
