"""
Generation: text, pictures (PNG) and sound (WAV) from a checkpoint, one process.

    python sample.py --image=photo.png --prompt='how many?'
    python sample.py --prompt='draw: a red circle' --num=4 --guide=1.5
    python sample.py --audio=tune.wav --prompt='notes?'
    python sample.py --out_dir=out-shakespeare-char --start='ROMEO:' --max_new=500
    python sample.py --chat

The engine, generate(), takes encoded prompts and returns ids, log-probabilities, pictures and sounds. Rows of different lengths run in lockstep on
one contiguous KV cache; each row has its own random generator, so padding, batching and finished neighbours change nothing.
"""
import os, sys
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from data.codec import BadInput, Codec, load_audio, load_image, mel, save_wav, to_uint8, unmel, unpatchify
from data.loader import loc_rc
from model import D, ModelConfig, Muse
from optim_zero import Checkpoint, checkpoints

# ---------------------------------------------------------------- the model

def load_model(path, device='cpu', dtype=torch.float32):
    """A checkpoint folder, or the out_dir that holds some (its newest) -> (model, codec, meta). ValueError, one line, if there is none."""
    path = Path(path)
    if not (path / 'manifest.json').exists():
        found = checkpoints(path)
        if not found:
            raise ValueError(f'{path}: no checkpoint there: train first (python train.py), or give another --out_dir')
        path = found[0]
    ck = Checkpoint(path)
    cfg = ModelConfig(**ck.meta['model'])
    model = Muse(cfg).eval()
    ck.fill((f'param/{n}', p.spec, p) for n, p in model.named_parameters())
    ck.fill((f'buffer/{n}', b.spec, b) for n, b in model.named_buffers() if n.endswith('.bias'))
    return model.to(device, dtype), Codec.from_state(ck.meta['codec']), ck.meta


class Cache:
    """Keys and values, contiguous (L, B, nkv, S, hd); n (B,) positions filled in each row."""
    def __init__(self, cfg, rows, size, device, dtype):
        shape = (cfg.n_layer, rows, cfg.n_kv_head, size, cfg.hd)
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.n = torch.zeros(rows, dtype=torch.long, device=device)
        self.used = 0

    def put(self, layer, k, v):
        """k, v (B, nkv, T, hd) of the positions after the filled ones -> all keys and values up to the longest row."""
        T, end = k.shape[2], self.used + k.shape[2]
        if T > 1:                                             # prefill: all rows start at 0
            self.k[layer, :, :, :T], self.v[layer, :, :, :T] = k, v
        else:
            rows = torch.arange(len(self.n), device=k.device)
            self.k[layer, rows, :, self.n], self.v[layer, rows, :, self.n] = k[:, :, 0], v[:, :, 0]
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def keep(self, rows):
        """Drop the other rows."""
        self.k, self.v, self.n = self.k[:, rows].contiguous(), self.v[:, rows].contiguous(), self.n[rows]


def step(model, cache, rows):
    """
    Feed each row its next positions, a dict(ids, x: {index: payload}, rc: (n, 4)) of numpy; all rows one position, or, on an empty cache, any number.
    Returns the hidden state (B, C) at the last position of each row.
    """
    dev, B, T = cache.k.device, len(rows), max(len(r['ids']) for r in rows)
    ids, rc = np.zeros((B, T), np.int64), np.full((B, T, 4), -1, np.float32)
    pay = {'img': ([], []), 'aud': ([], [])}
    for b, r in enumerate(rows):
        ids[b, :len(r['ids'])], rc[b, :len(r['ids'])] = r['ids'], r['rc']
        for kind, (where, values) in pay.items():
            i, v = r[kind]
            where.append(b * T + i), values.append(v)
    rc = rc.reshape(-1, 4)
    rc_i = np.flatnonzero((rc >= 0).any(1))
    batch = dict(ids=ids, pos=cache.n.cpu().numpy()[:, None] + np.arange(T), rc_i=rc_i, rc=rc[rc_i])
    for kind, (where, values) in pay.items():
        batch[f'xin_{kind}_i'], batch[f'xin_{kind}'] = np.concatenate(where).astype(np.int64), np.concatenate(values).astype(np.float32)
    batch = {k: torch.from_numpy(np.ascontiguousarray(v)).to(dev) for k, v in batch.items()}
    S = cache.used + T
    sees = torch.arange(S, device=dev) <= batch['pos'][:, :, None]              # (B, T, S)
    batch['doc'] = batch['ids'][:, :1] * 0
    ctx = model.context(batch, cache.k.dtype)
    ctx.update(mask=torch.zeros(sees.shape, dtype=cache.k.dtype, device=dev).masked_fill_(~sees, float('-inf')), cache=cache, kind=None)
    h = model.hidden(batch, ctx)
    n = torch.tensor([len(r['ids']) for r in rows], device=dev)
    cache.n, cache.used = cache.n + n, max(cache.used, int((cache.n + n).max()))
    return h[torch.arange(B, device=dev), n - 1]


# ---------------------------------------------------------------- one row

class Row:
    """One sequence: what was fed, what grammar allows next, its own random generator. A picture is <boi> h w [img].. <eoi>, a sound <boa> [aud].. <eoa>."""
    def __init__(self, codec, prompt, seed, blind):
        self.codec, self.sp = codec, codec.sp
        self.rng = torch.Generator().manual_seed(seed)
        self.ids, self.logp, self.images, self.audio, self.patches, self.frames = [], [], [], [], [], []
        self.grid, self.header, self.left, self.in_audio, self.done = None, [], 0, False, False
        ids = prompt['ids']
        rc = np.full((len(ids), 4), -1, np.float32)
        img = np.flatnonzero(ids == self.sp['img'])
        rc[img, :2] = prompt['rc']
        rc[img[img > 0] - 1, 2:] = prompt['rc'][img > 0]
        rc[:, :2] = np.where((ids >= codec.loc0)[:, None], loc_rc(ids, codec), rc[:, :2])
        x = np.zeros((len(img), D), np.float32) if blind else prompt['patches'] / np.float32(127.5) - 1
        aud = np.flatnonzero(ids == self.sp['aud'])
        f = np.zeros((len(aud), D), np.float32)
        if not blind:
            f[:, :prompt['frames'].shape[1]] = prompt['frames']
        self.feed = dict(ids=ids, rc=rc, img=(img, x.reshape(-1, D)), aud=(aud, f))
        for i in ids:
            self._follow(int(i), None)
        if self.left:
            self.feed['rc'][-1, 2:] = self._next_rc()

    def _next_rc(self):
        h, w = self.grid
        k = h * w - self.left
        return (k // w + .5) / h, (k % w + .5) / w

    def _follow(self, i, x):
        """Grammar after position i (payload x if it was generated)."""
        sp = self.sp
        if i == sp['boi']:
            self.header, self.grid = [], (0, 0)
        elif self.grid == (0, 0):
            self.header.append(i - self.codec.loc0)
            if len(self.header) == 2:
                self.grid = tuple(self.header)
                self.left, self.patches = self.grid[0] * self.grid[1], []
        elif i == sp['img']:
            self.left -= 1
            if x is not None:
                self.patches.append(x)
        elif i == sp['eoi']:
            if self.patches:
                self.images.append(unpatchify(to_uint8(np.clip(np.stack(self.patches), -1, 1)), *self.grid))
            self.grid, self.patches = None, []
        elif i == sp['boa']:
            self.in_audio, self.frames = True, []
        elif i == sp['aud'] and x is not None:
            self.frames.append(x[:128])
        elif i == sp['eoa']:
            if self.frames:
                self.audio.append(np.stack(self.frames))
            self.in_audio, self.frames = False, []

    def forced(self):
        """The id that grammar leaves no choice about, or None."""
        if self.grid and self.grid != (0, 0):
            return self.sp['img'] if self.left else self.sp['eoi']
        return None

    def allowed(self, logits, max_patches):
        """Mask logits (V,) in place to what grammar allows."""
        c, sp = self.codec, self.sp
        if self.grid == (0, 0):
            most = min(c.n_loc - 1, max_patches // (self.header[0] if self.header else 1))
            keep = logits[c.loc0 + 1:c.loc0 + 1 + max(most, 1)].clone()
            logits.fill_(float('-inf'))[c.loc0 + 1:c.loc0 + 1 + max(most, 1)] = keep
        elif self.in_audio:
            keep = logits[[sp['aud'], sp['eoa']]].clone()
            logits.fill_(float('-inf'))[[sp['aud'], sp['eoa']]] = keep
        else:
            logits[[sp[k] for k in ('img', 'eoi', 'aud', 'eoa', 'pad')]] = float('-inf')
        return logits

    def take(self, i, x, logp):
        """Accept position i with payload x (D,) or None; prepares what is fed next."""
        rc = np.full((1, 4), -1, np.float32)
        if i == self.sp['img']:
            rc[0, :2] = self._next_rc()
        elif i >= self.codec.loc0:
            rc[0, :2] = loc_rc(np.array([self.feed['ids'][-1], i]), self.codec)[1]
        self.ids.append(i), self.logp.append(logp)
        self._follow(i, x)
        if self.left:
            rc[0, 2:] = self._next_rc()
        none = (np.zeros(0, np.int64), np.zeros((0, D), np.float32))
        one = (np.zeros(1, np.int64), x[None]) if x is not None else none
        self.feed = dict(ids=np.array([i]), rc=rc, img=one if i == self.sp['img'] else none, aud=one if i == self.sp['aud'] else none)


def choose(logits, temperature, top_k, top_p, rng):
    """float32 logits (V,) -> (id, its log-probability under the distribution that was sampled from)."""
    if temperature == 0:
        i = int(logits.argmax())
        return i, float(torch.log_softmax(logits, 0)[i])
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, len(logits))).values[-1], float('-inf'))
    if top_p < 1:
        s, order = logits.softmax(0).sort(descending=True)
        logits = logits.index_fill(0, order[s.cumsum(0) - s >= top_p], float('-inf'))
    logp = torch.log_softmax(logits, 0)
    i = int(torch.multinomial(logp.exp(), 1, generator=rng))
    return i, float(logp[i])


# ---------------------------------------------------------------- the engine

@torch.no_grad()
def generate(model, codec, prompts, *, max_new=64, temperature=1.0, top_k=0, top_p=1.0, seed=0, guide=1.0, flow_steps=20, noise=0.75, max_patches=64,
             batch=64, blind=False, unprompted=None, stream=None, cached=True):
    """
    prompts: encoded documents (Codec.encode). Returns a list of dict(ids, text, logp, images [uint8 (H, W, 3)], audio [frames (n, 128)]).
    temperature 0: greedy. guide > 1: pictures and sounds are pushed away from what an empty prompt gives (`unprompted`, encoded).  blind: payloads of
    the prompt are replaced by zeros (the control of every skill).  stream(row, id): called for each new id.  Random numbers of prompt i come from (seed, i).
    cached=False recomputes everything at every position: slow, for the tests.
    """
    out = [None] * len(prompts)
    dev, dtype = model.norm.gain.device, model.norm.gain.dtype
    eot, img, aud = codec.sp['eot'], codec.sp['img'], codec.sp['aud']
    banned = [codec.sp['boi']] * (model.image_out is None) + [codec.sp['boa']] * (model.audio_out is None)       # it cannot make these
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]['ids']))               # neighbours of like length
    for at in range(0, len(order), batch):
        which = order[at:at + batch]
        rows = [Row(codec, prompts[i], seed * 1_000_003 + i, blind) for i in which]
        twins = [Row(codec, unprompted, 0, False) for _ in rows] if guide != 1 and unprompted is not None else []
        for r, t in zip(rows, twins):                                                       # a prompt that ends inside a picture or a sound: so does its twin
            t.grid, t.header, t.left, t.in_audio = r.grid, list(r.header), r.left, r.in_audio
            if t.left:
                t.feed['rc'][-1, 2:] = t._next_rc()
        size = max(len(r.feed['ids']) for r in rows + twins) + max_new + 1
        cache = Cache(model.cfg, len(rows) + len(twins), size, dev, dtype)
        alive, fed = rows, [[r.feed] for r in rows + twins]
        which = list(which)
        for n in range(max_new):
            if cached:
                h = step(model, cache, [r.feed for r in alive + twins])
            else:
                cache = Cache(model.cfg, len(fed), size, dev, dtype)
                h = step(model, cache, [join(f) for f in fed])
            h, h0 = h[:len(alive)], h[len(alive):] if twins else None
            forced = [r.forced() for r in alive]
            need = [b for b, f in enumerate(forced) if f is None]
            picked, logps = list(forced), [0.0] * len(alive)
            if need:
                logits = model.logits(h[need]).cpu()
                logits[:, banned] = float('-inf')
                for b, l in zip(need, logits):
                    picked[b], logps[b] = choose(alive[b].allowed(l, max_patches), temperature, top_k, top_p, alive[b].rng)
            pay = [None] * len(alive)
            for ph, head in ((img, model.image_out), (aud, model.audio_out)):
                bs = [b for b, i in enumerate(picked) if i == ph]
                if bs:
                    e = torch.stack([torch.randn(D, generator=alive[b].rng) for b in bs]).to(dev) * noise
                    for b, x in zip(bs, head.sample(h[bs], e, flow_steps, guide, h0[bs] if twins else None).float().cpu().numpy()):
                        pay[b] = x
            for b, r in enumerate(alive):
                r.take(picked[b], pay[b], logps[b])
                if twins:
                    twins[b].take(picked[b], pay[b], 0.0)
                if stream:
                    stream(which[b], picked[b])
                r.done = picked[b] == eot
            for b, r in enumerate(alive + twins):
                fed[b].append(r.feed)
            if any(r.done for r in alive):                                                   # finished rows leave the batch
                keep = [b for b, r in enumerate(alive) if not r.done]
                if not keep:
                    break
                both = keep + [len(alive) + b for b in keep] if twins else keep
                cache.keep(both)
                fed, which = [fed[b] for b in both], [which[b] for b in keep]
                alive, twins = [alive[b] for b in keep], [twins[b] for b in keep] if twins else []
        for i, r in zip(order[at:at + batch], rows):
            if r.frames:
                r.audio.append(np.stack(r.frames))
            ids = r.ids[:-1] if r.ids and r.ids[-1] == eot else r.ids
            out[i] = dict(ids=ids, text=codec.untext([k for k in ids if k not in (img, aud)]), logp=r.logp, images=r.images, audio=r.audio)
    return out


def join(feeds):
    """The positions fed one after the other as one feed."""
    at = np.cumsum([0] + [len(f['ids']) for f in feeds])
    glue = lambda k: (np.concatenate([f[k][0] + a for f, a in zip(feeds, at)]), np.concatenate([f[k][1] for f in feeds]))
    return dict(ids=np.concatenate([f['ids'] for f in feeds]), rc=np.concatenate([f['rc'] for f in feeds]), img=glue('img'), aud=glue('aud'))


@torch.no_grad()
def score(model, codec, docs, blind=False, batch=64):
    """Encoded documents -> for each the sum of log-probabilities (nats) of its learned text positions (w = 1)."""
    out = []
    for at in range(0, len(docs), batch):
        part = docs[at:at + batch]
        rows = [Row(codec, d, 0, blind).feed for d in part]
        cache = Cache(model.cfg, len(rows), max(len(d['ids']) for d in part), model.norm.gain.device, model.norm.gain.dtype)
        keep = {}
        model_norm = model.norm.register_forward_hook(lambda m, a, y: keep.__setitem__('h', y))
        step(model, cache, rows)
        model_norm.remove()
        for b, d in enumerate(part):
            i = np.flatnonzero((d['w'] > 0) & (d['ids'] != codec.sp['img']))
            i = i[i > 0]
            logp = torch.log_softmax(model.logits(keep['h'][b, i - 1]), -1)
            out.append(float(logp[torch.arange(len(i)), torch.from_numpy(d['ids'][i]).to(logp.device)].sum()))
    return out


def turn(codec, text, images=(), sounds=()):
    """The segments of a user's turn, up to the point where the assistant speaks. Pictures come first, sounds inside the turn."""
    return [*(('image', x, 0) for x in images), ('ids', [codec.sp['user']], 0), *(('audio', x, 0) for x in sounds), ('text', text, 0),
            ('ids', [codec.sp['assistant']], 0)]


# ---------------------------------------------------------------- command line

if __name__ == '__main__':
    out_dir = 'out-scenes'     # a training's folder, or one checkpoint in it
    prompt = ''                # a user's turn
    start = ''                 # or: text to go on from as it is, without roles
    image = ''                 # picture(s) to look at, comma-separated files
    audio = ''                 # sound(s) to listen to, WAV files
    num = 1                    # samples
    max_new = 256              # positions at most
    temperature = 0.7          # 0: greedy
    top_k = 0                  # 0: off
    top_p = 1.0
    guide = 1.5                # classifier-free guidance of pictures and sounds; 1: off
    flow_steps = 20            # Euler steps per patch or frame
    noise = 0.75               # scale of its initial noise
    seed = 1337
    save = ''                  # folder for pictures and sounds; '': out_dir/samples
    chat = False               # a conversation in the terminal
    device = 'cpu'             # cpu | cuda
    from configurator import configure
    configure(globals())
    for ok, say in ((temperature >= 0, f'temperature={temperature}: 0 (greedy) or more'), (0 < top_p <= 1, f'top_p={top_p}: above 0, at most 1'),
                    (top_k >= 0, f'top_k={top_k}: 0 (off) or more'), (num >= 1, f'num={num}: at least 1'), (max_new >= 1, f'max_new={max_new}: at least 1'),
                    (device == 'cpu' or device.startswith('cuda') and torch.cuda.is_available(), f'device={device}: use cpu' + ' or cuda' * torch.cuda.is_available())):
        if not ok:
            sys.exit(f'sample.py: {say}')
    try:
        model, codec, meta = load_model(out_dir, device)
    except ValueError as e:
        sys.exit(f'sample.py: {e}')
    folder = Path(save or Path(out_dir) / 'samples')
    options = dict(max_new=max_new, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, guide=guide, flow_steps=flow_steps, noise=noise,
                   unprompted=codec.encode(turn(codec, '')))

    def files(names, load):
        return [load(n.strip()) for n in names.split(',') if n.strip()]

    def picture(name):
        return load_image(name)

    def sound(name):
        return mel(load_audio(name))

    def write(results, prefix='sample'):
        """Pictures and sounds to files; returns their names."""
        names = []
        for i, r in enumerate(results):
            for j, x in enumerate(r['images']):
                names.append(folder / f'{prefix}_{i}{f"_{j}" if j else ""}.png')
                folder.mkdir(parents=True, exist_ok=True)
                from PIL import Image
                Image.fromarray(x).save(names[-1])
            for j, x in enumerate(r['audio']):
                names.append(folder / f'{prefix}_{i}{f"_{j}" if j else ""}.wav')
                folder.mkdir(parents=True, exist_ok=True)
                save_wav(names[-1], unmel(x))
        return names

    class Streamer:
        """Prints text as it comes: whole characters only, placeholders of pictures and sounds left out."""
        def __init__(self):
            self.ids, self.shown = [], 0

        def __call__(self, row, i):
            if i not in (codec.sp['img'], codec.sp['aud'], codec.sp['eot']):
                self.ids.append(i)
                text = codec.untext(self.ids)
                text = text[:-1] if text.endswith('\ufffd') else text
                print(text[self.shown:], end='', flush=True)
                self.shown = len(text)

    def answer(doc, n=1):
        results = generate(model, codec, [codec.encode(doc)] * n, stream=Streamer() if n == 1 else None, **options)
        if n == 1:
            print()
        else:
            for i, r in enumerate(results):
                print(f'[{i}] {r["text"]}')
        return results

    try:
        if not chat:
            doc = [('text', start)] if start else turn(codec, prompt, files(image, picture), files(audio, sound))
            if start and not codec.text(start):
                sys.exit('sample.py: --start is empty')
            for name in write(answer(doc, num)):
                print(name)
            sys.exit(0)
    except (BadInput, OSError) as e:
        sys.exit(f'sample.py: {e}')
    try:
        images, sounds = files(image, picture), files(audio, sound)
    except (BadInput, OSError) as e:
        sys.exit(f'sample.py: {e}')
    print('A question, or /image FILE, /audio FILE, /new, /quit. Ctrl-C ends an answer.')
    doc, turns = [], 0
    while True:
        try:
            line = input('> ').strip()
        except (EOFError, KeyboardInterrupt):
            print()
            break
        try:
            if line in ('/quit', '/exit'):
                break
            elif line == '/new':
                doc, images, sounds = [], [], []
            elif line.startswith('/image '):
                images.append(picture(line[7:].strip()))
            elif line.startswith('/audio '):
                sounds.append(sound(line[7:].strip()))
            elif line.startswith('/'):
                print('commands: /image FILE, /audio FILE, /new, /quit')
            elif line:
                doc += turn(codec, line, images, sounds)
                images, sounds = [], []
                r = answer(doc)
                for name in write(r, f'chat_{turns}'):
                    print(name)
                turns += 1
                doc += [('text', r[0]['text'])] if not r[0]['images'] and not r[0]['audio'] else \
                    [*(('image', x, 0) for x in r[0]['images']), *(('audio', x, 0) for x in r[0]['audio'])]
                doc.append(('ids', [codec.sp['eot']], 0))
        except (BadInput, OSError) as e:
            print(e)
        except KeyboardInterrupt:
            print()
