"""
Pre-training and supervised fine-tuning, on one process or many. The data set is made when it is missing.

    python train.py                                              the embedded default: scenes, about 7 minutes on 2 cores
    python train.py config/train_shakespeare_char.py --lr=1e-3   a config file, then overrides
    python train.py --max_steps=100 --compile=true               --help lists every key

The same command, started again, goes on from the last checkpoint in out_dir. Ctrl-C and SIGTERM save at the next step.
"""
import json, math, os, resource, signal, sys, time
from collections import Counter, deque
from dataclasses import asdict, fields
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
import parallel
from configurator import configure
from data.checkpoint import Checkpoint, checkpoints, keep_checkpoint, newest, put_aside, state, tidy, together
from data.graph import check_graph, graphed, graphed_update
from data.layouts import check_fp8, check_layout, fitting
from data.llama import Llama
from data.loader import remarks, to_device, train_batches
from data.plan import count_flops, count_params, product_peak
from data.shards import codec_and_folders, mixture, open_shards, unigram
from data.validate import evaluate, told
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import add_messages, all_reduce, forward_backward, keep_pages, make_mesh, schedule, start_world

# -------- files
out_dir = 'out-scenes'     # checkpoints, metrics.jsonl
init_from = 'auto'         # auto: go on from out_dir; scratch; a checkpoint: its weights, a new run; hf:FOLDER: a Llama (data/llama.py)
log_every = 20             # steps
eval_every = 0             # steps; 0: only at the end
eval_docs = 400            # documents of each validation split; 0: all
save_every = 500           # steps; 0: only at the end
save_background = False    # a copy is written by a thread while training goes on
keep_last = 2              # checkpoints; the best by validation loss is kept apart, in out_dir/best
skills = 200               # cases per skill in the table at the end; 0: no table
wandb_project = ''         # '': no wandb.  Offline: WANDB_MODE=offline, as wandb has it
# -------- data
dataset = 'scenes'         # or a mixture by rows, NAME:WEIGHT+NAME:WEIGHT
val_split = 'val'          # evaluated on; dev, where a data set has one, to choose settings and keep val for scoring
input = ''                 # a text file for dataset shakespeare
fsdd = ''                  # spoken digits for dataset speech: a folder of the Free Spoken Digit Dataset, or an .npz
tokenizer = 'bpe:128'      # bytes | bpe:N | gpt2 | cl100k_base | o200k_base
n_loc = 64                 # coordinate bins
block_size = 192           # positions of a row
tokens_per_step = 3840     # global: all ranks, all microbatches
micro_rows = 20            # rows of a microbatch on one rank; fewer if there are fewer
# -------- model
depth = 0                  # one knob for a ladder of sizes: layers, width, heads, rates and steps are what it says (see below); 0: off
horizon = 15.0             # with depth: tokens per parameter of the blocks
vocab_size = 0             # rows of embedding and head; 0: as many as the tokenizer has ids
n_layer = 4
n_head = 4
n_kv_head = 0              # 0: as many as n_head
n_embd = 192
ff = 0                     # hidden units; 0: 4 n_embd (relu2), 8/3 n_embd (swiglu)
act = 'relu2'              # relu2 | swiglu
qk_norm = True
rope_base = 10000.0
rope_2d = True             # with images: a third of the rotary pairs turns by row, a third by column
norm_eps = 1e-6            # added to the mean square in RMSNorm
tie = False                # output head = embedding
zero_init = True           # output projections start at 0
softcap = 15.0             # logits = c tanh(logits / c); 0: off
z_loss = 1e-4
image = True               # patches in and out
audio = True               # frames in and out
flow_width = 192           # of the heads of patches and frames
flow_depth = 3
bins = 32                  # each of their numbers is one of so many, by a softmax; 0: flow matching
flow_draws = 4             # of that: noise draws per patch or frame and step
audio_velocity = True      # of that: the head of frames says the velocity, that of patches the patch
n_expert = 0               # experts of a MoE layer; 0: dense
top_k = 2
expert_ff = 0              # hidden units of an expert; 0: ff / top_k
shared_ff = 0              # and of the shared expert
dense_layers = 1           # first layers without experts
smear = 0                  # so many ids before each are embedded with it, by tables of their own
value_embed = False        # each layer adds a row of a table, looked up by the id, to its values
token_shift = True         # dense MLPs read the position before, too, by a weight for each channel
ngram = 0                  # memory tables, looked up by the last 2, 3, .. ngram ids and added to the embedding; 0: none
ngram_rows = 131072        # of each
moe_balance = 1e-3         # step of the balancing bias
image_weight = 0.2         # of the image loss beside text: drawing is learned early, answers late
audio_weight = 0.5
# -------- optimizer
max_steps = 1800
lr = 3e-3                  # peak learning rate of AdamW
muon = True                # matrices inside the blocks by Muon
muon_lr = 0.02             # their peak learning rate
muon_steps = 5             # of the iteration that orthogonalises, 3 to 5; 3 do for small matrices
head_lr = 1.0              # factors on lr by kind of parameter
embed_lr = 3.0
scalar_lr = 1.0
ngram_lr = 1.0             # peak learning rate of the memory tables: the length of a row's first step
warmup = 50                # steps
decay = 'linear'           # linear | cosine, to lr_end
decay_from = 0.4           # linear: the fraction of max_steps at which it begins
lr_end = 0.0               # fraction of the peak
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1         # on matrices
clip = 1.0                 # global gradient norm; 0: off
max_bad_steps = 5          # non-finite steps in a row before it gives up
spike_z = 6.0              # a loss so many standard deviations above the mean of the last 100 is reported; 0: off
spike_rollback = False     # then go back to the last checkpoint, and past the batches since (non-finite steps in a row too)
# -------- layout, under torchrun: dp * tp * pp * cp processes
dp = 0                     # data parallel; 0: what is left
tp = 1                     # tensor parallel
sp = False                 # sequence parallel: T-slices over tp between the linears
pp = 1                     # pipeline stages
pp_schedule = '1f1b'       # gpipe | 1f1b | interleaved | zbh1
pp_chunks = 1              # model chunks per rank, for interleaved
cp = 1                     # context parallel
cp_mode = 'ring'           # ring | allgather | ulysses
ep = 1                     # expert parallel, inside dp * cp * tp
zero = 0                   # 1: optimizer state sharded over dp * cp (experts: over their copies), 2: gradients too, 3: parameters too
zero_shard = 0             # shard over so many neighbouring ranks only (a node), copies across; 0: over all
recompute = 0.0            # share of the blocks that keep only their input for the backward pass
# -------- machine
device = 'auto'            # auto | cpu | cuda
dtype = 'auto'             # auto | bfloat16 | float32 | float64: of the computation; masters are float32
fp8 = ''                   # tensorwise | rowwise: the blocks' linears in 8 bits (experts, embeddings and heads are not)
compile = False            # torch.compile each block
workers = 4                # processes that make batches for a GPU; for a CPU, and with 0, a thread does
graph = False              # one GPU: a step as CUDA graphs, for models so small that launching kernels takes longer than running them
seed = 1337
config = configure(globals())

# width and heads grow with the layers; what AdamW moves slows down with the root of the width, Muon's rate holds for all widths
if depth > 0:
    n_layer, n_head, n_kv_head, n_embd, ff = depth, depth, 0, 16 * depth, 0
    lr *= (4 / depth) ** 0.5
    max_steps = max(1, int(horizon * 12 * n_layer * n_embd ** 2) // tokens_per_step)
    warmup = max(1, max_steps // 20)
    config.update({k: globals()[k] for k in ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'ff', 'lr', 'max_steps', 'warmup')})

# ---------------------------------------------------------------- machine

def die(message):
    """One line, once, and exit status 1 on every rank."""
    print(f'train.py: {message}', file=sys.stderr, flush=True) if int(os.environ.get('RANK', 0)) == 0 else None
    sys.exit(1)

device = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
if dtype == 'auto':        # bfloat16 where the machine multiplies it fast; on a CPU without AMX or AVX512-BF16 it is slower than float32
    dtype = 'bfloat16' if device == 'cuda' or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else 'float32'
for ok, why in ((dtype in ('bfloat16', 'float32', 'float64'), f'dtype={dtype}: use auto, bfloat16, float32 or float64'),
                (decay in ('linear', 'cosine'), f'decay={decay}: use linear or cosine'), (out_dir, 'out_dir=: name a folder'),
                (device == 'cpu' or device == 'cuda' and torch.cuda.is_available(), f'device={device}: use cpu, or cuda where it is'),
                (fp8 in ('', 'tensorwise', 'rowwise'), f'fp8={fp8}: use tensorwise or rowwise'), (lr > 0, f'lr={lr}: use more than 0'),
                *((0 <= globals()[k] <= 1, f'{k}={globals()[k]}: use 0 to 1') for k in ('decay_from', 'recompute')),
                *((0 <= globals()[k] < 1, f'{k}={globals()[k]}: use 0 to less than 1') for k in ('beta1', 'beta2')),
                *((type(v) not in (int, float) or 0 <= v < math.inf, f'{k}={v}: use 0 or more') for k, v in config.items()),
                (block_size > 1, f'block_size={block_size}: use 2 or more'), (2 < muon_steps < 6, f'muon_steps={muon_steps}: use 3 to 5'),
                *((globals()[k] >= 1, f'{k}={globals()[k]}: use 1 or more')
                  for k in ('tokens_per_step', 'micro_rows', 'log_every', 'keep_last', 'max_bad_steps', 'flow_draws')),
                (tokenizer in ('bytes', 'gpt2', 'cl100k_base', 'o200k_base') or tokenizer.startswith('bpe:') and tokenizer[4:].isdecimal(),
                 f'tokenizer={tokenizer!r} is none of: bytes, bpe:N, gpt2, cl100k_base or o200k_base')):
    die(why) if not ok else None
keep_pages()
compute = getattr(torch, dtype)
rank, world, device = start_world(device)
master, say = rank == 0, print if rank == 0 else (lambda *a, **k: None)

# ---------------------------------------------------------------- data

if not master:                                     # rank 0 makes what is missing, the others come when it is there
    try:
        dist.barrier()
    except RuntimeError:                           # it could not, and said why
        sys.exit(1)
try:
    names, weights = mixture(dataset)
    given = dict(shakespeare=(input, 'input'), speech=(fsdd, 'fsdd'))               # by the user, and prepare.py's flag for it
    codec, folders = codec_and_folders(names, tokenizer, n_loc, given, make=master)
    train_sets = [open_shards(folders[n], 'train', codec) for n in names]
    val_sets = {n: open_shards(folders[n], val_split, codec) for n in names}
    if master and world > 1:
        dist.barrier()
    remarks(names, train_sets, block_size, image, audio, say)
except (ValueError, OSError) as e:
    die(str(e))
except KeyboardInterrupt:
    sys.exit('train.py: stopped while data was being prepared: the same command begins that anew')

# ---------------------------------------------------------------- model and optimizer

rows = tokens_per_step // block_size
if tokens_per_step % block_size or not rows:
    die(f'tokens_per_step={tokens_per_step} must be a multiple of block_size={block_size}')
try:
    if 0 < vocab_size < codec.n_vocab:
        raise ValueError(f'vocab_size={vocab_size}: tokenizer={tokenizer} has {codec.n_vocab} ids: use as many or more, or 0')
    cfg = ModelConfig(**{**{f.name: globals()[f.name] for f in fields(ModelConfig)}, 'vocab_size': vocab_size or codec.n_vocab})
    if init_from.startswith('hf:'):
        llama = Llama(init_from[3:], cfg.vocab_size)
        if wrong := {k: v for k, v in llama.keys.items() if getattr(cfg, k) != v and (k != 'rope_2d' or image)}:
            raise ValueError(f'init_from={init_from}: these weights need ' + ' '.join(f'--{k}={str(v).lower()}' for k, v in wrong.items()))
    dp = check_layout(world, dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, v=pp_chunks, sp=sp, cp_mode=cp_mode, n_layer=n_layer, n_head=n_head,
                      n_kv_head=cfg.n_kv_head, ff=cfg.ff, n_expert=n_expert, shared_ff=cfg.shared_ff, flow_width=flow_width, T=block_size,
                      rows=rows, zero=zero, zero_shard=zero_shard)
    micro = min(micro_rows, rows // dp)
    if rows // dp % micro:
        die(f'micro_rows={micro_rows} does not divide the {rows // dp} rows per rank: use {fitting(rows // dp, micro)}')
    check_graph(graph, cfg, device, dtype, world)
    check_fp8(fp8, cfg, tp, micro * block_size // cp)
    n_micro = rows // dp // micro
    todo = add_messages(schedule(pp_schedule, pp, n_micro, pp_chunks), n_micro, pp_chunks) if pp > 1 else None
except ValueError as e:
    die(str(e))
mesh = make_mesh(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, sp=sp, cp_mode=cp_mode, n_kv_head=cfg.n_kv_head, tie=tie, zero_shard=zero_shard)
mesh.fp8, mesh.compiled, todo = fp8, compile, todo[mesh.pp.rank] if todo else None
models = [m.to(device) for m in build(cfg, mesh, seed, pp_chunks)]
kinds = dict(embed=embed_lr, head=head_lr, scalar=scalar_lr, table=ngram_lr / lr)
opt = Optimizer(models, mesh, compute, (beta1, beta2), 1e-8, weight_decay, kinds, muon, muon_lr / lr, muon_steps, clip=clip, zero=zero)
for m in models:
    m.recompute = recompute
params = count_params(cfg)
say(f"model: {params['total']:,} parameters ({params['active']:,} active), {dtype} on {device}; "
    f"data: {' + '.join(names)}, {rows} rows of {block_size} per step, {mesh.world.size} process(es)")

# ---------------------------------------------------------------- resume

try:
    Path(out_dir).mkdir(parents=True, exist_ok=True)
except OSError as e:
    die(f'out_dir={out_dir}: {e}')
step, best, bad, origin, wandb_id = 0, math.inf, 0, init_from, None
shift, recent, returns = 0, deque(maxlen=100), Counter()         # batches that rollbacks have skipped; last losses; rollbacks to each path
wanted = {'tokenizer': codec.name, 'n_loc': n_loc, **asdict(cfg), 'merges': codec.fingerprint(), 'muon': muon}
plain = {f.name: f.default for f in fields(ModelConfig)}         # what a checkpoint from before a key was there has of it

def load(path, weights_only=False):
    """Fill model (and optimizer) from a checkpoint folder, or hf:, on all ranks or none: ValueError or LookupError."""
    global step, best, bad, shift, origin, wandb_id
    meta = {}
    together(lambda: meta.update(fill(path, weights_only)), mesh)  # before opt.loaded, which begins to gather: all ranks or none
    opt.loaded(0 if weights_only else meta['optimizer_steps'])
    if not weights_only:
        step, best, bad, shift = (meta.get(k, 0) for k in ('step', 'best', 'bad', 'shift'))
        origin, wandb_id = meta.get('origin', 'scratch'), meta.get('wandb')
        recent.clear(), recent.extend(meta.get('recent', ()))

def fill(path, weights_only):
    """The part of load() that a rank does alone, -> meta; what it can read may differ: a stage reads only its own layers."""
    if path == init_from and path.startswith('hf:'):
        return Checkpoint.fill(llama, llama.tensors(state(opt, models, mesh))) or {}
    ck = Checkpoint(path)
    there = {**plain, **ck.meta['codec'], **ck.meta['model'], 'merges': ck.meta['codec_fingerprint'], 'muon': ck.meta['config'].get('muon')}
    for k in wanted:
        if there.get(k) != wanted[k] and not (weights_only and k == 'muon'):
            raise LookupError(f'{path} was trained with {k}={str(there.get(k)).lower()}, this run has {k}={str(wanted[k]).lower()}: '
                              'choose another --out_dir, or give the key as it was')
    if not weights_only and init_from not in ('auto', 'scratch', ck.meta.get('origin', 'scratch')):
        raise LookupError(f'{out_dir} holds checkpoints of another run: choose another --out_dir for --init_from={init_from}')
    ck.fill(x for x in state(opt, models, mesh) if not weights_only or not x[0].startswith('exp_'))
    return ck.meta

if master:
    tidy(out_dir)
try:
    there = [] if init_from == 'scratch' else checkpoints(out_dir)
    try:
        path = newest(there, load, say, master)
    except ValueError:
        raise LookupError(f'no checkpoint in {out_dir} can be read: choose another --out_dir, or start over with --init_from=scratch')
    if path:
        say(f'going on from {path}')
    elif init_from not in ('auto', 'scratch'):
        load(init_from, weights_only=True)
        say(f'weights from {init_from}')
    if init_from == 'scratch' and master and (aside := put_aside(out_dir)):
        say(f'the checkpoints of an earlier run were moved to {aside}')
except (LookupError, ValueError) as e:
    die(str(e))
if compile:
    parallel._run, parallel._fused_loss = torch.compiler.disable(parallel._run), torch.compile(parallel._fused_loss)
    for m in (b for model in models for b in model.blocks.values()):
        m.compile(dynamic=False)
if graph:
    run_graph, opt.update = graphed(models[0]), graphed_update(opt)

# ---------------------------------------------------------------- the loop

metrics, run = open(Path(out_dir) / 'metrics.jsonl', 'a', buffering=1) if master else None, None
if wandb_project and master:
    try:
        import wandb
        run = wandb.init(project=wandb_project, name=out_dir, config=config, id=wandb_id, resume='allow')
    except Exception as e:                         # not installed, no login, no network
        die(f'wandb_project={wandb_project}: {e}')

def record(**kw):
    if master:
        try:
            metrics.write(json.dumps(kw) + '\n')
        except OSError as e:
            say(f'step {step}: no line written to {out_dir}/metrics.jsonl: {e}')
        if run:
            run.log({k: v for k, v in kw.items() if k != 'step'}, step=kw['step'])

finish_saving = lambda: True                       # waits for the last checkpoint -> whether it is on disk

def save(name=''):
    """A checkpoint of the present step."""
    global finish_saving
    finish_saving()
    meta = dict(step=step, best=best, bad=bad, shift=shift, recent=list(recent), origin=origin, wandb=run and run.id, optimizer_steps=opt.t,
                model=asdict(cfg), codec=codec.state(), codec_fingerprint=codec.fingerprint(), config=config)
    finish_saving = keep_checkpoint(out_dir, name, state(opt, models, mesh, saving=True), meta, mesh, keep_last, say, save_background)

stopped = []
for sig in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sig, lambda s, f: stopped.append(s) if not stopped else os._exit(128 + s))     # a second one does not wait

def balance(move):
    """Move the selection bias of every MoE layer towards an equal load (one sign step per optimizer step), from counts over all ranks."""
    for m in (m for model in models for m in model.modules() if hasattr(m, 'load')):
        load = all_reduce(m.load.sum(0), mesh.stage)
        m.bias += moe_balance * move * torch.sign(load.mean() - load)          # a skipped step moves nothing
        m.load.zero_()

def lr_at(s):
    """Fraction of the peak learning rate at step s."""
    if s < warmup:
        return (s + 1) / (warmup + 1)
    x = (s - warmup) / max(1, max_steps - warmup)
    if decay == 'cosine':
        return lr_end + (1 - lr_end) * 0.5 * (1 + math.cos(math.pi * min(1, x)))
    return lr_end + (1 - lr_end) * min(1.0, (1 - x) / max(1 - decay_from, 1e-9))

draws, shape = 0 if cfg.bins else flow_draws, (micro, block_size // cp // (tp if mesh.sp else 1), n_embd)     # shape: from stage to stage
size = dict(micro=micro, T=block_size, draws=draws, dp=mesh.dp.size, dp_rank=mesh.dp.rank, cp=mesh.cp.size, cp_rank=mesh.cp.rank,
            past=cfg.past)
batches = lambda: train_batches(train_sets, weights, codec, seed=seed, step=step + shift, rows=rows, workers=workers * (device != 'cpu'),
                                **size)
validate = lambda blind=False: evaluate(models, mesh, val_sets, codec, compute, device, blind, limit=eval_docs, **size)

def roll_back(why):
    """To the newest checkpoint that can be read, past the batches since; whether it did: three times at most while it is the newest."""
    global loader, bad, shift
    finish_saving()
    there, at = checkpoints(out_dir) if spike_rollback else [], step + shift + 1
    if not there or returns[there[0].name] == 3:
        return False
    returns[there[0].name] += 1
    try:
        path = newest(there, load, say, master)
    except (ValueError, LookupError) as e:
        die(f'{why}: {e}; there is no checkpoint before it to go back to')
    bad, shift = 0, at - step
    say(f'{why}: back to step {step}, from {path}, and past the batches since')
    loader.close()
    loader = batches()
    return True

peak, loader = product_peak(compute, device), batches()
update = all_reduce(torch.tensor(opt.flops(), dtype=torch.float64, device=device), mesh.pp).item()    # of the optimizer, all stages
spent_flops, spent_cpu, clock = 0.0, 0.0, time.process_time()         # since this start: of the world; of this process, without evaluation
began, last_log, flops, done = time.time(), time.time(), 0, 0          # the last two: since the last line of the log; done: steps
while step < max_steps:
    s, micros, counts = next(loader)
    assert s == step + shift
    # over the whole world, since a stop concerns all; tp * pp * cp ranks count the same rows; one process does not wait for its device
    counts = torch.tensor([*counts, float(bool(stopped))], dtype=torch.float64, device=device if world > 1 else 'cpu')
    counts = [c / (tp * pp * cp) for c in all_reduce(counts, mesh.world).tolist()]
    if counts[4]:                                  # a signal reached one of the ranks: all stop
        stopped = stopped or [signal.SIGTERM]
        break
    micros, before = [to_device(b, device, compute, codec, mesh, cfg) for b in micros], flops
    for b in micros:
        for k, c, w in zip(('txt', 'img', 'aud'), counts, (1.0, image_weight, audio_weight)):
            b[f'{k}_w'] *= w / max(c, 1)           # the loss is a plain sum of terms over the *global* count of their modality
        flops += 3 * count_flops(cfg, b['ids'].numel(), len(b['txt_i']), len(b['img_i']), len(b['aud_i']), b['ids'].numel() * block_size,
                                 draws, len(b['xin_img_i']), len(b['xin_aud_i']), len(b['rc_i'])) / (tp * pp)
    spent_flops += (flops - before) * mesh.world.size + update
    opt.start(len(micros))
    losses = [run_graph(b) for b in micros] if graph else forward_backward(models, micros, mesh, todo, shape, compute, device)
    sums = torch.stack([sum((o[k].double() for o in losses if k in o), torch.zeros((), dtype=torch.float64, device=device))
                        for k in ('txt', 'img', 'aud')])
    norm, (txt, img, aud) = opt.step(lr * lr_at(step), sums / tp)         # the tp ranks of the last stage count the same
    loss = txt + img + aud
    if cfg.n_expert:
        balance(math.isfinite(norm))
    bad = 0 if math.isfinite(norm) else bad + 1
    if bad:
        say(f'step {step}: gradient norm {norm}: the update was skipped ({bad} in a row)')
        if bad >= max_bad_steps:
            if roll_back(f'{bad} non-finite steps in a row'):
                continue
            die(f'{bad} non-finite steps in a row: lower --lr={lr} or --muon_lr={muon_lr}, or try --dtype=float32; '
                f'the last checkpoint in {out_dir} is from before')
    elif spike_z and len(recent) >= 50 and (z := (loss - np.mean(recent)) / max(np.std(recent), 1e-6)) > spike_z:
        say(f'step {step}: loss {loss:.4f}, {z:.0f} standard deviations above the mean of the last {len(recent)}')
        if roll_back(f'step {step}'):
            continue
    if not bad:
        recent.append(loss)
    step, done = step + 1, done + 1
    spent_cpu, clock = spent_cpu + time.process_time() - clock, time.process_time()
    if step % log_every == 0 or step == max_steps:
        now = time.time()
        ms, rate = 1000 * (now - last_log) / done, done * rows * block_size / (now - last_log)
        gb = torch.cuda.max_memory_allocated() / 1e9 if device != 'cpu' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        eta = (max_steps - step) * ms / 1000
        img, aud, mfu = img / (image_weight or 1), aud / (audio_weight or 1), flops / (now - last_log) / peak
        say(f'step {step:05d}/{max_steps:05d} | loss {loss:.4f} (text {txt:.3f} img {img:.3f} aud {aud:.3f}) | gnorm {norm:.2f} | '
            f'lr {lr * lr_at(step - 1):.1e} | {ms:.0f} ms | {rate:,.0f} tok/s | mfu {mfu:.0%} | {gb:.1f} GB | '
            f'eta {eta // 60:.0f}m{eta % 60:02.0f}')
        record(step=step, loss=loss, txt=txt, img=img, aud=aud, gnorm=norm, ms=ms, tok_s=rate,
               cost=dict(flops=spent_flops, cpu_s=spent_cpu))
        last_log, flops, done = now, 0, 0
    if (eval_every and step % eval_every == 0) or step == max_steps:
        val = validate()
        control = {} if step < max_steps else validate(blind=True) if image or audio else val       # without payloads: nothing to blind
        for name in val if master else ():
            seen = unigram(train_sets[names.index(name)], val_sets[name], codec) if control else None
            say(f'val {name}: {told(val[name], control.get(name, {}), seen)}')
        record(step=step, val=val, cost=dict(flops=spent_flops, cpu_s=spent_cpu, params=params['total']),
               **({'blind': control} if control else {}))
        score = sum(v for r in val.values() for k, v in r.items() if k != 'bpb') if any(val.values()) else math.inf
        if score < best:
            best = score
            if eval_every:
                save('best')
        last_log, flops, done, clock = time.time(), 0, 0, time.process_time()
    if (save_every and step % save_every == 0) or step == max_steps:
        save()
loader.close()
if stopped and step < max_steps:
    save()
    if not finish_saving():
        sys.exit(1)
    say(f'stopped at step {step}, saved: the same command goes on')
    sys.exit(128 + stopped[0])
say(f'{step} steps, {(time.time() - began) / 60:.1f} minutes')
if not finish_saving():
    sys.exit(1)                                    # the last checkpoint is lost: not a success, and nothing to ask questions of

if skills and master and step:
    from data.skills import table
    from sample import load_model
    net, codec, _ = load_model(checkpoints(out_dir)[0], device, compute)
    for row in table(net, codec, folders, skills, say):
        record(step=step, **row)
