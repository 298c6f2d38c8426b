"""
RL on `signs`: does it rise as a straight line over the logarithm of the tokens, and do thoughts grow, shrink and grow again?

    python tests/bench/rl.py                         one seed: warm start, RL, curves; about 16 minutes of one core
    python tests/bench/rl.py --seeds=3               as the target says
    python tests/bench/rl.py --phases=true           config/rl_phases.py and its control; 12 to 17 minutes of one core
    python tests/bench/rl.py --dir=DIR               keeps the runs there, and goes on with those that are there

Curves: pass@1 and pass@16 on held-out problems, unbiased from 32 samples, and pass@1 of the harder level, which RL never sees, against
the tokens drawn for training so far. y = a + b ln(tokens) by least squares over the evaluations on the way, R^2 of it, and the same from
the first 60% of them: the most that it is wrong by on the rest. The evaluations lie at about even distances of ln(tokens), from the step on
from which the rate falls; before training there are no tokens, so that point is not on the line. Targets, for each seed: pass@1 up by
20 points, pass@16 by 5 or to 0.98, R^2 of both 0.9, both predicted within 3 points, the harder level up; 256 held-out problems, half of
either level, in every evaluation.
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
from data.plot import history, save_plot
from data.checkpoint import Checkpoint, checkpoints

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


def warm_start(where, brief):
    """brief: part of the thoughts that leave out what need not be said. Trained once."""
    out = Path(where) / f'sft-{brief}'
    if not checkpoints(out):
        run('data/signs/prepare.py', f'--brief={brief}')
        run('train.py', 'config/sft_signs.py', f'--out_dir={out}')
        run('data/signs/prepare.py')                           # what others find there is as it was
    return out


def line(points):
    """[(tokens, y)] -> a, b of y = a + b ln(tokens), R^2, largest error on the last 40% of the line through the first 60%."""
    x, y = np.log([t for t, _ in points]), np.array([y for _, y in points])
    b, a = np.polyfit(x, y, 1)
    n = math.ceil(0.6 * len(x))
    d, c = np.polyfit(x[:n], y[:n], 1)
    return a, b, float(1 - ((y - a - b * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()), float(np.abs(y[n:] - c - d * x[n:]).max())


def curves(where):
    warm, rows, panel, each = warm_start(where, 0.5), [], {}, []
    print(f'{"seed":>5s} {"":16s} {"before":>7s} {"after":>7s} {"R^2":>6s} {"of the rest":>11s}   (points; before and after: all problems)')
    for seed in range(first, first + seeds):
        out = Path(where) / f'rl-{seed}'
        run('rl.py', 'config/rl_signs.py', f'--init_from={warm}', f'--out_dir={out}', f'--seed={seed}', *flags.split())
        evals, steps = history(out)
        result = dict(seed=seed, tokens=evals[-1][1], problems=evals[0][2]['held']['problems'])
        for part, key in (('held', 'pass1'), ('held', 'pass16'), ('harder', 'pass1')):
            same = evals[1][2][part]['problems']               # the last evaluation may be about more of them
            points = [(t, v[part][key]) for _, t, v in evals if t and v[part]['problems'] == same]
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


def three_phases(where):
    """
    config/rl_phases.py beside the same with lam=0. Lengths: of right answers to held-out problems, mean of early and late levels;
    wrong ones mostly end at max_new, whatever the policy (printed beside it: of all rollouts).
    """
    warm, both = warm_start(where, 0.15), {}
    for name, more in (('penalty', []), ('control', ['--lam=0'])):
        out = Path(where) / f'phases-{name}'
        run('rl.py', 'config/rl_phases.py', f'--init_from={warm}', f'--out_dir={out}', *more, *flags.split())
        evals, steps = history(out)
        third = Checkpoint(checkpoints(out)[0]).meta['config']['more_at']
        mean = lambda v, key: (v['held'][key] + v['harder'][key]) / 2
        both[name] = [(s, mean(v, 'length_right'), v['held']['pass1'], v['harder']['pass1'], mean(v, 'length')) for s, _, v in evals]
    print(f'{"":8s} {"step":>5s} {"length":>7s} {"(all)":>7s} {"pass@1":>7s} {"of the late levels":>18s}')
    for name, points in both.items():
        for p in points:
            print(f'{name:8s} {p[0]:5d} {p[1]:7.1f} {p[4]:7.1f} {p[2]:7.3f} {p[3]:18.3f}')
    points = both['penalty']
    start, early, late = points[0], [p for p in points if p[0] <= third], [p for p in points if p[0] > third]
    peak = max(early, key=lambda p: p[1])
    trough = min((p for p in early if p[0] >= peak[0]), key=lambda p: p[1])
    again = max(late, key=lambda p: p[1])
    at = dict(start=start, peak=peak, trough=trough, again=again)
    control = {k: next(p for p in both['control'] if p[0] == v[0]) for k, v in at.items()}
    ok = dict(grows=peak[1] >= 1.3 * start[1], shrinks=trough[1] <= 0.8 * peak[1] and trough[2] >= peak[2] - 0.01,
              grows_again=again[1] >= 1.1 * trough[1] and again[3] > trough[3])
    for k, p in at.items():
        print(f'{k:8s} step {p[0]:4d}: length {p[1]:5.1f} (control {control[k][1]:5.1f}), pass@1 {p[2]:.3f} ({control[k][2]:.3f}), '
              f'of the late levels {p[3]:.3f} ({control[k][3]:.3f})')
    save_plot(Path(where) / 'phases.png', [
        ('tokens of a right answer, held-out, all levels', 'step', False, {k: [(p[0], p[1]) for p in v] for k, v in both.items()}),
        ('pass@1, held-out', 'step', False, {f'{k}, {n} levels': [(p[0], p[i]) for p in v] for k, v in both.items()
                                             for i, n in ((2, 'early'), (3, 'late'))})])
    print(f'{Path(where) / "phases.png"}; ' + ', '.join(f'{k}: {v}' for k, v in ok.items()))
    return dict(bench='rl', ok=all(ok.values()), **ok, at={k: [round(x, 4) for x in p] for k, p in at.items()},
                control={k: [round(x, 4) for x in p] for k, p in control.items()})


with tempfile.TemporaryDirectory() as temporary:
    where = dir or temporary
    os.makedirs(where, exist_ok=True)
    result = three_phases(where) if phases else curves(where)
print(json.dumps(result))
sys.exit(not result['ok'])
