"""
Linears in 8 bits against bfloat16: the default job, the same batches and weights, beginning of the run.

    python tests/bench/fp8.py                    500 steps each, about 10 minutes on 2 cores
    python tests/bench/fp8.py --seeds=3          means of three seeds, and the standard error of a difference of two such means

On a CPU the operands are rounded to 8 bits and multiplied in the compute type, so this shows the numbers and not the speed. Training loss
is the mean of the last fifth of the steps. The target: within 1% of bfloat16 (float32 where the machine has no fast bfloat16), training and
validation.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure

steps = 500
seeds = 1
flags = ''       # more flags for train.py, separated by spaces
configure(globals())


def run(fp8, out, seed):
    """-> dict(train=..., and of the validation: txt, img, aud)."""
    cmd = [sys.executable, 'train.py', f'--fp8={fp8}', f'--seed={seed}', f'--max_steps={steps}', '--log_every=1', '--skills=0',
           '--save_every=0', f'--out_dir={out}', '--init_from=scratch', *flags.split()]
    done = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-1000:] + done.stderr[-1000:])
        print(json.dumps(dict(bench='fp8', ok=False)))
        sys.exit(1)
    rows = [json.loads(line) for line in open(Path(out) / 'metrics.jsonl')]
    val, = (v for r in rows for v in r.get('val', {}).values())
    return dict(train=mean(r['loss'] for r in rows if r.get('step', 0) > .8 * steps and 'loss' in r),
                **{k: val[k] for k in ('txt', 'img', 'aud')})


print(f'{"":12s} ' + ' '.join(f'{k:>24s}' for k in ('train', 'val txt', 'val img', 'val aud')))
got, worst = {}, 0.0
for fp8 in ('', 'tensorwise', 'rowwise'):
    every = []
    for seed in range(1337, 1337 + seeds):
        with tempfile.TemporaryDirectory() as tmp:
            every.append(run(fp8, tmp, seed))
    got[fp8] = {k: mean(r[k] for r in every) for k in every[0]}
    off = {k: v / got[''][k] - 1 for k, v in got[fp8].items()}
    if not fp8:
        error = {k: stdev(r[k] for r in every) * (2 / seeds) ** .5 / got[''][k] for k in got['']} if seeds > 1 else None
    worst = max(worst, *off.values())                              # better is no fault
    spread = {k: f'({error[k]:.2%})' if error else '' for k in off}
    print(f'{fp8 or "none":12s} ' + ' '.join(f'{v:8.4f} {off[k]:+7.2%} {spread[k]:7s}' for k, v in got[fp8].items()), flush=True)
print(json.dumps(dict(bench='fp8', ok=worst <= .01, steps=steps, seeds=seeds, worst=worst, error=error,
                      losses={k or 'none': v for k, v in got.items()})))
sys.exit(worst > .01)
