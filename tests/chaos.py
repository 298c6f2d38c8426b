"""
Chaos: real runs of train.py are hurt at an exact place, and the same command is started again.

    python tests/chaos.py                          the short form
    python tests/chaos.py --part=all               every rank, place and call of every layout; then random deaths, five in a row
    python tests/chaos.py --only="kill rename"     those whose title has these words
    python tests/chaos.py --zero=3                 all layouts with this ZeRO stage;  --keep=DIR: leave what the runs left

Faults: kill -9 and the like of each rank in forward, in backward, inside a collective, in the optimizer, and at every file-system call of
a checkpoint; signals to the job and to one rank; exceptions; a rank that stops answering; damaged checkpoints; a full disk; folders that
may not be written to.

A fault is survived if the ranks end by themselves (nobody hangs; whoever is left says at most one line, and names a rank that fell
silent), and then the same command goes on from the newest checkpoint that was whole, and ends with the same bits in weights, optimizer and
losses as the run that nobody hurt, with nothing left behind but damaged-step_*. Nothing may be lost but the steps since the last
checkpoint.

Ranks are forked from this process, which has torch loaded, with the environment that torchrun sets; the last part is real torchrun.
Nothing in the product knows of this: arm() patches what a process calls (os.fsync, open, torch.distributed.*, hooks of modules, audit
hooks of Python) before train.py runs in it.
"""
import atexit, builtins, ctypes, errno, io, itertools, json, math, os, random, re, runpy, select, shutil, signal, subprocess, sys, tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240    # seconds that a job may take after the death of a rank, twice that before; not counted while this process is stopped
LANES = 4         # jobs at a time: most of one is waiting for the ranks that are left to see that another is gone
TINY = ('--n_layer=2 --n_embd=32 --n_head=2 --flow_width=32 --flow_depth=1 --bins=0 --flow_draws=1 --block_size=64 --log_every=1 '
        '--eval_docs=8 '
        '--tokens_per_step=512 --micro_rows=2 --max_steps=8 --save_every=2 --eval_every=4 --keep_last=2 --skills=0 --tokenizer=bytes '
        '--device=cpu').split()
WORDS = dict(moe=['--n_expert=4', '--top_k=2', '--act=swiglu'], tied=['--tie=true'], sp=['--sp=true'],
             float64=['--dtype=float64', '--muon=false'], background=['--save_background=true'])
KILL, STOP, TERM, INT = 'SIGKILL', 'SIGSTOP', 'SIGTERM', 'SIGINT'

# ---------------------------------------------------------------- inside the process that is hurt


def arm(rank, out, faults=(), log=None, minutes=None):
    """
    faults: dicts(rank, at, step, nth, do, mark): at the nth event `at` of that rank (in the given step, if it is not None), once (mark: a
    file that says it has happened), `do`: SIG*: this signal to itself; 'all SIG*': to its process group; 'parent SIG*'; E*: that OSError;
    'raise'; 'exit'; 'sh COMMAND'.  log: a file that gets a line [step, event, detail] for each event.  minutes: patience of start_world.
    """
    import data.loader as loader, optim_zero, parallel, torch, torch.distributed as dist
    out, now, count, file = os.path.abspath(out), [None], {}, log and open(log, 'w', buffering=1)
    faults = [f for f in faults if f['rank'] == rank]

    def event(what, detail='', halfway=lambda: None):
        for key in {(what, now[0]), (what, None)}:
            count[key] = count.get(key, 0) + 1
        if file:
            file.write(json.dumps([now[0], what, detail]) + '\n')
        for f in faults:
            if f['at'] == what and f['step'] in (None, now[0]) and f['nth'] == count[what, f['step']]:
                try:
                    os.close(os.open(f['mark'], os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                do, _, arg = f['do'].partition(' ')
                if do == 'all':
                    os.killpg(0, getattr(signal, arg))
                elif do == 'parent':
                    os.kill(os.getppid(), getattr(signal, arg))
                elif do[:3] == 'SIG':
                    halfway() if do not in (TERM, INT, STOP) else None             # who lives on does it once
                    os.kill(os.getpid(), getattr(signal, do))
                elif do == 'sh':
                    os.system(arg)
                elif do == 'exit':
                    os._exit(7)
                elif do == 'raise':
                    raise RuntimeError('chaos: this rank has a bug')
                else:
                    raise OSError(getattr(errno, do), os.strerror(getattr(errno, do)))

    def before(owner, name, what, half=None):
        old = getattr(owner, name)
        def new(*a, **k):
            event(what, name, (lambda: half(old, a, k)) if half else lambda: None)
            return old(*a, **k)
        setattr(owner, name, new)
        return new

    def inside(path, dir_fd=-1):
        """The path below out_dir of a path or a file descriptor, or None."""
        path = os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else os.fsdecode(path)
        if not path.startswith('/') and isinstance(dir_fd, int) and dir_fd >= 0:
            path = os.path.join(os.readlink(f'/proc/self/fd/{dir_fd}'), path)
        path = os.path.abspath(path)
        return os.path.relpath(path, out) if path.startswith(out) and 'metrics.jsonl' not in path else None

    def audit(name, a):
        """Calls of the file system that Python announces; an exception raised here becomes that of the call."""
        if name == 'open' and isinstance(a[0], (str, bytes, os.PathLike)) and (p := inside(a[0])):
            event(f'{"open" if (a[2] or 0) & (os.O_WRONLY | os.O_RDWR) else "read"} {p}')
        elif name in ('os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree') and (p := inside(a[0], a[-1])):
            event(f'{name.split(".")[1]} {p}')
        elif name == 'os.rename' and (p := inside(a[0])):
            event(f'rename {p} {inside(a[1])}')
        elif name == 'ctypes.dlsym' and 'rename' in str(a[1]):
            event('exchange')                             # renameat2

    class Raw(io.FileIO):
        """A file whose every write(2) is an event; who is killed there has written half."""
        def write(self, b):
            event(f'write {inside(self.fileno())}', len(b), lambda: super(Raw, self).write(memoryview(b)[:len(b) // 2]))
            return super().write(b)

    plain = open
    def opened(path, mode='r', *a, **k):
        if mode not in ('w', 'wb') or not isinstance(path, (str, os.PathLike)) or inside(path) is None:
            return plain(path, mode, *a, **k)
        f = io.BufferedWriter(Raw(path, 'w'))
        return f if 'b' in mode else io.TextIOWrapper(f)
    builtins.open = io.open = opened
    for name in ('fsync', 'fdatasync', 'write', 'pwrite'):
        def call(fd, *a, name=name, old=getattr(os, name)):
            event(f'{name} {p}') if (p := inside(fd)) else None
            return old(fd, *a)
        setattr(os, name, call)
    whole = ('all_reduce', 'all_gather_single', 'reduce_scatter_single', 'all_to_all_single', 'all_gather_into_tensor',
             'reduce_scatter_tensor')
    for name in (*whole, 'broadcast', 'barrier', 'all_gather', 'all_gather_object', 'isend', 'irecv', 'send', 'recv', 'batch_isend_irecv'):
        if hasattr(dist, name):                           # killed inside: it has begun, and nobody waits for its end
            new = before(dist, name, 'collective', (lambda old, a, k: old(*a, **{**k, 'async_op': True})) if name in whole else None)
            if name in ('isend', 'irecv'):
                setattr(dist.distributed_c10d, name, new)    # P2POp compares with it

    def after(m, a, y):
        if isinstance(y, torch.Tensor) and y.requires_grad:
            y.register_hook(lambda g: event('backward', type(m).__name__))
    torch.nn.modules.module.register_module_forward_pre_hook(lambda m, a: event('forward', type(m).__name__))
    torch.nn.modules.module.register_module_forward_hook(after)
    before(optim_zero.Optimizer, 'step', 'update')
    before(loader, 'collate', 'collate')                  # runs in the loader's thread
    batches = loader.train_batches
    def train_batches(*a, **k):
        g = batches(*a, **k)
        try:
            for item in g:
                now[0] = item[0]
                event('row')
                yield item
        finally:
            g.close()
    loader.train_batches = train_batches
    if minutes:
        parallel.start_world.__defaults__ = (minutes,)
    sys.addaudithook(audit)


def child(rank, world, port, argv, files, armed):
    """One rank, forked: becomes `python train.py ...` as torchrun would have started it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)            # PR_SET_PDEATHSIG: nobody outlives this script
    for fd, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
    sys.stdout, sys.stderr = open(1, 'w', buffering=1), open(2, 'w', buffering=1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)        # also below nohup
    os.environ['OMP_NUM_THREADS'] = '1'
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                          TORCHELASTIC_USE_AGENT_STORE='True', TORCHELASTIC_RESTART_COUNT='0')
    sys.argv, code = argv, 0
    try:
        arm(rank, **armed)
        runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        print(e.code, file=sys.stderr) if isinstance(e.code, str) else None
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()                               # what a process does at its end
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code & 255)


def store():
    """A process that holds the store through which the ranks of one job meet, as torchrun does -> (its pid, the port)."""
    import torch.distributed as dist
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        held = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        os.write(w, str(held.port).encode())
        os.close(w)
        while True:
            signal.pause()
    os.close(w)
    port = int(os.read(r, 16))
    os.close(r)
    return pid, port


# ---------------------------------------------------------------- jobs


def words(layout):
    """'moe dp2 tp2 zero3' -> (world, flags of train.py)."""
    sizes = {w.rstrip('0123456789'): int(w.strip('abcdefghijklmnopqrstuvwxyz')) for w in layout.split() if re.fullmatch('[a-z]+[0-9]', w)}
    flags = [f for w in layout.split() for f in WORDS.get(w, ())]
    dtype = [] if 'float64' in layout else ['--dtype=float32']
    return math.prod(sizes.get(k, 1) for k in ('dp', 'tp', 'pp', 'cp')), flags + dtype + [f'--{k}={n}' for k, n in sizes.items()]


class Lab:
    """A copy of the repository with a small data set in it, and a place for what runs leave behind."""
    def __init__(self, path):
        self.path, self.count, self.refs = Path(path), itertools.count(), {}
        self.repo = self.path / 'repo'
        for pattern in ('*.py', 'data/*.py', 'data/*/*.py'):
            for p in ROOT.glob(pattern):
                (self.repo / p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, self.repo / p.relative_to(ROOT))
        subprocess.run([sys.executable, 'data/scenes/prepare.py', '--n_train=300', '--n_val=40', '--workers=1'], cwd=self.repo, check=True,
                       stdout=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS='1'))
        sys.path.insert(0, str(self.repo))
        os.chdir(self.repo)                               # from here on this process imports the copy

    def new(self, name):
        return self.path / f'{name}-{os.getpid()}-{next(self.count)}'

    def run(self, layout, out, faults=(), log=None, minutes=None, flags=()):
        """
        Fork the ranks and wait -> dict(codes, of each rank; after: seconds from the first end that is not 0 to the last; hung: ranks that
        had to be killed; out, err: what each rank said).
        """
        world, fl = words(layout)
        agent, port = store() if world > 1 else (0, 0)
        argv = ['train.py', *TINY, *fl, f'--out_dir={out}', *flags]
        files, pids = [[str(self.new('std')) for _ in range(2)] for _ in range(world)], []
        for r in range(world):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, pids[0] if pids else 0)
                child(r, world, port, argv, files[r], dict(out=out, faults=faults, log=log and f'{log}.{r}', minutes=minutes))
            os.setpgid(pid, pids[0] if pids else pid)     # in both, so that it is true before either goes on
            pids.append(pid)
        poll, codes, first, patience, stops = select.poll(), [None] * world, None, 2 * PATIENCE, any(f['do'] == STOP for f in faults)
        left = {os.pidfd_open(pid): r for r, pid in enumerate(pids)}
        for fd in left:
            poll.register(fd, select.POLLIN)
        while left and patience:
            ready = poll.poll(1000)
            patience -= not ready
            for fd, _ in ready:
                r = left.pop(fd)
                poll.unregister(fd), os.close(fd)
                codes[r] = os.waitstatus_to_exitcode(os.waitpid(pids[r], 0)[1])
                if codes[r] and first is None:
                    first, patience = time.time(), PATIENCE
            if stops and all(open(f'/proc/{pids[r]}/stat').read().rpartition(')')[2].split()[0] == 'T' for r in left.values()):
                break                                     # only those that were stopped on purpose are left
        after = time.time() - first if first else 0.0
        hung = [] if stops and patience else sorted(left.values())
        for fd, r in left.items():
            os.kill(pids[r], signal.SIGKILL)
            codes[r] = os.waitstatus_to_exitcode(os.waitpid(pids[r], 0)[1])
            os.close(fd)
        if agent:
            os.kill(agent, signal.SIGKILL), os.waitpid(agent, 0)
        texts = [[Path(f).read_text(errors='replace') for f in fs] for fs in files]
        return dict(codes=codes, after=after, hung=hung, out=[t[0] for t in texts], err=[t[1] for t in texts])

    def torchrun(self, layout, out, faults=(), restarts=0):
        """The real thing; faults by a sitecustomize.py, which Python imports at its start -> dict(codes: [that of torchrun], out, err)."""
        world, fl = words(layout)
        hook, files = self.new('hook'), [self.new('std') for _ in range(2)]
        hook.mkdir()
        (hook / 'chaos.json').write_text(json.dumps(dict(out=str(out), faults=faults)))
        (hook / 'sitecustomize.py').write_text(f'''import json, os, sys
if 'RANK' in os.environ:                                  # a rank, not torchrun itself
    sys.path[:0] = [{str(self.repo)!r}, {str(ROOT / "tests")!r}]
    import chaos
    del sys.path[1]
    chaos.arm(int(os.environ['RANK']), **json.load(open({str(hook / "chaos.json")!r})))
''')
        argv = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={world}', f'--max-restarts={restarts}',
                '--monitor-interval=0.1', 'train.py', *TINY, *fl, f'--out_dir={out}']
        with open(files[0], 'w') as o, open(files[1], 'w') as e:
            p = subprocess.Popen(argv, cwd=self.repo, env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(hook)),
                                 start_new_session=True, stdout=o, stderr=e)
        for _ in range(4 * PATIENCE):
            try:
                p.wait(1)
                break
            except subprocess.TimeoutExpired:
                pass
        else:
            os.killpg(p.pid, signal.SIGKILL)
        return dict(codes=[p.wait()], out=[files[0].read_text()], err=[files[1].read_text()])


# ---------------------------------------------------------------- what a run left behind


def metrics(out):
    """[(step, what was recorded)] without the times, in order; a line that was cut is 'cut'."""
    lines = []
    for line in (Path(out) / 'metrics.jsonl').read_text().splitlines():
        try:
            r = json.loads(line)
            lines.append((r['step'], {k: v for k, v in r.items() if k not in ('step', 'ms', 'tok_s', 'cost')}))
        except ValueError:
            lines.append((-1, 'cut'))
    return lines


def contents(folder):
    """A checkpoint, every byte of it checked -> {name: bytes} and the meta without what may differ."""
    from data.checkpoint import Checkpoint
    ck = Checkpoint(folder)
    return {n: ck.full(n).numpy().tobytes() for n in ck.names} | {'meta': {k: v for k, v in ck.meta.items() if k != 'config'}}


def newest(out):
    """The step of the newest folder with the name of a checkpoint; 0: none."""
    return max([int(p.name[5:]) for p in Path(out).glob('step_*')], default=0)


def compare(out, ref):
    """What differs in a finished run from the one that nobody hurt: [] or complaints."""
    bad = []
    if not (out / 'step_00000008/manifest.json').exists():
        return ['there is no step_00000008']
    for name in ('step_00000008', 'best'):
        a, b = contents(out / name), contents(ref / name)
        if a != b:
            bad.append(f'{name} differs in {len([k for k in a | b if a.get(k) != b.get(k)])} of {len(a | b)} tensors')
    a, b = metrics(out), metrics(ref)
    if [r for r in b if r not in a]:
        bad.append(f'{len([r for r in b if r not in a])} records of the undisturbed run are missing in metrics.jsonl')
    if [r for r in a if r not in b and r[1] != 'cut']:
        bad.append(f'{len([r for r in a if r not in b and r[1] != "cut"])} records in metrics.jsonl differ')
    if more := sorted(p.name for p in out.iterdir() if not re.fullmatch(r'(damaged-)?step_\d{8}|best|metrics.jsonl', p.name)):
        bad.append(f'left behind: {" ".join(more)}')
    if (n := len(list(out.glob('step_*')))) > 3:          # 2 are to be kept; one more if nothing was written after the death
        bad.append(f'{n} checkpoints are kept')
    return bad


def resumed(text):
    """The step that a run went on from, by its own words; 0: from the beginning."""
    found = re.findall(r'going on from \S*?step_(\d+)', text)
    return int(found[-1]) if found else 0


def last_words(r):
    return (' '.join(r['err']).strip().splitlines() or [''])[-1][:160]


def silence(r, victims):
    """Complaints about what ranks that were not the fault's victims say on stderr: one line at most, and no traceback."""
    bad = []
    for i, text in enumerate(r['err']):
        lines = text.strip().splitlines()
        if i not in victims and (len(lines) > 1 or 'Traceback' in text):
            bad.append(f'rank {i} says {len(lines)} lines: ...{lines[-1][:100]}')
    return bad[:1] + [f'and {len(bad) - 1} more'] * (len(bad) > 1)


# ---------------------------------------------------------------- one fault: functions that return (complaints, what happened)


def reference(lab, layout):
    """The run that nobody hurt, once per layout: (its folder, events of each rank: [[step, what, detail], ...])."""
    if layout not in lab.refs:
        out = lab.new('whole')
        r = lab.run(layout, out, log=out.with_suffix('.log'))
        if any(r['codes']):
            raise SystemExit(f'chaos.py: {layout} does not even run: {r["codes"]}\n' + '\n'.join(r['err'])[-2000:])
        logs = [Path(f'{out.with_suffix(".log")}.{k}').read_text().splitlines() for k in range(len(r['codes']))]
        lab.refs[layout] = out, [[json.loads(line) for line in log] for log in logs]
    return lab.refs[layout]


def fault(lab, rank, at, do=KILL, step=None, nth=1):
    return dict(rank=rank, at=at, step=step, nth=nth, do=do, mark=str(lab.new('mark')))


def hurt(lab, layout, rounds, floor=None, codes=None, minutes=None, says=None, named=None, maybe=False):
    """
    Runs `layout` once for each entry of rounds (a list of faults, or a function of the folder, called between two runs), and once more.
    floor: the step that the run after the first round must not start below, or one for each round; codes: the exit codes of the first
    round; says: what must be in its output exactly once; named: the rank that the survivors must name; maybe: faults need not happen.
    """
    ref, _ = reference(lab, layout)
    out, bad, told = lab.new('out'), [], []
    for i, faults in enumerate([*rounds, []]):
        if callable(faults):
            faults(out)
            continue
        last = i == len(rounds)
        r = lab.run(layout, out, faults, minutes=minutes if faults else None)
        if r['hung']:
            bad.append(f'ranks {r["hung"]} hang')
        if not maybe and (missed := [f for f in faults if not os.path.exists(f['mark'])]):
            bad.append(f'not injected: {missed[0]["at"]}')
        if i:                                             # it went on: from where?
            least = floor[i - 1] if isinstance(floor, (list, tuple)) else floor if i == 1 or callable(rounds[0]) else None
            if least is not None and resumed(r['out'][0]) < least:
                bad.append(f'went on from {resumed(r["out"][0])}, not from {least}')
            told.append(f'on from {resumed(r["out"][0])}')
        if last:
            if any(r['codes']) or r['hung']:
                return bad + [f'the next start ended with {r["codes"]}: {last_words(r)}'], ', '.join(told)
            break
        dead = {f['rank'] for f in faults if f['do'][:3] == 'SIG' and f['do'] not in (TERM, INT, STOP) or f['do'] in ('exit', 'raise')}
        if codes and i == 0 and r['codes'] != codes:
            bad.append(f'ended with {r["codes"]}, not {codes}: {last_words(r)}')
        if dead and not codes and not maybe and 0 in r['codes'] and newest(out) < 8:
            bad.append(f'ended with {r["codes"]}: a rank takes that for success')
        bad += silence(r, dead) if len(r['codes']) > 1 else []
        if says and i == 0 and (n := '\n'.join(r['out'] + r['err']).count(says)) != 1:
            bad.append(f'says {says!r} {n} times')
        if named is not None and not re.search(rf'rank {named}\b', '\n'.join(r['err'])):
            bad.append(f'nobody names rank {named}: {last_words(r)}')
        told.append(f'ended {" ".join(map(str, r["codes"]))}' + f' in {r["after"]:.1f} s' * (any(r['codes']) and len(r['codes']) > 1))
    bad += compare(out, ref)
    shutil.rmtree(out, ignore_errors=True)
    return bad, ', '.join(told)


def flip(path, at, bit=3):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def cut(path, to):
    """Keep this fraction of a file, and lose 5 bytes more."""
    os.truncate(path, max(0, int(os.path.getsize(path) * to) - 5))


def middle(path, word):
    """The byte in the middle of the last tensor whose name has `word`: (file, offset)."""
    e = [e for e in json.loads((path / 'manifest.json').read_text())['tensors'] if word in e['name'] and e['nbytes']][-1]
    return path / e['file'], e['offset'] + e['nbytes'] // 2


def shard(path):
    """The last shard that holds anything."""
    return max(f for f in path.glob('rank*.bin') if f.stat().st_size)


DAMAGE = {   # what happens to the newest checkpoint: of its folder
    'first bit of shard 0': lambda p: flip(p / 'rank00000.bin', 0, 0),
    'last bit of the last shard': lambda p: flip(shard(p), -1, 7),
    'a bit of the first layer': lambda p: flip(*middle(p, 'blocks.0.')),
    'a bit of the last layer': lambda p: flip(*middle(p, 'blocks.1.')),
    'a bit of a second moment': lambda p: flip(*middle(p, 'exp_avg_sq/')),
    'last shard truncated': lambda p: cut(shard(p), 1),
    'shard 0 empty': lambda p: cut(p / 'rank00000.bin', 0),
    'last shard gone': lambda p: shard(p).unlink(),
    'shard 0 is a folder': lambda p: ((p / 'rank00000.bin').unlink(), (p / 'rank00000.bin').mkdir()),
    'manifest truncated': lambda p: cut(p / 'manifest.json', .7),
    'a bit of the manifest': lambda p: flip(p / 'manifest.json', os.path.getsize(p / 'manifest.json') // 2, 0),
    'manifest empty': lambda p: cut(p / 'manifest.json', 0),
    'manifest of another step': lambda p: shutil.copy(p.with_name('step_00000004') / 'manifest.json', p / 'manifest.json'),
    'manifest gone': lambda p: (p / 'manifest.json').unlink(),
}


def damaged(lab, layout, how):
    """A run killed in step 7 has checkpoints 4 and 6; 6 is damaged; 4 must be found, by all ranks alike."""
    return hurt(lab, layout, [[fault(lab, 0, 'update', step=7)], lambda out: DAMAGE[how](out / 'step_00000006')], floor=[None, 4])


def both_damaged(lab, layout):
    """None that can be read: refused by all ranks, in one line, never from scratch; after one is put back the run goes on."""
    ref, _ = reference(lab, layout)
    out, bad = lab.new('out'), []
    aside = out.with_name(out.name + '.aside')
    lab.run(layout, out, [fault(lab, 0, 'update', step=7)])
    shutil.copytree(out / 'step_00000004', aside)
    DAMAGE['last bit of the last shard'](out / 'step_00000004'), DAMAGE['a bit of the manifest'](out / 'step_00000006')
    r = lab.run(layout, out)
    if set(r['codes']) != {1} or ''.join(r['err']).count('\n') != 1 or 'scratch' not in r['err'][0]:
        bad.append(f'ended with {r["codes"]}, said {"".join(r["err"])[-300:]!r}')
    shutil.rmtree(out / 'step_00000004'), os.rename(aside, out / 'step_00000004')
    r = lab.run(layout, out)
    if any(r['codes']) or resumed(r['out'][0]) != 4:
        bad.append(f'put back: ended with {r["codes"]}, went on from {resumed(r["out"][0])}')
    return bad + compare(out, ref), f'refused, on from {resumed(r["out"][0])}'


def full_disk(lab, layout):
    """A file system with room for one and a half checkpoints; then it grows."""
    ref, _ = reference(lab, layout)
    size, disk, bad = sum(f.stat().st_size for f in (ref / 'step_00000008').iterdir()), lab.new('disk'), []
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size * 3 // 2}', 'none', disk], capture_output=True).returncode:
        return None, 'a tmpfs cannot be mounted here'
    try:
        out = disk / 'out'
        r = lab.run(layout, out, flags=['--eval_every=0'])
        n = ''.join(r['out']).count('No space left')
        if set(r['codes']) != {1} or n != 3 or any(r['err']):
            bad.append(f'full: ended with {r["codes"]}, {n} complaints, and {"".join(r["err"])[-100:]!r}')
        subprocess.run(['mount', '-o', 'remount,size=1g', disk], check=True)
        r = lab.run(layout, out)
        if any(r['codes']) or resumed(r['out'][0]) != 2:
            bad.append(f'with room again: ended with {r["codes"]}, went on from {resumed(r["out"][0])}')
        return bad + compare(out, ref), f'no room for 4, 6 and 8, on from {resumed(r["out"][0])}'
    finally:
        subprocess.run(['umount', '-l', disk])


def forbidden(lab, layout):
    """out_dir may not be written to from step 5 on (chattr +i: root is no exception); then it may again."""
    ref, _ = reference(lab, layout)
    out, probe, bad = lab.new('out'), lab.new('probe'), []
    probe.mkdir()
    if subprocess.run(['chattr', '+i', probe], capture_output=True).returncode:
        return None, 'chattr does not work here'
    subprocess.run(['chattr', '-i', probe], check=True)
    try:
        r = lab.run(layout, out, [fault(lab, 0, 'row', f'sh chattr +i {out}', step=5)])
    finally:
        subprocess.run(['chattr', '-i', out])
    n = ''.join(r['out']).count('no checkpoint written')
    if set(r['codes']) != {1} or n != 3 or any(r['err']):                           # 6, best, 8
        bad.append(f'forbidden: ended with {r["codes"]}, {n} complaints, and {"".join(r["err"])[-100:]!r}')
    r = lab.run(layout, out)
    if any(r['codes']) or resumed(r['out'][0]) != 4:
        bad.append(f'allowed again: ended with {r["codes"]}, went on from {resumed(r["out"][0])}')
    return bad + compare(out, ref), f'not allowed to save 6 and 8, on from {resumed(r["out"][0])}'


def elastic(lab, layout, other):
    """Killed in one layout, gone on with in another: the same weights up to the order of sums, in float64."""
    from data.checkpoint import Checkpoint
    ref, _ = reference(lab, layout)
    out = lab.new('out')
    bad = silence(lab.run(layout, out, [fault(lab, 0, 'backward', step=5)]), {0})
    r = lab.run(other, out)
    if any(r['codes']) or resumed(r['out'][0]) != 4:
        return bad + [f'in the other layout: ended with {r["codes"]}, went on from {resumed(r["out"][0])}: {last_words(r)}'], ''
    a, b = Checkpoint(out / 'step_00000008'), Checkpoint(ref / 'step_00000008')
    if sorted(a.names) != sorted(b.names):
        return bad + ['other tensors'], ''
    worst = max(float((a.full(n) - b.full(n)).abs().max() / b.full(n).abs().max().clamp(min=1e-12)) for n in b.names)
    return bad + [f'weights differ by {worst:.1e}'] * (not worst <= 1e-9), f'on from 4 as {other}, differs by {worst:.0e}'


def torchrun(lab, layout, faults, restarts=0, first=(), floor=0, says=()):
    """Under the real torchrun. first: exit codes allowed for the first start, (): it must end well; says: patterns in its output."""
    ref, _ = reference(lab, layout)
    out, bad = lab.new('out'), []
    r = lab.torchrun(layout, out, faults, restarts)
    text = r['out'][0] + r['err'][0]
    if missed := [f for f in faults if not os.path.exists(f['mark'])]:
        bad.append(f'not injected: {missed[0]["at"]}')
    if r['codes'][0] not in (first or (0,)):
        bad.append(f'torchrun ended with {r["codes"][0]}: {last_words(r)}')
    bad += [f'nothing like {s!r} in the output' for s in says if not re.search(s, text)]
    if n := text.count('Traceback (most') - len(re.findall(r'/torch/distributed/run\.py", line \d+, in main', text)):
        bad.append(f'{n} tracebacks of ranks')            # torchrun ends with one of its own
    told = f'torchrun ended {r["codes"][0]}'
    if first:
        r = lab.torchrun(layout, out)
        if r['codes'][0]:
            bad.append(f'the next start ended with {r["codes"][0]}: {last_words(r)}')
    if resumed(r['out'][0]) < floor:
        bad.append(f'went on from {resumed(r["out"][0])}, not from {floor}')
    return bad + compare(out, ref), f'{told}, on from {resumed(r["out"][0])}'


def flushed(lab, layout):
    """No fault, but what a power failure would need: files flushed after the last write, the folder before the rename, out_dir after it."""
    bad, n = [], 0
    for rank, log in enumerate(reference(lab, layout)[1]):
        calls = [what for _, what, _ in log if what.split()[0] in ('mkdir', 'open', 'write', 'fsync', 'fdatasync', 'rename', 'exchange')]
        for i, what in enumerate(calls):
            verb, _, path = what.partition(' ')
            later = calls[i + 1:]
            if f'open {path}' in later:                    # of this checkpoint, not of the next one of that name
                later = later[:later.index(f'open {path}')]
            if verb == 'write' and not {f'fsync {path}', f'fdatasync {path}'} & set(later[later.index(what) + 1 if what in later else 0:]):
                bad.append(f'rank {rank}: {path} is not flushed after its last write')
            if verb in ('rename', 'exchange') and '.old' not in path:
                n += 1
                tmp = path.split()[0] if path else next(c.split()[1] for c in calls[i::-1] if re.fullmatch(r'fsync \..*\.tmp', c))
                if calls[i - 1] != f'fsync {tmp}' or later[:1] != ['fsync .']:
                    bad.append(f'rank {rank}: {what} comes after {calls[i - 1]} and before {later[:1]}')
    return bad, f'{n} checkpoints, each flushed before it gets its name'


# ---------------------------------------------------------------- which faults


def indexed(log):
    """[(step, event, how many of this event there have been, and in this step)] of one rank's log."""
    count, out = {}, []
    for step, what, _ in log:
        for key in ((what,), (what, step)):
            count[key] = count.get(key, 0) + 1
        out.append((step, what, count[what,], count[what, step]))
    return out


def window(log, name):
    """The file-system calls while the checkpoint `name` is written for the last time: [(event, n-th, is that checkpoint already there)]."""
    kinds = 'mkdir', 'open', 'write', 'fsync', 'rename', 'exchange', 'remove', 'rmdir', 'rmtree', 'pwrite', 'fdatasync'
    calls, found, there = [e for e in indexed(log) if e[1].split()[0] in kinds], [], False
    begins = [i for i, e in enumerate(calls) if re.match(r'mkdir \..*\.tmp$', e[1])] or \
        [i for i, e in enumerate(calls) if re.match(r'open \..*\.tmp/rank', e[1])] + [len(calls)]
    mine = [i for i in begins if i < len(calls) and f'.{name}.tmp' in calls[i][1]]
    if not mine:
        return []
    first, last = mine[-1], min([i for i in begins if i > mine[-1]], default=len(calls))
    for _, what, n, _ in calls[first - (first > 0 and calls[first - 1][1] == f'rmtree .{name}.tmp'):last]:
        if not re.match(r'rmtree \..*\.tmp$', what) or f'.{name}.tmp' in what:
            found.append((what, n, there))
        there |= what == f'rename .{name}.tmp {name}' or what == 'exchange'
    few = []                                              # of many writes to one file: the first, one in the middle, the last
    for what, n, there in found:
        same = [k for w, k, _ in found if w == what]
        if n in (same[0], same[len(same) // 2], same[-1]):
            few.append((what, n, there))
    return few


def places(log, step, kinds=('forward', 'backward', 'collective'), where=(.5,)):
    """[(kind, n)]: at these fractions of all such events of a rank in one step."""
    total = {k: max([n for s, w, _, n in indexed(log) if (s, w) == (step, k)], default=0) for k in kinds}
    return [(k, n) for k in kinds for n in sorted({max(1, math.ceil(f * total[k])) for f in where}) if total[k]]


def plan(lab, part, zero):
    """Yields (title, layout, list of (own title or '', function, arguments), made when it is called: it may have to run the layout)."""
    def at(layout):
        return re.sub(r'zero\d', f'zero{zero}', layout) if zero != '' else layout

    def singles(*items):
        for title, layout, function, args in items:
            yield title, layout, lambda function=function, args=args: [('', function, args)]

    four, pipe, two, one = at('moe dp2 tp2 ep2 zero3'), at('tied dp2 pp2 zero1'), at('moe dp2 ep2 zero2'), at('moe dp1 zero0')
    behind, more = at('moe dp2 ep2 background zero3'), []
    if part == 'all':
        more = [at(x) for x in ('dp4 zero3', 'dp2 cp2 zero2', 'tied tp2 pp2 sp zero1', 'moe dp2 cp2 ep4 zero3', 'dp2 zero0')]

    # each rank in turn, in forward, in backward, inside a collective
    for layout in (four, pipe, *more):
        for rank in range(words(layout)[0]):
            yield f'kill in forward, backward, collective: rank {rank}', layout, lambda layout=layout, rank=rank: [
                (f'kill in {k} {n} of step 5: rank {rank}', hurt, dict(rounds=[[fault(lab, rank, k, step=5, nth=n)]], floor=4))
                for k, n in places(reference(lab, layout)[1][rank], 5, where=(.5,) if part != 'all' else (.01, .3, .6, 1))]

    # every file-system call of a checkpoint: killed there, and errors
    for layout in (two, behind, *([four, pipe, *more] if part == 'all' else [])):
        world = words(layout)[0]
        yield from singles(('everything is flushed before it gets its name', layout, flushed, {}))
        for rank in range(world):
            for name, floor in (('step_00000006', (4, 6)), ('best', (6, 6)))[:1 if layout == behind and part != 'all' else 2]:
                title = f'kill at mkdir open write fsync rename exchange remove rmdir rmtree .{name}.tmp: rank {rank}'
                yield title, layout, lambda layout=layout, rank=rank, name=name, floor=floor: [
                    (f'kill at {what} ({n}): rank {rank}', hurt, dict(rounds=[[fault(lab, rank, what, nth=n)]], floor=floor[there]))
                    for what, n, there in window(reference(lab, layout)[1][rank], name)
                    if part == 'all' or layout == two and name != 'best' or there or what.split()[0] in ('rename', 'exchange', 'fsync')]

            def errors(layout=layout, rank=rank, world=world):
                calls = [(what, n) for what, n, there in window(reference(lab, layout)[1][rank], 'step_00000006')
                         if not there and what.split()[0] in ('mkdir', 'open', 'write', 'fsync', 'rename')]
                return [(f'{e} at {what} ({n}): rank {rank}', hurt,
                         dict(rounds=[[fault(lab, rank, what, e, nth=n)]], floor=8, codes=[0] * world, says='no checkpoint written'))
                        for e, (what, n) in zip(itertools.cycle(('ENOSPC', 'EACCES', 'EIO', 'EDQUOT')), calls)]
            if layout != behind or part == 'all':
                yield f'ENOSPC EACCES EIO EDQUOT at mkdir open write fsync rename: rank {rank}', layout, errors

    # signals, exits, exceptions: (what is done, rank, where in step 5, exit codes if they are certain, step that must not be lost)
    signals = [
        ('all SIGTERM', 0, 'forward', [143, 143], 6), ('all SIGINT', 1, 'backward', [130, 130], 6), (TERM, 0, 'collective', [143, 143], 5),
        (TERM, 1, 'update', [143, 143], 6), (INT, 1, 'row', [143, 130], 5), ('all SIGHUP', 0, 'backward', [-1, -1], 4),
        ('SIGSEGV', 1, 'backward', None, 4), ('SIGABRT', 0, 'forward', None, 4), ('exit', 1, 'collective', None, 4),
        ('raise', 0, 'forward', None, 4), ('raise', 1, 'backward', None, 4), ('raise', 1, 'update', None, 4), ('raise', 0, 'row', None, 4),
        (KILL, 1, 'update', None, 4), (KILL, 0, 'row', None, 4)]
    yield from singles(*(
        (f'{do}{"" if do[:3] == "all" else f", rank {rank}"} at {k} of step 5', two, hurt,
         dict(rounds=[[fault(lab, rank, k, do, step=5)]], codes=codes, floor=floor)) for do, rank, k, codes, floor in signals))
    def once(*fault_, **args):
        return dict(rounds=[[fault(lab, *fault_, **{k: args.pop(k) for k in ('step', 'nth') if k in args})]], **args)
    write = 'write .step_0000000{}.tmp/rank00000.bin'.format
    yield from singles(
        ("raise in the loader's thread: rank 1", two, hurt, once(1, 'collate', 'raise', nth=11)),
        ('all SIGTERM while 6 is saved', two, hurt, once(0, write(6), 'all SIGTERM', codes=[143, 143], floor=6)),
        ('all SIGTERM while 6 is saved', behind, hurt, once(0, write(6), 'all SIGTERM', codes=[143, 143], floor=6)),
        ('SIGTERM while the last is saved: rank 0', two, hurt, once(0, write(8), TERM, codes=[0, 0], floor=8)),
        ('ENOSPC at the last checkpoint: rank 0', two, hurt, once(0, write(8), 'ENOSPC', codes=[1, 1], floor=6)),
        ('ENOSPC at the last checkpoint: rank 0', behind, hurt, once(0, write(8), 'ENOSPC', codes=[1, 1], floor=6)),
        ('ENOSPC at the one before the last: rank 0', behind, hurt, once(0, write(6), 'ENOSPC', codes=[0, 0], floor=8)),
        ('raise while 6 is saved: rank 1', behind, hurt, once(1, 'open .step_00000006.tmp/rank00001.bin', 'raise', floor=4)),
        ('all SIGTERM in the first step', one, hurt, once(0, 'backward', 'all SIGTERM', step=0, codes=[143], floor=1)),
        ('kill in the first step', one, hurt, once(0, 'backward', step=0, codes=[-9], floor=0)),
        ('raise in step 5', one, hurt, dict(rounds=[[fault(lab, 0, 'backward', 'raise', step=5)]], codes=[1], floor=4)))

    # a rank that stops answering
    yield from singles(*(
        (f'SIGSTOP at {k} of step 5: rank {rank}', layout, hurt, once(rank, k, STOP, step=5, floor=4, minutes=.3, named=rank))
        for layout, rank, k in ((two, 1, 'backward'), (two, 0, 'collective'), (pipe, 2, 'forward'))))

    # damaged checkpoints, disks and folders
    yield from singles(*((f'damaged: {how}', layout, damaged, dict(how=how))
                         for layout in (two, pipe, *([four, *more] if part == 'all' else [])) for how in DAMAGE
                         if part == 'all' or layout == two or 'layer' in how))
    yield from singles(*((title, layout, function, {}) for title, function, layouts in (
        ('both checkpoints damaged', both_damaged, (two, pipe)), ('full disk (tmpfs)', full_disk, (two, one)),
        ('out_dir may not be written to (chattr +i)', forbidden, (two, one))) for layout in layouts))

    # several in a row, also while resuming; another layout after the death
    many = [fault(lab, 1, 'backward', step=3), fault(lab, 0, 'read step_00000002/rank00000.bin'),
            fault(lab, 0, 'write .step_00000004.tmp/manifest.json'), fault(lab, 0, 'collective', step=3),
            fault(lab, 1, 'row', TERM, step=5), fault(lab, 0, 'rename .step_00000006.tmp step_00000006'), fault(lab, 1, 'update', step=6)]
    yield from singles(('seven in a row: kills while resuming, saving, training', two, hurt,
                        dict(rounds=[[f] for f in many], floor=[None, 2, 2, 2, 5, 5, 6])))
    yield from singles(*((f'kill, then another layout: {b}', at(f'{a} float64'), elastic, dict(other=at(f'{b} float64'))) for a, b in (
        ('moe dp2 ep2 zero2', 'moe dp1 zero0'), ('moe dp1 zero0', 'moe dp2 tp2 ep4 zero3'), ('tied dp2 pp2 zero1', 'tied dp4 zero3'),
        ('tied dp2 zero2', 'tied tp2 cp2 zero1'))))

    # the real torchrun
    named, fsync = [r'rank\s*: 1 ', r'exitcode\s*: -9'], 'fsync .step_00000004.tmp/rank00001.bin'
    yield from singles(*((f'torchrun: {title}', two, torchrun, args) for title, args in (
        ('kill rank 1 in backward, --max-restarts=3',
         dict(faults=[fault(lab, 1, 'backward', step=5)], restarts=3, floor=4, says=['exitcode: -9.*local_rank: 1'])),
        ('three kills, --max-restarts=3',
         dict(faults=[fault(lab, 0, 'collective', step=1), fault(lab, 1, fsync), fault(lab, 0, 'update', step=7)], restarts=3, floor=6)),
        ('kill rank 1 in a collective, no restart',
         dict(faults=[fault(lab, 1, 'collective', step=5, nth=3)], first=(1,), floor=4, says=named)),
        ('SIGTERM to torchrun', dict(faults=[fault(lab, 1, 'forward', 'parent SIGTERM', step=5)], first=(1, 143, -15), floor=5)),
        ('SIGINT to all (Ctrl-C)', dict(faults=[fault(lab, 0, 'forward', 'all SIGINT', step=5)], first=(1, 130, -2), floor=5)),
        ('kill torchrun itself', dict(faults=[fault(lab, 0, 'forward', 'parent SIGKILL', step=5)], first=(-9,), floor=4)))))

    for seed in range(20 if part == 'all' else 0):
        def soak(seed=seed):
            r = random.Random(seed)
            layout = r.choice((four, pipe, two, behind, *more))
            logs, faults = reference(lab, layout)[1], []
            for _ in range(5):
                rank = r.randrange(len(logs))
                events = [e for e in indexed(logs[rank]) if e[0] is not None and e[1].split()[0] not in ('collate', 'read')]
                step, what, _, nth = r.choice(events)
                faults.append([fault(lab, rank, what, r.choice((KILL, KILL, 'SIGSEGV', 'exit')), step=step, nth=nth)])
            return [('', hurt, dict(rounds=faults, layout=layout, maybe=True))]
        yield f'five random deaths in a row, seed {seed}', '', soak


FEW = (('kill in', 'backward', 'rank 2', 'pp2'), ('kill at', 'rename', '.step_00000006.tmp', 'rank 0', 'zero2'), ('SIGSTOP at backward',),
       ('a bit of the last layer', 'pp2'), ('EIO', 'write', 'rank 1', 'zero2'))              # a representative part, for test_chaos.py

if __name__ == '__main__':
    part, only, zero, keep = 'short', '', '', ''
    for a in sys.argv[1:]:
        k, _, v = a.removeprefix('--').partition('=')
        if k not in ('part', 'only', 'zero', 'keep'):
            sys.exit(f'chaos.py: unknown {a}: use --part=few|short|all --only=TEXT --zero=0|1|2|3 --keep=DIR (an empty or new folder)')
        globals()[k] = v
    def wanted(text):
        return any(all(w in text for w in ws) for ws in (FEW if part == 'few' else [only.split()]))

    begin, n, survived, skipped, lost, folder = time.time(), 0, 0, 0, [], keep or tempfile.mkdtemp(prefix='chaos-')
    try:
        lab = Lab(folder)
        import torch
        import torch.multiprocessing as mp
        torch.set_num_threads(1)
        import data.loader, model, optim_zero  # noqa: F401, E401: before the forks
        todo, fork = [], mp.get_context('fork')
        results, nxt = fork.SimpleQueue(), fork.Value('i', 0)
        for head, layout, expand in plan(lab, part, zero):
            if wanted(f'{head} {layout}'):
                for title, function, args in expand():
                    args, title = {'layout': layout, **args}, title or head
                    if wanted(f'{title} {args["layout"]}'):
                        reference(lab, args['layout'])    # before the lanes are forked, which share it
                        todo.append((title, function, args))

        def lane():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            while True:
                with nxt.get_lock():
                    i, nxt.value = nxt.value, nxt.value + 1
                if i >= len(todo):
                    return
                try:
                    results.put((i, *todo[i][1](lab, **todo[i][2])))
                except Exception as e:
                    results.put((i, [f'this script failed: {type(e).__name__}: {e} (line {e.__traceback__.tb_lineno})'], ''))

        lanes = [fork.Process(target=lane) for _ in range(LANES)]
        for p in lanes:
            p.start()
        for _ in todo:
            i, bad, told = results.get()
            title, head = todo[i][0], f'{todo[i][0]:62s} {todo[i][2]["layout"]:28s}'
            if bad is None:
                skipped += 1
                print(f'{head} skipped: {told}', flush=True)
                continue
            fault_ = todo[i][1] is not flushed
            n, survived, lost = n + fault_, survived + (fault_ and not bad), lost + [title] * bool(bad)
            print(f'{head} ' + (f'survived: {told}' if not bad else f'LOST: {"; ".join(bad)} ({told})'), flush=True)
        for p in lanes:
            p.join()
    finally:
        os.chdir('/')
        shutil.rmtree(folder, ignore_errors=True) if not keep else None
    ok = not lost and survived == n > 0 and (n >= 60 or bool(only) or part == 'few')
    print(json.dumps(dict(bench='chaos', ok=ok, part=part, zero=zero or 'mixed', injected=n, survived=survived, lost=len(lost),
                          skipped=skipped, seconds=round(time.time() - begin), cpu_seconds=round(sum(os.times()[2:4])))))
    sys.exit(not ok)
