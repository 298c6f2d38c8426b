"""
Reinforcement learning with verified rewards: rollouts by the engine of sample.py, policy gradient, pass@k on held-out and harder problems.

    python train.py config/sft_signs.py                     the warm start: format and skill, no persistence
    python rl.py config/rl_signs.py                         more of what the verifier likes; log, alarms, figures before and after
    python rl.py config/rl_signs.py --max_steps=0           measures the warm start only
    torchrun --standalone --nproc_per_node=4 rl.py config/rl_signs.py --dp=2 --tp=2

A task is data/NAME/task.py: problem(seed, level, split), verify(problem, answer), judge (the same by another way), canary, steps, and, if
there is such a thing, twin (a problem in another order) and credit (what the rollouts of a problem are paid, where that is not what verify
says). An answer is the text behind the last </think> or </out>. The same command, started again, goes on from the last checkpoint in
out_dir; Ctrl-C and SIGTERM save.
"""
import json, math, os, random, signal, sys, time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
from configurator import configure
from data.checkpoint import Checkpoint, biases, checkpoints, keep_checkpoint, newest, save_checkpoint, state, tidy, together
from data.codec import BadInput, Codec
from data.layouts import check_layout
from data.loader import to_device
from data.plot import save_curves
from data.rollouts import alarms, figures, pack, passes, refusals, split
from model import ModelConfig, Muse, build
from optim_zero import Optimizer
from parallel import add_messages, all_reduce, forward_backward, forward_only, make_mesh, schedule, start_world
from sample import Engine, reports, turn

# -------- files
init_from = 'out-sft-signs' # the warm start: a folder of train.py, or one checkpoint in it
out_dir = 'out-rl-signs'   # checkpoints, metrics.jsonl
eval_every = 20            # steps; 0: only before and after
eval_growth = 1.0          # more: from then on so many times the steps, which is even spacing over the logarithm: 10, 20, 40 with 10 and 2
eval_problems = 64         # distinct ones; of the harder levels half as many
last_problems = 256        # the same before and after
eval_samples = 32          # of each
save_every = 50            # steps; 0: only at the end
keep_last = 2              # checkpoints
plot = False               # out_dir/curves.png at the end
# -------- task
task = 'signs'             # data/NAME/task.py
levels = '3'               # trained on; 3+4+5: in proportion to p (1 - p) of their solve rates p
harder = '4'               # only evaluated
more = ''                  # levels that are trained on, too, ...
more_at = 0                # ... from this step on: what was solved is compressed by lam, what is new makes thoughts grow again
# -------- rollouts
prompts = 16               # groups per step that something can be learned from
group = 16                 # rollouts of a problem
rounds = 3                 # of sampling, to replace groups that are solved by all or by none
max_new = 96               # tokens; a rollout without <eot> by then is truncated
budget = False             # max_new was declared, so truncated is wrong; else it is not learned from, but stays in the baseline
tools = True               # False: calls stay without an answer, which measures the floor of a task that needs them
temperature = 1.0          # of sampling; the policy that is learned is the one at 1
sample_rows = 256          # rollouts in lockstep
# -------- reward
lam = 0.0                  # up to so much of a right answer's reward goes for thinking long; 0: thinking is free
lam_from = 0.8             # solve rate from which on
lam_ramp = 50              # steps in which it rises
len_ref = 0                # tokens that cost all of it; 0: max_new
p_lo = 0.5                 # solve rate of the rest of the group below which thinking is free
p_hi = 0.9                 # and above which it costs in full
# -------- loss
loss = 'clip'              # clip | cispo | gspo
clip_low = 0.2             # of the ratio of new and old policy
clip_high = 0.28
tis = 2.0                  # most that the ratio of trainer and sampler may weigh
kl = 0.0                   # weight of the divergence from the warm start
std = False                # advantages divided by their standard deviation in the batch
len_norm = 0               # tokens: the loss is a sum over tokens / (prompts * group * len_norm); 0: max_new
epochs = 1                 # updates per batch of rollouts
rescore = False            # old log-probabilities by the trainer, for one more pass; else by the sampler, which are the same: see `off`
# -------- optimizer
max_steps = 200
lr = 1e-4                  # of AdamW
warmup = 5                 # steps
lr_hold = 0                # steps; from there on lr falls as 1 / step: progress goes with the logarithm of the steps; 0: it stays
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.0
clip = 1.0                 # global gradient norm; 0: off
# -------- guards
min_skill = 0.95           # right steps in the thoughts of the warm start: below it RL loses more than it finds
max_off = 0.05             # nats: mean difference of sampler and trainer at which it stops
# -------- layout, under torchrun: dp * tp * pp * cp processes, as in train.py
dp = 0                     # 0: what is left
tp = 1
sp = False
pp = 1
pp_schedule = '1f1b'       # gpipe | 1f1b | interleaved | zbh1
pp_chunks = 1
cp = 1
cp_mode = 'ring'           # ring | allgather | ulysses
ep = 1
zero = 0
zero_shard = 0
recompute = 0.0
block_size = 128           # positions of a row; several rollouts share it
micro_rows = 16            # rows of a microbatch on one rank
# -------- machine
device = 'auto'            # auto | cpu | cuda
dtype = 'float32'          # bfloat16 | float32 | float64: of the computation, sampling too
seed = 1337
config = configure(globals())

# ---------------------------------------------------------------- the mathematics: arrays in, arrays out

def advantages(r, n, judged, lam, len_ref, p_lo, p_hi):
    """
    r (P, G) verified rewards in [0, 1], or a task's pay; n tokens drawn, judged bool -> shaped rewards R and advantages A, (P, G) float64:
        p_-i = mean_{j != i} r_j                             the solve rate of the others
        w_i  = clip((p_-i - p_lo) / (p_hi - p_lo), 0, 1)
        R_i  = r_i (1 - lam w_i min(1, n_i / len_ref))       only right answers pay: no length makes one wrong answer better than another
        A_i  = R_i - mean_{j != i} R_j                       leave-one-out baseline (Kool et al. 2019)
        A_i  = 0                                             if it was not judged: not learned from, but in the baseline of the others
    Nothing is divided by a group's standard deviation: in a solved group that would blow the smallest penalty up to full strength.
    """
    others = lambda x: (x.sum(1, keepdims=True) - x) / (r.shape[1] - 1)
    R = r * (1 - lam * np.clip((others(r) - p_lo) / (p_hi - p_lo), 0, 1) * np.minimum(1, n / len_ref))
    return R, np.where(judged, R - others(R), 0)


def coefficients(new, old, logq, ref, A, own, total, loss, low, high, tis, kl):
    """
    The policy loss, as the factor c_t of each drawn token's log-probability. (N,) float64: log-probabilities by the trainer now (new) and
    when the rollouts were made (old), by the sampler (logq), by the reference (ref); A: the rollout's advantage; own: its number. total: a
    constant, prompts * group * len_norm.
        rho_t = exp(new_t - old_t),  m_t = min(exp(old_t - logq_t), tis)       truncated importance weight, no gradient (Ionides 2008)
        clip:   L = -1/total sum_t m_t min(rho_t A, clip(rho_t, 1 - low, 1 + high) A)       Schulman et al. 2017; high > low: Yu et al. 2025
        cispo:  L = -1/total sum_t m_t sg[min(rho_t, 1 + high)] A new_t                     drops no token (MiniMax 2025)
        gspo:   as clip, with geometric means over the rollout for rho_t and m_t (Zheng et al. 2025; but here long rollouts weigh more)
        kl:     + kl/total sum_t (new_t - ref_t)^2 / 2      on samples of the policy its gradient is that of KL(policy || ref); k3's is not
    L depends on the parameters through `new` alone: dL = sum_t (dL/dnew_t) dnew_t. So with c_t = -dL/dnew_t held fixed, the weighted
    cross-entropy sum_t c_t (-new_t), which the trainer has anyway, has the gradient of L: a pass without gradient for `new` (none on
    policy: rho = 1), then one with c as weights. A sum / a constant: no microbatch, no rank changes it.  -> c (N,), share of clipped tokens
    """
    log_rho, log_m = new - old, old - logq
    if loss == 'gspo':
        log_rho, log_m = ((np.bincount(own, x) / np.maximum(np.bincount(own), 1))[own] for x in (log_rho, log_m))
    rho, m = np.exp(log_rho), np.minimum(np.exp(log_m), tis)
    out = rho > 1 + high if loss == 'cispo' else np.where(A > 0, rho > 1 + high, rho < 1 - low)
    c = m * A * (np.minimum(rho, 1 + high) if loss == 'cispo' else np.where(out, 0, rho))
    return (c - kl * (new - ref)) / total, float(out.mean())


# ---------------------------------------------------------------- machine

def die(message):
    """One line, once, and exit status 1 on every rank."""
    print(f'rl.py: {message}', file=sys.stderr, flush=True) if int(os.environ.get('RANK', 0)) == 0 else None
    sys.exit(1)

device = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
root = Path(__file__).resolve().parent
for ok, why in ((dtype in ('bfloat16', 'float32', 'float64'), f'dtype={dtype}: use bfloat16, float32 or float64'),
                (device == 'cpu' or device == 'cuda' and torch.cuda.is_available(), f'device={device}: use cpu, or cuda where it is'),
                (loss in ('clip', 'cispo', 'gspo'), f'loss={loss}: use clip, cispo or gspo'), (group > 1, f'group={group}: use 2 or more'),
                (0 <= recompute <= 1, f'recompute={recompute}: use 0 to 1'), (p_lo < p_hi, f'p_lo={p_lo}: use less than {p_hi=}'),
                *((0 <= globals()[k] < 1, f'{k}={globals()[k]}: use 0 to less than 1') for k in ('lam', 'beta1', 'beta2')),
                *((globals()[k] > 0, f'{k}={globals()[k]}: use more than 0') for k in ('temperature', 'lr', 'tis')),
                *((type(v) not in (int, float) or 0 <= v < math.inf, f'{k}={v}: use 0 or more') for k, v in config.items()),
                *((globals()[k] >= 1, f'{k}={globals()[k]}: use 1 or more') for k in 'prompts rounds max_new epochs micro_rows sample_rows '
                  'eval_samples eval_problems last_problems keep_last'.split()),
                (out_dir, 'no out_dir'), ((root / 'data' / task / 'task.py').is_file(), f'task={task}: there is no data/{task}/task.py')):
    die(why) if not ok else None
compute, job = getattr(torch, dtype), import_module(f'data.{task}.task')
if lacks := [k for k in ('LEVELS', 'problem', 'verify', 'judge', 'steps', 'canary') if not hasattr(job, k)]:
    die(f'task={task} is not one for RL: data/{task}/task.py lacks {", ".join(lacks)}')
try:
    trained, beyond, later = ([int(x) for x in s.split('+') if x] for s in (levels, harder, more))
    if not trained or set(trained + beyond + later) - set(job.LEVELS):
        raise ValueError
except ValueError:
    die(f'levels={levels}, harder={harder}, more={more}: write 3, or 3+4+5, out of {job.LEVELS}')
try:
    job.problem(0, trained[0])                         # what a task is made of may not be there
except BadInput as e:
    die(str(e))
rank, world, device = start_world(device)
master, say = rank == 0, print if rank == 0 else (lambda *a, **k: None)

# ---------------------------------------------------------------- model and optimizer

try:
    start = init_from if (Path(init_from) / 'manifest.json').exists() else next(iter(checkpoints(init_from)), None)
    if start is None:
        die(f'init_from={init_from}: no checkpoint there: train the warm start first, with train.py and a config such as sft_signs.py')
    warm = Checkpoint(start)
    codec, cfg = Codec.from_state(warm.meta['codec']), ModelConfig(**warm.meta['model'])
    sizes = {k: getattr(cfg, k) for k in ('n_layer', 'n_head', 'n_kv_head', 'ff', 'n_expert', 'shared_ff', 'flow_width')}
    dp = check_layout(world, dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, v=pp_chunks, sp=sp, cp_mode=cp_mode, T=block_size, rows=world, zero=zero,
                      zero_shard=zero_shard, **sizes)
    schedule(pp_schedule, pp, pp, pp_chunks)           # whether there is such a one
except ValueError as e:
    die(str(e))
mesh = make_mesh(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, sp=sp, cp_mode=cp_mode, n_kv_head=cfg.n_kv_head, tie=cfg.tie, zero_shard=zero_shard)
make = lambda: [m.to(device) for m in build(replace(cfg, z_loss=0.0), mesh, seed, pp_chunks)]      # weights have both signs: no z-loss
models, reference = make(), make() if kl else []
opt = Optimizer(models, mesh, compute, (beta1, beta2), weight_decay=weight_decay, clip=clip, zero=zero)
for m in models:
    m.recompute = recompute
sampler = Muse(cfg).to(device, compute).eval()         # the policy as one whole model on every rank ...
shared = tp == pp == ep == 1 and zero < 3              # ... in the trainer's own memory where that is whole
for p, q in zip(sampler.parameters(), models[0].parameters()) if shared else ():
    p.data = q.data

step, asked, ramp_at, first = 0, 0, -1, {}             # asked: problems so far; ramp_at: when thinking began to cost; first: see alarms
rates = {str(l): 0.5 for l in trained + later}                 # solve rate of each level, a moving average

def load(path):
    """Fill model and optimizer from a checkpoint of this run, on all ranks or none: ValueError."""
    global step, asked, ramp_at, first, rates
    meta = {}
    def fill():
        ck, keys = Checkpoint(path), ('init_from', 'task', 'levels', 'seed')
        if k := next((k for k in keys if 'rl' not in ck.meta or ck.meta['config'][k] != config[k]), ''):
            die(f'out_dir={out_dir} holds checkpoints of another run (its {k} differs): choose another --out_dir')
        ck.fill(state(opt, models, mesh))
        meta.update(ck.meta)
    together(fill, mesh)                               # before opt.loaded, which begins to gather
    opt.loaded(meta['optimizer_steps'])
    step, (asked, ramp_at, first, rates) = meta['step'], [*meta['rl'][:3], rates | meta['rl'][3]]      # this start may have more levels

try:
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    tidy(out_dir) if master else None
    there = checkpoints(out_dir)
    try:
        path = newest(there, load, say, master)
    except ValueError:
        die(f'no checkpoint in {out_dir} can be read: choose another --out_dir')
    if path:
        say(f'going on from {path}')
    else:
        warm.fill(x for x in state(opt, models, mesh) if not x[0].startswith('exp_'))
        opt.loaded(0)
    warm.fill([*((f'param/{n}', p.spec, p) for m in reference for n, p in m.named_parameters()), *biases([*reference, sampler])])
    reference = [m.to(compute) for m in reference]
except (ValueError, OSError) as e:
    die(f'out_dir={out_dir}: {e}' if isinstance(e, OSError) else str(e))
say(f'{task}, levels {levels}: {prompts} groups of {group} rollouts per step; {dtype} on {device}, {world} process(es); from {start}')

# ---------------------------------------------------------------- rollouts

def sync():
    """
    The trainer's weights to the sampler. Where a rank holds slices only, by way of a checkpoint in out_dir: one code for every layout,
    simple, and slow for a model that is not small.
    """
    for u in opt.units if shared else ():
        u.ready()                                      # ZeRO-1 and 2: the last step's gather
    if not shared:
        save_checkpoint(out_dir, 'sampler', (x for x in state(opt, models, mesh, saving=True) if x[0].startswith('param/')), {}, mesh)
        Checkpoint(Path(out_dir) / 'sampler').fill((f'param/{n}', p.spec, p) for n, p in sampler.named_parameters())

def rollout(encoded, ctxs, number):
    """
    Encoded prompts, and for each what its tools may use (or None) -> for each dict(ids: what came after it; for each of them logp: its
    log-probability under the policy, logq: under what it was drawn from, w: 1 drawn, 0 inserted; done: it ended by <eot>; doc: prompt
    and all of it). The one place that knows the engine. Each rank takes its share; random numbers depend on (seed, number, place in the
    list) alone; every rank gets all of them. The same prompt again is read once.
    """
    sync()
    engine, n = Engine(sampler, codec, rows=sample_rows), len(encoded)
    rows = {i: engine.add(encoded[i], index=i, seed=seed * 1009 + number, max_new=max_new, temperature=temperature,
                          ctx=None if ctxs[i] is None else dict(ctxs[i], room=block_size))
            for i in range(rank * n // world, (rank + 1) * n // world)}
    engine.run()
    mine = {i: dict(ids=r.ids, logp=np.array(r.logp), logq=np.array(r.logq), w=np.array(r.w, np.uint8), done=r.ids[-1] == codec.sp['eot'],
                    doc=r.result['doc']) for i, r in rows.items()}
    said = [mine]
    if world > 1:
        said = [None] * world
        dist.all_gather_object(said, mine, group=mesh.host)
    return [o for _, o in sorted((io for part in said for io in part.items()), key=lambda io: io[0])]

def ask(problems, k, number):
    """
    k rollouts of each problem, judged -> lists of k dicts: those of rollout() with problem, doc and first (see pack), thought, answer,
    n: tokens drawn, r and second: what both verifiers say; what did not end has no answer.
    """
    starts = [[codec.encode([*turn(codec, p['question'], p.get('images', ())), *reports(codec, p.get('reports', ())),
                             ('ids', [codec.sp[x] for x in role], 0)]) for role in p.get('roles', [()])] for p in problems]
    encoded = [s[j % len(s)] for s in starts for j in range(k)]                # rollouts have the roles in turn
    if (n := max(len(e['ids']) for e in encoded) + max_new) > block_size:
        die(f'block_size={block_size} is less than a prompt and max_new={max_new}: use --block_size={-(-n // 64) * 64} or less --max_new')
    rolls = rollout(encoded, [p.get('ctx') if tools else None for p in problems for _ in range(k)], number)
    for i, (o, e) in enumerate(zip(rolls, encoded)):
        p = problems[i // k]
        thought, answer = split(codec, o['ids'])
        r, second = (float(f(p, answer)) if o['done'] else 0.0 for f in (job.verify, job.judge))
        o.update(problem=p, first=len(e['ids']), thought=thought, answer=answer, n=int(o['w'].sum()), r=r, second=second)
    return [rolls[i:i + k] for i in range(0, len(rolls), k)]

def evaluate(n):
    """
    n held-out problems of `levels` ('held') and n / 2 of `harder` ones -> their figures, with pass@k by the second verifier; always
    the same problems and random numbers. canary: rewards for problems without a solution.
    """
    out = {}
    for number, part, ls, n in ((0, 'held', trained, n), (1, 'harder', beyond, -(-n // 2))):
        if not ls:
            continue
        ps = (job.problem(f'eval/{i}', ls[i % len(ls)], 'held') for i in range(8 * n))
        ps = {str([v for k, v in p.items() if k not in ('images', 'ctx', 'reports')]): p for p in ps}             # distinct
        groups = ask(list(ps.values())[:n], eval_samples, number)
        o = groups[0][0]
        sample = f"{o['problem']['question']} {codec.untext(o['ids'])} {o['r']:.0f}"
        out[part] = f = dict(figures(groups, job.steps), **passes(groups), problems=len(groups), sample=sample)
        solved = ' '.join(f'pass@{k[4:]} {x:.3f}' for k, x in f.items() if k[:4] == 'pass')
        say(f"step {step:04d} {part:>6s} | {solved} | len {f['length']:.1f} (right {f['length_right']:.1f}, wrong "
            f"{f['length_wrong']:.1f}) | skill {f['skill']:.1%} | truncated {f['truncated']:.1%} | "
            f'{len(groups)} problems | {sample}', flush=True)
    fakes = ask([job.canary(i, trained[i % len(trained)]) for i in range(8)], 8, 2)
    out['held']['canary'] = sum(max(o['r'], o['second']) > 0 for g in fakes for o in g)
    record(step=step, val=out)
    return out['held']

# ---------------------------------------------------------------- one update

def spread(micros, losses, n):
    """Losses of the microbatches ([] on stages that make none) -> log-probabilities (n,) float64 of all tokens, on every rank."""
    x = torch.zeros(n, dtype=torch.float64, device=device)
    for (_, where), o in zip(micros, losses):
        if o:
            at = torch.from_numpy(where).to(device)
            x[at[at >= 0]] = -o['txt_each'].double()[at >= 0]
    return all_reduce(all_reduce(x, mesh.pp), mesh.dpcp).cpu().numpy()

def scores(of, micros, n):
    """The same under the models `of`, without gradient."""
    return spread(micros, [forward_only(of, b, mesh, (*b['ids'].shape, cfg.n_embd), compute, device) for b, _ in micros], n)

def learn(rolls, A):
    """Rollouts and their advantages -> `epochs` updates, and figures of them."""
    packed = pack(rolls, block_size, micro_rows, mesh, codec, cfg.past, pp if pp_chunks > 1 else 1)
    micros = [(to_device(b, device, compute, codec, mesh, cfg), at) for b, at in packed]
    logp, logq, w = (np.concatenate([o[k] for o in rolls]) for k in ('logp', 'logq', 'w'))
    own = np.repeat(np.arange(len(rolls)), [len(o['w']) for o in rolls])
    drawn, N, total, out = w > 0, len(own), prompts * group * (len_norm or max_new), {}
    ref, n = scores(reference, micros, N) if kl else logp, len(micros)
    todo = add_messages(schedule(pp_schedule, pp, n, pp_chunks), n, pp_chunks)[mesh.pp.rank] if pp > 1 else None
    shape = (micro_rows, block_size // cp // (tp if mesh.sp else 1), cfg.n_embd)
    for e in range(epochs):
        new = scores(models, micros, N) if rescore or e else logp
        old, c = new if e == 0 else old, np.zeros(N + 1)                        # the last one for where = -1
        tokens = (x[drawn] for x in (new, old, logq, ref, A[own], own))
        c[:-1][drawn], out['clipped'] = coefficients(*tokens, total, loss, clip_low, clip_high, tis, kl)
        for b, where in micros:
            b['txt_w'] = torch.from_numpy(c[where]).to(b['txt_w'])
        opt.start(n)
        losses = forward_backward(models, [b for b, _ in micros], mesh, todo, shape, compute, device)
        seen = spread(micros, losses, N)
        out['gnorm'] = opt.step(lr * min(1.0, (step + 1) / (warmup + 1), lr_hold / (step + 1) if lr_hold else 1.0))
        if e == 0:                                     # what the trainer thought before the update, for nothing
            out.update(off=float(np.abs(seen - logp)[drawn].mean()), kl=float((seen - ref)[drawn].mean()) if kl else 0.0,
                       learned=int(np.count_nonzero(c)))
    return out

# ---------------------------------------------------------------- the loop

def record(**kw):
    if master:
        with open(Path(out_dir) / 'metrics.jsonl', 'a') as f:
            f.write(json.dumps(kw) + '\n')

def save():
    meta = dict(step=step, optimizer_steps=opt.t, model=asdict(cfg), codec=codec.state(), codec_fingerprint=codec.fingerprint(),
                config=config, rl=[asked, ramp_at, first, rates])
    if not keep_checkpoint(out_dir, '', state(opt, models, mesh, saving=True), meta, mesh, keep_last, say)():
        sys.exit(1)

stopped = []
for sig in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sig, lambda s, f: stopped.append(s) if not stopped else os._exit(128 + s))     # a second one does not wait

due, at = {max_steps}, eval_every                      # steps that are followed by an evaluation
while 0 < at < max_steps:
    due.add(round(at))
    at = at * eval_growth if eval_growth > 1 else at + eval_every

began = time.time()
if step == 0:
    f = evaluate(last_problems)
    for why in refusals(f, config) if max_steps else ():
        die(why)
    if f.get('pass16', 1) < min(2 * f['pass1'], (1 + f['pass1']) / 2):
        say(f"pass@16 {f['pass16']:.2f} is not much more than pass@1 {f['pass1']:.2f}: RL has little to find at these levels")
while step < max_steps:
    if all_reduce(torch.tensor([float(bool(stopped))], device=device), mesh.world).item():      # a signal reached one rank: all stop
        stopped = stopped or [signal.SIGTERM]
        break
    t0 = time.time()
    lam_now = lam * min(1.0, (step + 1 - ramp_at) / max(lam_ramp, 1)) if ramp_at >= 0 else 0.0
    groups, kept, A = [], [], []
    for k in range(rounds):                            # groups that nothing can be learned from are dropped, and others asked for
        n = prompts if k == 0 else min(prompts, math.ceil((prompts - len(kept)) / max(len(kept) / len(groups), 0.25)))
        now = trained + (later if step >= more_at else [])
        odds = [rates[str(l)] * (1 - rates[str(l)]) + 0.02 for l in now]
        ls = [random.Random(f'{seed}/{i}').choices(now, odds)[0] for i in range(asked, asked + n)]
        new = ask([job.problem(f'{seed}/{i}', l, 'train') for i, l in enumerate(ls, asked)], group, 8 + step * rounds + k)
        groups, asked = groups + new, asked + n
        if hasattr(job, 'credit'):                     # what rollouts of a group are paid depends on the others
            job.credit(new, lambda ps, n: ask(ps, n, (1 << 32) + step * rounds + k))
        r, length, done = (np.array([[o.get(x, o['r']) for o in g] for g in new], np.float64) for x in ('pay', 'n', 'done'))
        for g, a in zip(new, advantages(r, length, (done > 0) | budget, lam_now, len_ref or max_new, p_lo, p_hi)[1]):
            if np.abs(a).max() > 1e-9 and len(kept) < prompts:
                kept.append(g), A.append(a)
        if len(kept) == prompts:
            break
    ordered = step + 1 in due and hasattr(job, 'twin')             # the same in another order, before they are learned from
    twins = ask([job.twin(g[0]['problem']) for g in groups], group, 3) if ordered else groups
    t1 = time.time()
    for l, g in ((str(g[0]['problem']['level']), g) for g in groups):
        rates[l] += 0.02 * (float(np.mean([o['r'] for o in g])) - rates[l])
    scale = np.std(A) if std and A else 1.0
    both = [(o, x / scale) for g, a in zip(kept, A) for o, x in zip(g, a) if x]
    out = learn([o for o, _ in both], np.array([x for _, x in both])) if both else dict(clipped=0.0, gnorm=0.0, off=0.0, kl=0.0, learned=0)
    dropped = float(np.mean([np.ptp([o.get('pay', o['r']) for o in g]) == 0 for g in groups]))
    f = dict(figures(groups, job.steps), **out, dropped=dropped, groups=len(kept), lam=lam_now)
    first, step, t2 = first or {k: f[k] for k in ('entropy', 'truncated')}, step + 1, time.time()
    if lam and ramp_at < 0 and np.mean([rates[str(l)] for l in now]) >= lam_from:
        ramp_at = step
        say(f'step {step}: the solve rate has reached {lam_from}: thinking costs from here on, up to lam={lam} in {lam_ramp} steps')
    say(f"step {step:04d}/{max_steps:04d} | reward {f['pass1']:.3f} | len {f['length']:.1f} | entropy {f['entropy']:.3f} | "
        f"skill {f['skill']:.1%} | dropped {dropped:.0%} | clipped {f['clipped']:.1%} | kl {f['kl']:.4f} | off {f['off']:.0e} | "
        f"gnorm {f['gnorm']:.3f} | lam {lam_now:.2f} | {1000 * (t1 - t0):.0f} + {1000 * (t2 - t1):.0f} ms", flush=True)
    if f['off'] > max_off:
        die(f"step {step}: sampler and trainer differ by {f['off']:.3f} nats per token, more than max_off={max_off}: use --dtype=float32")
    wrong = alarms(f, first)
    if step in due:
        val, f['twin'] = evaluate(last_problems if step == max_steps else eval_problems), f['pass1'] - figures(twins, job.steps)['pass1']
        gap = float(np.mean([rates[str(l)] for l in trained])) - val['pass1'] if asked > 200 else 0.0      # rates begin at a half
        wrong += alarms(dict(val, gap=gap, twin=f['twin']), first)
    strange = [(o['problem']['question'], o['answer'], o['r'], o['second']) for g in groups for o in g if o['r'] != o['second']]
    record(step=step, **f, rates=rates, sample_ms=1000 * (t1 - t0), train_ms=1000 * (t2 - t1), alarms=wrong, strange=strange[:9],
           tokens=sum(o['n'] for g in groups for o in g))
    for x in dict.fromkeys(wrong):
        say(f'step {step}: ALARM: {x}')
    if (save_every and step % save_every == 0) or step == max_steps:
        save()
if stopped and step < max_steps:
    save()
    say(f'stopped at step {step}, saved: the same command goes on')
    sys.exit(128 + stopped[0])
save_curves(out_dir) if plot and master else None
say(f'{step} steps, {(time.time() - began) / 60:.1f} minutes; metrics in {out_dir}/metrics.jsonl')
