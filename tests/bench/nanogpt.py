"""
Our training step against nanoGPT's, at the CPU setting of its README: block 64, batch 12, 4 layers, 4 heads, width 128.

    python tests/bench/nanogpt.py --peer=DIR                     about a minute on 2 cores
    python tests/bench/nanogpt.py --peer=DIR --steps=2000        whole runs, as in the README

Both train on the same text, in turn (ours, peer, ours, peer), each with its own defaults for threads. A run's figure
is the median of the milliseconds that the script itself logs per step, after the first 20. The better of its runs
counts for each side, since whatever else the machine does only adds time; `spread` is worst run / best run.
The target: not slower than the peer. The peer runs in a temporary copy of DIR, which stays as it is.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure

peer = ''    # a checkout of nanoGPT; '': only ours is measured
input = ''   # text to train on; '': ../shared/data/tinyshakespeare.txt where it exists
steps = 400  # of each run
turns = 2    # runs of each
configure(globals())

SKIP = 20    # first steps, slow for reasons of their own
GET = 'git clone https://github.com/karpathy/nanoGPT, then --peer=nanoGPT'

def finish(ok, **figures):
    """The last line, and the exit status that goes with it. ok None: there was nothing to compare with."""
    print(json.dumps(dict(bench='nanogpt', ok=ok, **figures)))
    sys.exit(ok is False)

def run(name, cmd, cwd):
    """cmd -> its output; if it fails, the end of its output and the verdict."""
    done = subprocess.run([sys.executable, *map(str, cmd)], cwd=cwd, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout[-2000:])
        finish(False, why=f'{name}: {cmd[0]} ended with status {done.returncode}, see above')
    return done.stdout

def ours(tmp, turn):
    """-> [(step, loss, ms)]"""
    out = tmp / f'ours{turn}'
    run('ours', ['train.py', 'config/train_shakespeare_char.py', f'--max_steps={steps}', '--log_every=1',
                 '--n_layer=4', '--n_embd=128', '--ngram=0', '--muon=false', '--qk_norm=false', '--token_shift=false', '--softcap=0',
                 f'--out_dir={out}', '--init_from=scratch', *([f'--input={text}'] if text else [])], ROOT)
    rows = [json.loads(line) for line in open(out / 'metrics.jsonl')]
    return [(r['step'], r['loss'], r['ms']) for r in rows if 'ms' in r]

def theirs(tmp, turn):
    """-> [(step, loss, ms)]"""
    log = run('peer', [
        'train.py', 'config/train_shakespeare_char.py', '--device=cpu', '--compile=False', '--eval_iters=20',
        '--log_interval=1', '--block_size=64', '--batch_size=12', '--n_layer=4', '--n_head=4', '--n_embd=128',
        f'--max_iters={steps}', f'--lr_decay_iters={steps}', '--dropout=0.0', '--eval_interval=1000000000',
        f'--out_dir={tmp / "out"}'], tmp / 'peer')
    rows = re.findall(r'^iter (\d+): loss ([\d.]+), time ([\d.]+)ms', log, re.M)
    return [(int(i) + 1, float(loss), float(ms)) for i, loss, ms in rows]

def figures(runs):
    """-> (ms per step of the best run, worst / best run, mean training loss of the last 50 steps over all runs)"""
    ms = [median(ms for step, _, ms in log if step > SKIP) for log in runs]
    last = [loss for log in runs for _, loss, _ in log[-50:]]
    return min(ms), max(ms) / min(ms), sum(last) / len(last)

if steps <= SKIP:
    finish(False, why=f'--steps={steps}: the first {SKIP} steps are left out, take more')
text = Path(input or ROOT.parent / 'shared' / 'data' / 'tinyshakespeare.txt').resolve()
if input and not text.is_file():
    finish(False, why=f'--input={input}: no such file')
text = text if text.is_file() else None
if peer and not (Path(peer) / 'data' / 'shakespeare_char' / 'prepare.py').is_file():
    finish(False, why=f'--peer={peer} is no checkout of nanoGPT: {GET}')

with tempfile.TemporaryDirectory() as tmp:
    tmp = Path(tmp)
    if peer:
        shutil.copytree(peer, tmp / 'peer', ignore=shutil.ignore_patterns('.git', 'assets', '*.ipynb', 'out*'))
        data = tmp / 'peer' / 'data' / 'shakespeare_char'
        if text:  # the peer's own script on our text
            (data / 'input.txt').write_bytes(text.read_bytes())
            run('peer', [data / 'prepare.py'], tmp / 'peer')
        elif not (data / 'train.bin').exists():
            finish(False, why=f'--peer={peer} has no prepared text: give --input=FILE')
    logs = {'ours': [], 'peer': []}
    for turn in range(turns):
        for name, measure in (('ours', ours), ('peer', theirs))[:2 if peer else 1]:
            log = measure(tmp, turn)
            logs[name].append(log)
            print(f'{name}, run {turn + 1}: {figures([log])[0]:.2f} ms per step', flush=True)

ms, spread, loss = figures(logs['ours'])
print(f'\n{"":20}{"ours":>10}{"peer":>10}{"ours/peer":>12}')
if not peer:
    print(f'{"ms per step":20}{ms:10.2f}\n{"training loss":20}{loss:10.3f}\n\nTo compare with nanoGPT: {GET}')
    finish(None, steps=steps, ms=round(ms, 2), loss=round(loss, 3), why='no --peer')
peer_ms, peer_spread, peer_loss = figures(logs['peer'])
spread = max(spread, peer_spread)
print(f'{"ms per step":20}{ms:10.2f}{peer_ms:10.2f}{ms / peer_ms:12.3f}')
print(f'{"steps per second":20}{1000 / ms:10.1f}{1000 / peer_ms:10.1f}{peer_ms / ms:12.3f}')
print(f'{"training loss":20}{loss:10.3f}{peer_loss:10.3f}{loss / peer_loss:12.3f}   (last 50 of {steps} steps)')
print('\nThe machine was busy: runs of one script differ, repeat this when it is idle.\n' if spread > 1.15 else '')
finish(ms <= peer_ms, steps=steps, cpus=os.cpu_count(), ms=round(ms, 2), peer_ms=round(peer_ms, 2),
       ratio=round(ms / peer_ms, 3), spread=round(spread, 2), loss=round(loss, 3), peer_loss=round(peer_loss, 3))
