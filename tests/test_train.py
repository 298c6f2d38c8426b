"""
train.py and sample.py from the command line: what a run leaves behind when it is stopped, killed, starved of disk or fed
nonsense, and that going on afterwards is bit-equal to never having stopped.

Runs are children forked from one process that has torch loaded (this file, run as a script), in a copy of the repository
that has small shards of its own. A hook breaks a run from inside at an exact place: see HOOKS.
"""
import errno
import itertools
import json
import math
import os
import random
import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from optim_zero import Checkpoint, checkpoints

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds that a run may take: machines pause
TINY = ('--n_layer=1 --n_embd=32 --n_head=2 --flow_width=32 --flow_depth=1 --flow_draws=1 --block_size=64 --log_every=1 '
        '--tokens_per_step=256 --max_steps=12 --skills=0 --eval_docs=20 --dtype=float32 --device=cpu').split()
MOE = '--n_layer=2 --n_expert=4 --top_k=2 --save_every=4 --eval_every=4 --keep_last=9'.split()
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)

# ---------------------------------------------------------------- inside the forked process

def hook_signal(where, step, sig):
    """Sends itself a signal at `where` of the given step: row (before its batch is used), grad (before the forward pass),
    update (after it), eval (in the evaluation before it), save (while a checkpoint is written)."""
    import data.loader as loader, optim_zero
    fired = []                                        # once: a second signal ends a run at once
    fire = lambda: fired or (fired.append(1), os.kill(os.getpid(), sig))

    def before(owner, name, when):
        old = getattr(owner, name)
        def new(*a, **k):
            fire() if when(*a) else None
            return old(*a, **k)
        setattr(owner, name, new)

    if where == 'row':
        old = loader.train_batches
        def batches(*a, **k):
            g = old(*a, **k)
            try:
                for item in g:
                    fire() if item[0] == step else None
                    yield item
            finally:
                g.close()
        loader.train_batches = batches
    elif where == 'grad':
        before(optim_zero.Optimizer, 'start', lambda o, n: o.t == step)
    elif where == 'update':
        before(optim_zero.Optimizer, 'zero', lambda o: o.t == step + 1)
    elif where == 'eval':
        before(loader, 'eval_batches', lambda *a: True)
    else:
        before(optim_zero, 'save_checkpoint', lambda out, name, state, meta, mesh: meta['step'] == step)

def hook_kill(n, log='/dev/null'):
    """kill -9 just before the n-th of the calls that a checkpoint is made of, and in the middle of its file."""
    import optim_zero
    count, log = itertools.count(1), open(log, 'w', buffering=1)

    def event(name):
        i = next(count)
        os.kill(os.getpid(), signal.SIGKILL) if i == n else log.write(f'{i} {name}\n')

    def counted(owner, name, label):
        old = getattr(owner, name)
        def new(*a, **k):
            event(label(*a))
            return old(*a, **k)
        setattr(owner, name, new)

    counted(os, 'fsync', lambda fd: 'fsync ' + os.path.basename(os.readlink(f'/proc/self/fd/{fd}')))
    counted(os, 'rename', lambda a, b: f'rename {os.path.basename(a)} {os.path.basename(b)}')
    old, tensors = optim_zero.writes, itertools.count()
    def writes(spec, mesh):
        event('tensor') if 'blocks.0.attn.out' in spec.name and next(tensors) % 2 else None
        return old(spec, mesh)
    optim_zero.writes = writes

def hook_full(calls):
    """No space left on device at these calls of fsync, as a delayed write reports it."""
    old, count = os.fsync, itertools.count(1)
    def fsync(fd):
        if next(count) in calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        old(fd)
    os.fsync = fsync

def hook_bad(steps, value):
    """A gradient that is not finite in these steps, counted from the start of the process."""
    import optim_zero
    old, count = optim_zero.Optimizer.start, itertools.count()
    def start(opt, micros):
        old(opt, micros)
        if next(count) in steps:
            opt.units[-1].grad[3] = float(value)
    optim_zero.Optimizer.start = start

HOOKS = {k[5:]: v for k, v in list(globals().items()) if k.startswith('hook_')}

def child(job):
    for fd, (path, flags) in enumerate(((job['stdin'], os.O_RDONLY), (job['out'], os.O_WRONLY | os.O_CREAT),
                                        (job['err'], os.O_WRONLY | os.O_CREAT))):
        os.dup2(os.open(path, flags, 0o644), fd)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, 'w', buffering=1), open(2, 'w', buffering=1)
    os.environ.update(job['env'])
    sys.argv, code = job['argv'], 0
    signal.alarm(PATIENCE)
    try:
        for name, args in job['hooks'].items():
            HOOKS[name](**args)
        runpy.run_path(job['argv'][0], run_name='__main__')
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        print(e.code, file=sys.stderr) if isinstance(e.code, str) else None
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code & 255)

def serve():
    """Jobs as lines of JSON on stdin: {'argv': ...} is forked, its pid is the answer; {'wait': pid} its exit status."""
    torch.set_num_threads(1)
    import data.loader, data.scenes.scenes, model, optim_zero  # noqa: F401, E401
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job['wait'], 0)[1]), flush=True)
        else:
            pid = os.fork()
            child(job) if pid == 0 else print(pid, flush=True)

# ---------------------------------------------------------------- outside

class Machine:
    """A copy of the repository and the process that runs scripts in it."""

    def __init__(self, path):
        self.path, self.count = path, itertools.count()
        for pattern in ('*.py', 'config/*.py', 'data/*.py', 'data/*/*.py'):
            for p in ROOT.glob(pattern):
                (path / p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, path / p.relative_to(ROOT))
        self.env = dict(os.environ, PYTHONPATH=str(path), OMP_NUM_THREADS='1')
        self.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=path,
                                       env=self.env, text=True)
        self.text = path / 'small.txt'
        rng = random.Random(0)
        words = [''.join(rng.choices('etaoinshrdlu', k=rng.randint(2, 7))) for _ in range(600)]
        self.text.write_text(' '.join(rng.choice(words) + rng.choice(['', '', '.\n']) for _ in range(2500)))
        r = self.run('data/scenes/prepare.py', '--n_train=300', '--n_val=40', '--workers=1')
        assert r.code == 0, r.err

    def ask(self, **job):
        self.server.stdin.write(json.dumps(job) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, script, *argv, stdin='', env=None, **hooks):
        """Runs a script of the copy; hooks: name=dict(arguments)."""
        i = next(self.count)
        files = {k: str(self.path / f'{k}.{i}') for k in ('stdin', 'out', 'err')}
        Path(files['stdin']).write_text(stdin)
        return SimpleNamespace(pid=self.ask(argv=[script, *map(str, argv)], env=env or {}, hooks=hooks, **files), **files)

    def wait(self, job):
        """-> code (negative: the signal that killed it), out, err of a job."""
        code = self.ask(wait=job.pid)
        return SimpleNamespace(code=code, out=Path(job.out).read_text(), err=Path(job.err).read_text())

    def run(self, script, *argv, **kw):
        return self.wait(self.start(script, *argv, **kw))

    def train(self, out, *flags, **kw):
        return self.run('train.py', *TINY, f'--out_dir={out}', *flags, **kw)

    def close(self):
        self.server.stdin.close()
        self.server.wait(PATIENCE)

@pytest.fixture(scope='session')
def machine(tmp_path_factory):
    m = Machine(tmp_path_factory.mktemp('repo'))
    yield m
    m.close()


# ---------------------------------------------------------------- reading what a run left

def metrics(out):
    """{step: (loss, txt, img, aud, gnorm)}, {step: validation} of metrics.jsonl; what was done twice must be bit-equal."""
    train, val = {}, {}
    for line in (Path(out) / 'metrics.jsonl').read_text().splitlines():
        r = json.loads(line)
        into, what = (val, r['val']) if 'val' in r else (train, [r[k] for k in ('loss', 'txt', 'img', 'aud', 'gnorm')])
        assert into.setdefault(r['step'], what) == what, f'step {r["step"]} differs from its first time'
    return train, val

def contents(folder):
    """A checkpoint -> (meta without config, {name: tensor}); reads every byte of it."""
    ck = Checkpoint(folder)
    return {k: v for k, v in ck.meta.items() if k != 'config'}, {n: ck.full(n) for n in ck.names}

def assert_same(a, b):
    """Two checkpoints, bit for bit."""
    (meta_a, a), (meta_b, b) = contents(a), contents(b)
    assert meta_a == meta_b and a.keys() == b.keys()
    different = [n for n in a if not torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8))]
    assert not different, different

def steps(out):
    """The steps of the whole checkpoints in out, every byte checked."""
    for p in checkpoints(out):
        contents(p)
    return sorted(int(p.name[5:]) for p in checkpoints(out))

def one_line(r, *parts):
    """A failed run said what is wrong in one line on stderr."""
    lines = r.err.strip().splitlines()
    assert r.code > 0 and len(lines) == 1, (r.code, r.err[-800:])
    assert all(str(p) in lines[0] for p in parts), lines[0]

@pytest.fixture(scope='session')
def whole(machine):
    """The uninterrupted run of 12 steps, with experts, evaluated and saved at 4, 8 and 12."""
    out = machine.path / 'whole'
    r = machine.train(out, *MOE)
    assert r.code == 0, r.err
    bias = contents(out / 'step_00000012')[1]['buffer/blocks.1.mlp.bias']
    assert steps(out) == [4, 8, 12] and bias.abs().max() > 1e-3 and bias.std() > 0      # else it would prove little
    return out

# ---------------------------------------------------------------- stopped and resumed

STOPS = [('row', 0, TERM, 0), ('grad', 0, INT, 1), ('update', 1, TERM, 2), ('row', 2, INT, 2), ('row', 3, TERM, 3),
         ('eval', 4, INT, 4), ('update', 4, TERM, 5), ('grad', 5, INT, 6), ('grad', 6, TERM, 7), ('save', 8, TERM, 8),
         ('grad', 8, INT, 9), ('update', 9, TERM, 10), ('row', 11, INT, 11), ('row', 11, TERM, 11)]

def test_stopped_by_signals_at_every_step_and_resumed_each_time(machine, whole, tmp_path):
    """14 stops in a row, at every step and in every phase of one, are as good as none."""
    for where, step, sig, at in STOPS:
        r = machine.train(tmp_path, *MOE, signal=dict(where=where, step=step, sig=sig))
        assert r.code == 128 + sig, (where, step, r.err)
        assert f'stopped at step {at}, saved' in r.out and max(steps(tmp_path)) == at
    r = machine.train(tmp_path, *MOE, signal=dict(where='grad', step=11, sig=TERM))     # the last step: it ends by itself
    assert r.code == 0 and 'going on from' in r.out
    assert metrics(tmp_path) == metrics(whole)
    assert_same(tmp_path / 'step_00000012', whole / 'step_00000012')
    assert_same(tmp_path / 'best', whole / 'best')

@pytest.mark.parametrize('sig', [TERM, INT])
def test_signal_from_outside_to_the_real_command(machine, tmp_path, sig):
    """`python train.py`, stopped by someone else wherever it is, then 3 steps more: equal to the run that got there at once."""
    cmd = [*TINY, '--max_steps=1000000', '--tokens_per_step=64']
    p = subprocess.Popen([sys.executable, 'train.py', *cmd, f'--out_dir={tmp_path}/a'], cwd=machine.path, env=machine.env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.time() + PATIENCE
    while not (tmp_path / 'a/metrics.jsonl').exists() or (tmp_path / 'a/metrics.jsonl').read_text().count('\n') < 3:
        assert p.poll() is None and time.time() < until
        time.sleep(.05)
    p.send_signal(sig)
    out, err = p.communicate(timeout=PATIENCE)
    at, = steps(tmp_path / 'a')
    assert p.returncode == 128 + sig and f'stopped at step {at}, saved' in out and not err and at >= 3
    for out in 'ab':
        r = machine.run('train.py', *cmd, f'--out_dir={tmp_path}/{out}', signal=dict(where='row', step=at + 3, sig=TERM))
        assert r.code == 143
    assert metrics(tmp_path / 'a') == metrics(tmp_path / 'b')
    assert_same(*(tmp_path / out / f'step_{at + 3:08d}' for out in 'ab'))

SAVES = [*MOE, '--max_steps=3', '--save_every=1', '--eval_every=1', '--keep_last=1', '--eval_docs=2', '--lr=1e-4']

@pytest.fixture(scope='session')
def saves(machine):
    """3 steps, each saved as step_* and as best, the older ones removed; and the calls of one such step."""
    out = machine.path / 'saves'
    r = machine.train(out, *SAVES, kill=dict(n=0, log=str(machine.path / 'calls')))
    calls = [line.split(maxsplit=1) for line in (machine.path / 'calls').read_text().splitlines()]
    ends = [int(i) for i, c in calls if c.startswith('rename step_')]
    assert r.code == 0 and steps(out) == [3] and len(ends) == 2
    assert contents(out / 'best')[0]['step'] == 3       # a better one replaced it each time
    return out, [(int(i), c) for i, c in calls if ends[0] < int(i) <= ends[1] + 1]

def test_killed_at_any_moment_of_writing_a_checkpoint(machine, saves, tmp_path):
    """kill -9 at each call of the second checkpoint, again while the resumed run writes its own, then left alone."""
    out, calls = saves
    assert len(calls) > 12 and {c.split()[0] for _, c in calls} == {'fsync', 'rename', 'tensor'}
    for k, (n, call) in enumerate(calls):
        a = tmp_path / f'{n}'
        assert machine.train(a, *SAVES, kill=dict(n=n)).code == -9, call
        assert max(steps(a)) >= 2, call                                                # what was whole stays whole
        if max(steps(a)) == 2 and k % 2:
            assert machine.train(a, *SAVES, kill=dict(n=2 + k % 12)).code == -9, call
            assert max(steps(a)) >= 2, call
        r = machine.train(a, *SAVES)
        assert r.code == 0 and 'going on from' in r.out and not r.err, call
        assert metrics(a) == metrics(out), call
        assert_same(a / 'step_00000003', out / 'step_00000003')
        assert_same(a / 'best', out / 'best')

if __name__ == '__main__':
    serve()
