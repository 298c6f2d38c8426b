"""
RL on `signs`: does it rise as a straight line over the logarithm of the tokens, and do thoughts grow, shrink and grow again?

    python tests/bench/rl.py                         one seed: warm start, RL, curves; about 12 minutes on 2 cores
    python tests/bench/rl.py --seeds=3               as the target says
    python tests/bench/rl.py --phases=true           config/rl_phases.py and its control; about 30 minutes
    python tests/bench/rl.py --dir=DIR               keeps the runs there, and goes on with those that are there

Curves: pass@1 and pass@16 on held-out problems, unbiased from 32 samples, and pass@1 of the harder level, which is never trained on, against
the tokens drawn for training so far. y = a + b ln(tokens) by least squares over all evaluations after the first step; R^2 of it; and the same
from the first 60% of them: the most that it is wrong by on the rest. Targets, for each seed: pass@1 up by 20 points, pass@16 by 5 or to 0.98, R^2 of
both 0.9, both predicted within 3 points, the harder level up; 256 held-out problems before and after.
"""
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure
from data.plot import save_plot

seeds = 1
phases = False
dir = ''        # '': a temporary one; the plot goes there too
first = 1337    # of the seeds
flags = ''      # more for rl.py, as '--max_steps=100 --lr=1e-4'
configure(globals())


def run(*args):
    """A script of ours; its output goes to ours when it fails."""
    r = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    if r.returncode:
        sys.exit(f'{" ".join(args)}\n{r.stdout[-2000:]}{r.stderr[-2000:]}')
    return r.stdout


def read(out):
    """metrics.jsonl -> [(step, tokens drawn until then, evaluation {part: figures})], [(step, figures)]; of a step said twice the last counts."""
    rows = [json.loads(line) for line in open(Path(out) / 'metrics.jsonl')]
    vals, steps = ({r['step']: r for r in rows if key in r} for key in ('val', 'tokens'))
    drawn = np.cumsum([0] + [steps[s]['tokens'] for s in sorted(steps)])
    return [(s, int(drawn[s]), vals[s]['val']) for s in sorted(vals)], [(s, steps[s]) for s in sorted(steps)]


def line(points):
    """[(tokens, y)] -> a, b of y = a + b ln(tokens), R^2, largest error on the last 40% of the line through the first 60%."""
    x, y = np.log([t for t, _ in points]), np.array([y for _, y in points])
    b, a = np.polyfit(x, y, 1)
    n = math.ceil(0.6 * len(x))
    d, c = np.polyfit(x[:n], y[:n], 1)
    return a, b, float(1 - ((y - a - b * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()), float(np.abs(y[n:] - c - d * x[n:]).max())


def curves(where):
    warm = Path(where) / 'sft'
    said = [run('train.py', 'config/sft_signs.py', f'--out_dir={warm}')] if not warm.exists() else []
    rows, panel, each = [], {}, []
    print(f'{"seed":>5s} {"":16s} {"before":>7s} {"after":>7s} {"R^2":>6s} {"of the rest":>11s}   (before, after: all problems; line: the curve)')
    for seed in range(first, first + seeds):
        out = Path(where) / f'rl-{seed}'
        run('rl.py', 'config/rl_signs.py', f'--init_from={warm}', f'--out_dir={out}', f'--seed={seed}', *flags.split())
        evals, steps = read(out)
        result = dict(seed=seed, tokens=evals[-1][1], problems=evals[0][2]['held']['problems'])
        for part, key in (('held', 'pass1'), ('held', 'pass16'), ('harder', 'pass1')):
            points = [(t, v[part][key]) for _, t, v in evals if t]
            a, b, r2, off = line(points)
            f = dict(before=evals[0][2][part][key], after=evals[-1][2][part][key], slope=b, r2=r2, off=off)
            result[f'{part} {key}'] = {k: round(x, 4) for k, x in f.items()}
            print(f'{seed:5d} {part:>6s} {key[:4]}@{key[4:]:4s} {f["before"]:7.3f} {f["after"]:7.3f} {r2:6.3f} {100 * off:11.1f}')
            panel[f'{part} {key[:4]}@{key[4:]}, seed {seed}'] = points
            panel[f'-{part} {key[:4]}@{key[4:]}, seed {seed}'] = [(t, a + b * math.log(t)) for t, _ in points]
        one, many, harder = (result[k] for k in ('held pass1', 'held pass16', 'harder pass1'))
        result['ok'] = bool(one['after'] - one['before'] >= 0.2 and (many['after'] - many['before'] >= 0.05 or many['after'] >= 0.98) and
                            min(one['r2'], many['r2']) >= 0.9 and max(one['off'], many['off']) <= 0.03 and
                            harder['after'] > harder['before'] and result['problems'] >= 256)
        rows.append(result)
        each.append((seed, evals, steps))
    save_plot(Path(where) / 'curves.png', [
        ('solved, and straight lines', 'tokens', True, panel),
        ('tokens of a rollout, held-out', 'step', False, {f'seed {s}': [(k, v['held']['length']) for k, _, v in e] for s, e, _ in each})])
    print(f'{Path(where) / "curves.png"}')
    return dict(bench='rl', ok=all(r['ok'] for r in rows), runs=rows)


with tempfile.TemporaryDirectory() as temporary:
    where = dir or temporary
    os.makedirs(where, exist_ok=True)
    result = curves(where)
print(json.dumps(result))
sys.exit(not result['ok'])
