"""
Curves as a PNG: axes, ticks, lines, a legend.

    save_plot('curves.png', [('solved', 'tokens', True, {'held-out': [(1e4, .3), (1e5, .4)], 'fit': ...})])
    evaluations, steps = history('out-rl-signs')
"""
import json
import math
from itertools import accumulate
from pathlib import Path
from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 520, 380, 60, 30, 15, 45      # pixels: of a panel, of its margins
COLOURS = ('#1f5fbf', '#d9480f', '#2b8a3e', '#862e9c', '#5c940d', '#495057', '#c2255c', '#0b7285')

def ticks(low, high, log):
    """About 5 round numbers from low to high; log: of the powers of 10, and twice and five times those."""
    if log:
        round_ = [m * 10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
        return [t for t in round_ if low <= t <= high]
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

def history(out):
    """out/metrics.jsonl of rl.py -> [(step, tokens drawn so far, evaluation {part: figures})], [(step, figures)]; a step's last counts."""
    rows = [json.loads(line) for line in open(Path(out) / 'metrics.jsonl')]
    vals, steps = ({r['step']: r for r in rows if key in r} for key in ('val', 'tokens'))
    drawn = dict(zip([0, *sorted(steps)], accumulate((steps[s]['tokens'] for s in sorted(steps)), initial=0)))
    return [(s, drawn[s], vals[s]['val']) for s in sorted(vals)], [(s, steps[s]) for s in sorted(steps)]

def save_plot(path, panels, columns=2):
    """
    panels: (title, name of x, x on a logarithmic scale, {label: [(x, y)]}) of each; points are joined in order, those that are not
    finite, or not above 0 on a logarithmic scale, left out; labels that begin with '-' are drawn thin, without marks and without a place
    in the legend.
    """
    picture = Image.new('RGB', (WIDTH * min(columns, len(panels)), HEIGHT * -(-len(panels) // columns)), 'white')
    d = ImageDraw.Draw(picture)
    for k, (title, name, log, curves) in enumerate(panels):
        x0, y0 = k % columns * WIDTH + LEFT, k // columns * HEIGHT + TOP
        w, h, scale = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, math.log10 if log else float
        curves = {c: [(x, y) for x, y in ps if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)] for c, ps in curves.items()}
        xs, ys = ([p[i] for ps in curves.values() for p in ps] or [1, 2] for i in (0, 1))
        (a, b), (lo, hi) = ((min(v), max(v) if max(v) > min(v) else min(v) + 1) for v in (xs, ys))
        lo, hi = lo - 0.05 * (hi - lo), hi + 0.05 * (hi - lo)
        at = lambda x, y: (x0 + w * (scale(x) - scale(a)) / (scale(b) - scale(a)), y0 + h * (hi - y) / (hi - lo))
        d.rectangle((x0, y0, x0 + w, y0 + h), outline='#868e96')
        d.text((x0 + w / 2, y0 - 8), title, 'black', anchor='mb')
        d.text((x0 + w / 2, y0 + h + 24), name + (' (logarithmic)' if log else ''), 'black', anchor='mt')
        for t in ticks(a, b, log):
            d.line((at(t, lo), (at(t, lo)[0], y0 + h + 4)), '#868e96')
            d.text((at(t, lo)[0], y0 + h + 6), f'{t:.3g}'.replace('e+0', 'e'), 'black', anchor='mt')
        for t in ticks(lo, hi, False):
            d.line((at(a, t), at(b, t)), '#e9ecef')
            d.text((x0 - 5, at(a, t)[1]), f'{t:.3g}', 'black', anchor='rm')
        shown = [c for c in curves if c[0] != '-']
        for i, (c, ps) in enumerate(curves.items()):
            colour = COLOURS[(shown.index(c) if c in shown else shown.index(c[1:]) if c[1:] in shown else i) % len(COLOURS)]
            d.line([at(*p) for p in ps], colour, 2 if c in shown else 1)
            if c in shown:
                for x, y in (at(*p) for p in ps):
                    d.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
                d.text((x0 + 8, y0 + 6 + 13 * shown.index(c)), c, colour)
    picture.save(path)

def save_curves(out):
    """out/curves.png: what history() has of a run."""
    vals, steps = history(out)
    curve = lambda x, part, key: [(v[x], v[2][part][key]) for v in vals if part in v[2] and key in v[2][part]]
    save_plot(Path(out) / 'curves.png', [
        ('solved', 'tokens drawn', True, {f'{x} pass@{k}': curve(1, x, f'pass{k}') for x in ('held', 'harder') for k in (1, 4, 16)}),
        ('tokens of a rollout', 'step', False, {x: curve(0, x, 'length') for x in ('held', 'harder')}),
        *((k, 'step', False, {'training': [(n, f[k]) for n, f in steps]}) for k in ('pass1', 'entropy', 'dropped', 'length'))])
