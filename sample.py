"""
Generation: text, pictures (PNG) and sound (WAV) from a checkpoint.

    python sample.py --image=photo.png --prompt='how many?'
    python sample.py --prompt='draw: a red circle' --num=4 --guide=1.5
    python sample.py --audio=tune.wav --prompt='notes?'
    python sample.py --out_dir=out-shakespeare-char --start='ROMEO:' --max_new=500
    python sample.py --chat
    torchrun --nproc_per_node=2 sample.py --tp=2 --prompt='how many?'

The engine takes encoded prompts and returns ids, log-probabilities, pictures and sounds; nothing is tokenised twice. Rows run in lockstep,
a position per step, on one contiguous KV cache; the place of a row that ended goes to the next request, or the last row moves into it. A
prompt that several requests share (the same object) is read once and forked. Random numbers are a hash of (seed, request, position), so
neighbours, order and layout change nothing. With tensor or pipeline parallelism all ranks run this loop and make the same choices.
"""
import os, signal, sys, time
from collections import deque
from contextlib import redirect_stdout
from json import dumps
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from data.agents import agent_step, latency, majority, report, reports, turn
from data.checkpoint import Checkpoint, biases, checkpoints
from data.codec import BadInput, Codec, check, load_audio, load_image, mark, mel, save_wav, unmel
from data.collate import features
from data.decoder import Decoder, packs
from data.grammar import HEIGHT, PICTURE, SOUND, TEXT, WIDTH, Row, follow_up
from data.layouts import check_layout
from data.terminal import columns, printer
from data.tools import clean
from model import D, ModelConfig, build
from parallel import keep_pages, make_mesh, start_world

# ---------------------------------------------------------------- the model

def load_model(path, device='cpu', dtype=torch.float32, tp=1, pp=1):
    """
    A checkpoint folder, or the out_dir that holds some (the newest that is whole) -> (model, codec, meta); with tp or pp this rank's part,
    in a running world of tp * pp. ValueError, one line, if there is none or the layout does not fit.
    """
    path = Path(path)
    found = [path] if (path / 'manifest.json').exists() else checkpoints(path)
    if not found:
        raise ValueError(f'{path}: no checkpoint there: train first (python train.py), or give another --out_dir')
    for p, older in zip(found, [*found[1:], None]):
        try:
            ck = Checkpoint(p)
            cfg = ModelConfig(**ck.meta['model'])
            check_layout(tp * pp, tp=tp, pp=pp, n_layer=cfg.n_layer, n_head=cfg.n_head, n_kv_head=cfg.n_kv_head, ff=cfg.ff, rows=1, T=tp,
                         n_expert=cfg.n_expert, shared_ff=cfg.shared_ff, flow_width=cfg.flow_width)
            model = build(cfg, make_mesh(tp=tp, pp=pp, n_kv_head=cfg.n_kv_head, tie=cfg.tie), 0)[0].eval()
            ck.fill((f'param/{n}', p.spec, p) for n, p in model.named_parameters())
            ck.fill(biases([model]))
            return model.to(device, dtype), Codec.from_state(ck.meta['codec']), ck.meta
        except ValueError as e:
            if not older or not str(e).startswith(str(p)):             # not the checkpoint's fault
                raise
            print(f'{e}; taken instead: {older}', file=sys.stderr)


def read(dec, codec, feeds, n, S, rows):
    """feeds, for B rows the features() of what comes after their n (B,) positions in slots `rows` -> Decoder.step's (B, T, C)."""
    T, dev, img, aud = max(len(f[0]) for f in feeds), dec.kv.device, codec.sp['img'], codec.sp['aud']
    ids, rc = np.zeros((len(feeds), T), np.int64), np.full((len(feeds), T, 4), -1, np.float32)
    for b, f in enumerate(feeds):
        ids[b, :len(f[0])], rc[b, :len(f[0])] = f[0], f[1]
    flat, rc, x = ids.reshape(-1), rc.reshape(-1, 4), np.concatenate([f[2] for f in feeds])
    kind, batch = flat[np.isin(flat, (img, aud))], dict(ids=ids, rc_i=np.flatnonzero((rc >= 0).any(1)))
    batch['rc'] = rc[batch['rc_i']]
    for k, i in (('img', img), ('aud', aud)):
        batch[f'xin_{k}_i'], batch[f'xin_{k}'] = np.flatnonzero(flat == i), x[kind == i]
    batch = {k: torch.from_numpy(v).to(dev) for k, v in batch.items()}
    return dec.step(batch, torch.as_tensor(n, device=dev), S, torch.as_tensor(rows, device=dev))


def from_last(x, mesh):
    """x, filled in as the last stage has it."""
    if mesh.pp.size > 1:
        dist.broadcast(x, mesh.pp.ranks[-1], group=mesh.pp.pg)
    return x


# ---------------------------------------------------------------- choosing

def bits(key, *parts):
    """Integer arrays that broadcast -> uint64, a hash of their values in order, by the steps of SplitMix64 (Steele, Lea, Flood 2014)."""
    z = np.atleast_1d(key).astype(np.uint64)
    for p in parts:
        z = z + np.uint64(0x9E3779B97F4A7C15) * (np.atleast_1d(p).astype(np.uint64) + np.uint64(1))
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    return z


def uniform(key, *parts):
    """The same as float64 in (0, 1); 40 bits, so that the largest times a sum stays below that sum."""
    return ((bits(key, *parts) >> np.uint64(24)).astype(np.float64) + .5) * 2.0 ** -40


def normal(key, at, n):
    """key, at (N,) -> (N, n) float32 normal numbers (Box and Muller 1958)."""
    u = uniform(bits(key, at)[:, None], 1 + np.arange(2 * n))
    return (np.sqrt(-2 * np.log(u[:, :n])) * np.cos(2 * np.pi * u[:, n:])).astype(np.float32)


def choose(logits, bias, temperature, u, top_k=None, top_p=None):
    """
    logits (B, V); bias (V,) or (B, V): 0 where grammar allows an id, else -inf; of each row, (B,) float64: temperature (0: greedy), u
    uniform in (0, 1) and, if any row wants them, top_k (V: off) and top_p (2: off; the most probable id always stays).  -> ids (B,) and,
    float64 (B,), logp: their log-probabilities as the trainer has them, softmax over the whole vocabulary at temperature 1; logq: under
    the distribution that was drawn from (greedy: 0).
    """
    warm = temperature > 0
    z = (logits + bias).div_(temperature.clamp(min=1e-20).to(logits.dtype)[:, None])   # so cold, the largest alone has a probability
    if top_k is not None:
        s = z.sort(-1, descending=True).values
        s = s.masked_fill(torch.arange(s.shape[1], device=s.device) >= top_k[:, None], float('-inf'))
        p = s.softmax(-1)
        n = (p.cumsum(-1) - p < top_p[:, None]).sum(-1).minimum(top_k.long()).clamp_(min=1)      # the fewest whose mass is top_p
        z = z.masked_fill(z < s.gather(1, n[:, None] - 1), float('-inf'))
    q = z.softmax(-1)
    c = q.cumsum(-1, dtype=torch.float64)
    # how many are not above it; a row with nan in it gets some id, and spoils no other
    i = torch.searchsorted(c, (u * warm)[:, None] * c[:, -1:], right=True).clamp_(max=c.shape[1] - 1)
    return i[:, 0], logits.log_softmax(-1).gather(1, i)[:, 0].double(), q.gather(1, i)[:, 0].log().double() * warm


# ---------------------------------------------------------------- the engine

class Engine:
    """
    add() requests, also while it runs; then step(), or run(). A row that ended has its .result, and on_end(row) was called.
      rows     most at a time, of those that do not wait
      guide    above 1: pictures and sounds are pushed away from what the prompt `unprompted` (encoded) gives; a twin of each row reads it
      blind    payloads of prompts are replaced by zeros (the control of every skill)
      half     on a CPU: large matrices of attention and dense MLPs in bfloat16, where oneDNN has them; all else stays what it is
      on_stop  on_stop(row), when a row said <eot> or one of its `stop` ids -> None: it ends; a document: it reads that (weight 0) and goes
               on; 'wait': it stands still until insert(row, document) or end(row), while others, such as its sub-agents, go on. Default:
               the tools of rows with a ctx, by agent_step()
      stream   stream(row, id), for each new id
    Slots of the cache: an array has one entry for each. What slots of ended rows and of rows that wait compute meanwhile is never used.
    """
    def __init__(self, model, codec, *, rows=64, guide=1.0, unprompted=None, flow_steps=20, noise=0.5, max_patches=64, blind=False,
                 half=False, on_stop=None, stream=None):
        self.model, self.codec, self.most, self.blind, self.stream = model, codec, rows, blind, stream
        self.on_stop = on_stop or (lambda row: agent_step(self, row))
        self.flow, self.noise, self.max_patches = (flow_steps, guide), noise, max_patches
        self.twin = [dict(unprompted)] if guide != 1 and unprompted is not None else []
        self.dec, self.waiting, self.rows = Decoder(model, half), deque(), []          # ... requests, rows
        self.shared = {}                                               # id(prompt) -> prompt, n, slot that begins so, h after it or None
        self.owner, self.holds = [], []                                # row or None; entry of `shared` that the slot begins with
        self.todo, self.rc, self.x = {}, {}, {}                        # slot -> feeds to read; of the id to decode: rc, (id, payload)
        self.n, self.id = np.zeros(0, np.int64), np.zeros(0, np.int64) # positions in the cache; the id that comes next
        self.one, self.ready = np.zeros(0, bool), np.zeros(0, bool)    # it is to be decoded; h says what follows
        self.h, self.group = self.dec.kv.new_zeros(0, model.cfg.n_embd), [None]          # group: see _choose()
        sp, no = codec.sp, ['boi'] * (not model.cfg.image) + ['boa'] * (not model.cfg.audio)
        self.bias = torch.full((2, model.cfg.vocab_size), float('-inf'), device=self.h.device)             # in text, in a sound
        self.bias[0, :codec.n_vocab] = self.bias[1, [sp['aud'], sp['eoa']]] = 0
        self.bias[0, [sp[k] for k in ['img', 'eoi', 'aud', 'eoa', 'pad'] + no]] = float('-inf')
        if self.h.device.type == 'cpu':
            keep_pages()

    def add(self, prompt, then=(), *, seed=0, index=0, **options):
        """
        prompt: encoded document, the same object is read once for all; then: a document that goes on from it. Options: max_new (positions
        chosen or forced), temperature (0: greedy), top_k (0: off), top_p, stop (ids), seed, index (random numbers are theirs), on_end, ctx
        (what its tools may use: agent_step). -> Row
        """
        if not len(prompt['ids']):
            raise ValueError('the prompt is empty: it needs at least one position')
        self.waiting.append(Row(self.codec, prompt, then, key=bits(seed % 2 ** 64, index), index=index, **options))
        return self.waiting[-1]

    def run(self):
        while self.step():
            pass
        if self.rows:
            raise RuntimeError(f'{len(self.rows)} rows wait for one another: nothing can go on')

    @torch.inference_mode()
    def step(self):
        """One more position for every row that neither waits nor still reads. False: there is nothing to do."""
        self._admit()
        if self.todo:
            self._read()
            self._admit()                                              # forks of what was read
        if self.one.any():
            self._decode()
        ready = self.ready.tolist()
        rows = [r for r in self.rows if not r.waits and all(ready[s] for s in r.slots)]
        if rows:
            self._choose(rows)
        return bool(rows or self.todo or self.waiting and self._room() > 0)

    # ---------------- places

    def _room(self):
        return self.most - sum(not r.waits for r in self.rows)

    def _admit(self):
        room = self._room() if self.waiting else 0
        if room > 0:
            self._fit((1 + len(self.twin)) * (len(self.rows) + min(room, len(self.waiting))),
                      max(len(r.prompt['ids']) + r.left for r in self.waiting) + sum(len(p['ids']) for p in self.twin))
        for row in list(self.waiting) if room > 0 else ():
            begins = [row.prompt, *self.twin]
            if all(e is None or e.h is not None for e in (self.shared.get(id(p)) for p in begins)):        # else: read for another just now
                self.waiting.remove(row)
                self.rows.append(row)
                row.slots = []
                for p in begins:
                    row.slots.append(self._place(row, p))
                if row.tail and self.twin:                             # the twin is inside the same header or sound
                    ids, rc, x = self._feed(row, row.prompt)
                    self._later(row.slots[1:], [ids[-row.tail:], rc[-row.tail:], x[:0]], row.left)
                if row.then:
                    self.insert(row, row.then)
                room -= 1
                if not room:
                    return

    def _place(self, row, prompt):
        """A free slot that begins with prompt, for row: the one that does, or one to which that is copied or will be read."""
        e, free = self.shared.get(id(prompt)), [s for s, r in enumerate(self.owner) if r is None]
        s = e.slot if e and e.slot in free else min(free, key=lambda s: (self.holds[s] is not None, s))
        self.owner[s] = row
        if not e or s != e.slot:
            self._forget(s)
        if e:
            if s != e.slot:
                self.dec.copy(e.slot, s, e.n)
            self.n[s], self.h[s], self.ready[s] = e.n, e.h, True
        else:
            e = self.shared[id(prompt)] = SimpleNamespace(prompt=prompt, n=len(prompt['ids']), slot=s, h=None)
            feed = self._feed(row, prompt) if prompt is row.prompt else features(self.codec, prompt)
            self.n[s], self.todo[s] = 0, [[*feed, e]]
        self.holds[s] = e
        return s

    def _forget(self, slot):
        """What the slot begins with is about to be overwritten."""
        e, self.holds[slot] = self.holds[slot], None
        if e and e.slot == slot:
            e.slot = next((s for s, other in enumerate(self.holds) if other is e), None)
            if e.slot is None:
                del self.shared[id(e.prompt)]

    def _fit(self, slots, size):
        self.dec.fit(slots, size)
        new = self.dec.kv.shape[2] - len(self.owner)
        if new:
            self.owner, self.holds = self.owner + [None] * new, self.holds + [None] * new
            self.n, self.id, self.one, self.ready = (np.pad(a, (0, new)) for a in (self.n, self.id, self.one, self.ready))
            self.h = torch.cat((self.h, self.h.new_zeros(new, self.h.shape[1])))

    def end(self, row):
        """The row has ended. Its slots are free; what they begin with stays until they are needed."""
        self.rows.remove(row)
        for s in row.slots:
            self.owner[s], self.one[s], self.ready[s] = None, False, False
            for d in (self.todo, self.rc, self.x):
                d.pop(s, None)
        row.finish()
        if row.on_end:
            row.on_end(row)

    def _compact(self):
        """The last rows move down into free slots: a step computes no more rows than there are."""
        used = [s for s, r in enumerate(self.owner) if r]
        for old, s in zip(reversed(used), [s for s, r in enumerate(self.owner) if not r]):
            if s > old:
                return
            self.group = [None]
            self._forget(s)
            self.dec.copy(old, s, int(self.n[old]))
            for a in (self.n, self.id, self.one, self.ready, self.h, self.owner, self.holds):
                a[s] = a[old]
            self.owner[old], self.holds[old], self.one[old], self.ready[old] = None, None, False, False
            self.owner[s].slots[self.owner[s].slots.index(old)] = s
            if self.holds[s].slot == old:
                self.holds[s].slot = s
            for d in (self.todo, self.rc, self.x):
                if old in d:
                    d[s] = d.pop(old)

    # ---------------- feeding

    def _feed(self, row, e, before=-1):
        ids, rc, x = features(self.codec, e, self.blind, before)
        if row.mode == PICTURE:                                        # ... it ends with a header: the first patch follows
            rc[-1, 2:] = row.centre()
        return [ids, rc, x]

    def _later(self, slots, feed, left):
        for s in slots if len(feed[0]) else ():
            self.todo.setdefault(s, []).append([*feed, None])
            self.one[s] = self.ready[s] = False
            self._fit(0, max(int(self.n[s]), self.holds[s].n) + sum(len(f[0]) for f in self.todo[s]) + left)

    @torch.inference_mode()
    def insert(self, row, document):
        """The row reads a document before it goes on: a tool's result, a crop, reports. Those ids have weight 0."""
        e, said = self.codec.encode(document), row.ids[-1:] if self.one[row.slots[0]] else []            # said, but not yet in the cache
        for to, new in ((row.patches, e['patches']), (row.rc, e['rc']), (row.frames, e['frames'])):
            to.extend(new)
        before = [*row.prompt['ids'][-1:], *row.ids][-1 - len(said)] if row.ids else row.prompt['ids'][-1]
        row.enter(e['ids'])
        feed = self._feed(row, dict(e, ids=np.r_[np.array(said, np.int64), e['ids']]), before)
        row.ids += e['ids'].tolist()
        for a in (row.w, row.logp, row.logq):
            a += [0] * len(e['ids'])
        row.waits = False
        for s in row.slots:                                            # what was said last is in the feed, with its coordinates
            self.rc.pop(s, None), self.x.pop(s, None)
        self._later(row.slots, feed, row.left)

    def _read(self, most=4096, each=512):
        """What is still to be read, by chunks, so that rows that decode need not wait long: `each` positions of a row, `most` in all."""
        slots, T = [], 0
        for s, feeds in self.todo.items():
            t = max(T, min(len(feeds[0][0]), each))
            if not slots or (len(slots) + 1) * t <= most:
                slots.append(s)
                T = t
        now = []
        for s in slots:
            ids, rc, x, e = self.todo[s][0]
            k = int(np.isin(ids[:T], (self.codec.sp['img'], self.codec.sp['aud'])).sum())
            self.todo[s][0] = [ids[T:], rc[T:], x[k:], e]
            now.append((ids[:T], rc[:T], x[:k]))
        S = max(int(self.n[s]) + len(f[0]) for s, f in zip(slots, now))                   # not n.max() + T: there may be no room for that
        h = read(self.dec, self.codec, now, self.n[slots], S, slots)
        for b, s in enumerate(slots):
            self.n[s] += len(now[b][0])
            if not len(self.todo[s][0][0]):
                self.h[s], e = h[b, len(now[b][0]) - 1], self.todo[s].pop(0)[3]
                if e:
                    e.h = self.h[s].clone()
                if not self.todo[s]:
                    del self.todo[s]
                    self.ready[s] = True

    def _decode(self):
        on = self.one.nonzero()[0]
        top, dev = int(on[-1]) + 1, self.h.device
        batch = dict(ids=torch.from_numpy(self.id[:top, None].copy()).to(dev))
        if self.rc:
            batch['rc_i'] = torch.tensor(list(self.rc), device=dev)
            batch['rc'] = torch.tensor(list(self.rc.values()), dtype=torch.float32, device=dev)
        for k in ('img', 'aud') if self.x else ():
            x = {s: x for s, (i, x) in self.x.items() if i == self.codec.sp[k]}
            if x:
                batch[f'xin_{k}_i'], batch[f'xin_{k}'] = torch.tensor(list(x), device=dev), torch.stack(list(x.values()))
        n, S = torch.from_numpy(self.n[:top].copy()).to(dev), int(self.n[on].max()) + 1
        h = self.dec.step(batch, n, S, level=bool((self.n[:top] == S - 1).all()))[:, 0]
        if len(on) == top:
            self.h[:top] = h
        else:
            self.h[on] = h[on]
        self.n[on] += 1
        self.ready[on], self.one[on], self.rc, self.x = True, False, {}, {}

    # ---------------- choosing

    def _choose(self, rows):
        m, sp, dev = self.model, self.codec.sp, self.h.device
        if self.group[0] != rows:                                      # made anew only when other rows choose
            slots, knobs = np.array([r.slots for r in rows]), np.array([r.knobs for r in rows]).T
            top = (knobs[1] < self.codec.n_vocab).any() or (knobs[2] < 1).any()
            self.group = [rows, slots, np.concatenate([r.key for r in rows]), torch.from_numpy(slots).to(dev),
                          [*torch.from_numpy(knobs).to(dev)], top, 0, np.zeros((len(rows), 0))]
        _, slots, keys, at, (temperature, *knobs), top, begin, us = self.group
        n = self.n[slots[:, 0]]
        if not 0 <= (n - begin).min() <= (n - begin).max() < us.shape[1]:          # random numbers of some positions at once
            self.group[6:] = begin, us = n, uniform(keys[:, None], n[:, None] + np.arange(1 + 1024 // len(rows)), 0)
        out = torch.empty(3, len(rows), dtype=torch.float64, device=dev)
        if m.last:
            h, bias = self.h[at[:, 0]], self.bias[0]
            if any(r.mode not in (TEXT, PICTURE) for r in rows):
                bias, first = self.bias[[int(r.mode == SOUND) for r in rows]], self.codec.loc0 + 1
                for b, r in enumerate(rows):
                    if r.mode in (HEIGHT, WIDTH):
                        bias[b] = float('-inf')
                        bias[b, first:first + r.side(self.max_patches)] = 0
            u = torch.from_numpy(us[np.arange(len(n)), n - begin]).to(dev)
            logits = m.around('heads', m.logits, h, self.dec.laid(len(h))[1])
            out = torch.stack([x.double() for x in choose(logits, bias, temperature, u, *(knobs if top else ()))])
        ids, logp, logq = from_last(out, m.mesh).tolist()              # the one place where the host waits for the device
        ids = [(sp['img'] if r.todo else sp['eoi']) if r.mode == PICTURE else int(i) for r, i in zip(rows, ids)]
        made = {}
        for kind, head in ((sp['img'], 'image_out'), (sp['aud'], 'audio_out')):
            some = [b for b, i in enumerate(ids) if i == kind]
            if some:
                x = torch.empty(len(some), D, device=dev)
                if m.last:
                    e = torch.from_numpy(normal(keys[some], n[some], D)).to(dev) * self.noise
                    x = m.around('heads', getattr(m, head).sample, h[some], e, *self.flow,
                                 self.h[at[some, 1]] if self.twin else None).float()
                    if kind == sp['img']:                              # 8 bits, as every patch in training: a picture is a document again
                        x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
                made |= zip(some, from_last(x, m.mesh))
        self.id[slots], self.one[slots], self.ready[slots] = np.array(ids)[:, None], True, False
        for b, (r, i) in enumerate(zip(rows, ids)):
            free = r.mode != PICTURE
            r.ids.append(i), r.w.append(int(free)), r.logp.append(logp[b] * free), r.logq.append(logq[b] * free)
            r.left -= 1
            if not free or i >= self.codec.n_text:
                rc = r.follow(i, r.ids[-2] if len(r.ids) > 1 else r.prompt['ids'][-1])
                if max(rc) >= 0:
                    self.rc |= dict.fromkeys(r.slots, rc)
                if b in made:
                    self.x |= dict.fromkeys(r.slots, (i, made[b]))
                    r.made[i].append(made[b])
                    r.frames.append(None) if i == sp['aud'] else (r.patches.append(None), r.rc.append(rc[:2]))
        for r, i in zip(rows, ids):
            if self.stream:
                self.stream(r, i)
            if i in r.stop or not r.left:
                said = self.on_stop(r) if r.left else None
                if said is None:
                    self.end(r)
                else:
                    r.waits = said == 'wait'
                    r.waits or self.insert(r, said)
        if not self.waiting and max((s for r in self.rows for s in r.slots), default=-1) >= sum(len(r.slots) for r in self.rows):
            self._compact()


def generate(model, codec, prompts, *, max_new=64, temperature=1.0, top_k=0, top_p=1.0, seed=0, ctx=None, batch=64, **options):
    """
    prompts: encoded documents -> for each the dict of Row.finish: ids, text, logp, logq, w, images, audio, doc. At most `batch` at a time;
    the same object several times is read once. stream(row, id): row.index is the number of the prompt; ctx: of the tools of each. The rest
    as in Engine.add; options: of the Engine.
    """
    engine = Engine(model, codec, rows=batch, **options)
    rows = [engine.add(p, index=i, seed=seed, max_new=max_new, temperature=temperature, top_k=top_k, top_p=top_p, ctx=ctx and dict(ctx))
            for i, p in enumerate(prompts)]
    engine.run()
    return [r.result for r in rows]


@torch.inference_mode()
def score(model, codec, docs, blind=False, batch=64):
    """Encoded documents -> for each the sum of log-probabilities (nats) of its learned text positions (w = 1)."""
    out, dec = [], Decoder(model)
    for at in range(0, len(docs), batch):
        part = docs[at:at + batch]
        B, T = len(part), max(len(d['ids']) for d in part)
        dec.fit(B, T)
        h = read(dec, codec, [features(codec, d, blind) for d in part], np.zeros(B, np.int64), T, np.arange(B))
        total = torch.zeros(B, dtype=torch.float64, device=h.device)
        for b, d in enumerate(part) if model.last else ():
            i = np.flatnonzero((d['w'] > 0) & (d['ids'] != codec.sp['img']))
            i = i[i > 0]
            logp = torch.log_softmax(model.around('heads', model.logits, h[b, i - 1], dec.laid(len(i))[1]), -1)
            total[b] = logp.gather(1, torch.from_numpy(d['ids'][i]).to(h.device)[:, None]).sum()
        out += from_last(total, model.mesh).tolist()
    return out


# ---------------------------------------------------------------- many agents

def contemplate(model, codec, prompts, agents=8, *, think=128, brief=32, max_new=128, alone=0, temperature=1.0, top_k=0, top_p=1.0,
                seed=0, ctx=None, watch=None, **options):
    """
    Many agents at once on each encoded prompt, which is read once and forked; an orchestrator reads what they report, and answers.

        prompt <agent> <r1> <r2> .. <think> .. </think> <report> .. </report>      each agent
        prompt <report> .. </report> <report> .. </report> .. answer               the orchestrator, greedy; reports are shuffled, weight 0
        prompt answer                                                              and one alone, beside them

    A role is a token for each bit of the agent's number, <r(2b)> or <r(2b+1)>, so that any two differ; what it means is learned. Thoughts
    end after `think` positions: </think>, and for agents <report>, are then put in; `brief` are left for what follows. max_new: of the
    orchestrator; alone: of the one alone, thoughts included (0: think + brief + max_new). A report that begins with ? is one that its
    author did not verify. options: of the Engine.

    -> for each prompt a dict: answer, result (Row.finish) of the orchestrator; reports; what else could have been answered: one (the one
    alone), majority (of reports), vote (majority of verified reports, if there are any); steps, steps_one: latency, the agents' longest and
    then the orchestrator's. watch(groups), after each step: .agents and .merge are rows, merge None at first.
    """
    sp, engine, due, free = codec.sp, Engine(model, codec, **options), {}, dict(temperature=temperature, top_k=top_k, top_p=top_p)

    def add(g, then, number, positions, closing=(), **more):
        row = engine.add(g.prompt, then, index=64 * g.number + number, seed=seed, max_new=positions, ctx=ctx and dict(ctx), **more)
        due[row] = closing
        return row

    def joined(g):
        if all(r.result for r in g.agents):
            g.reports = [report(codec, r.result['ids']) for r in g.agents]
            order = np.argsort(uniform(bits(seed % 2 ** 64, g.number), np.arange(agents)))
            then = reports(codec, [g.reports[k] for k in order])
            g.merge = add(g, then, 63, max_new, temperature=0)
            g.read = len(codec.encode(then)['ids'])                # ids of the reports: what stands behind them the orchestrator said

    groups = [SimpleNamespace(prompt=p, number=i, agents=[], merge=None) for i, p in enumerate(prompts)]
    for g in groups:
        for a in range(agents):
            role = [sp['agent'], *(sp['r0'] + (2 * b + (a >> b & 1)) % 8 for b in range((agents - 1).bit_length()))]
            g.agents.append(add(g, [('ids', role, 0)], a, think + brief, [sp['report']], **free, on_end=lambda _, g=g: joined(g)))
        g.one = add(g, (), 62, alone or think + brief + max_new, **free)
    while engine.step():
        for row, closing in list(due.items()):
            if row.result or row.ids and row.left <= brief and row.mode == TEXT and not row.waits:          # not inside a picture
                del due[row]
                at = {k: max((n for n, i in enumerate(row.ids) if i == sp[k]), default=-1) for k in ('think', '/think', 'report')}
                close = [sp['/think']] * (at['think'] > at['/think']) + [i for i in closing if at['report'] < 0]
                if close and not row.result:
                    engine.insert(row, [('ids', close, 0)])
        if watch:
            watch(groups)
    out = []
    for g in groups:
        one, every = report(codec, g.one.result['ids']), [r.lstrip('?') for r in g.reports if r.strip('?')]
        out.append(dict(answer=report(codec, g.merge.result['ids'][g.read:]), result=g.merge.result, reports=g.reports, one=one,
                        majority=majority(every), vote=majority([r for r in g.reports if r and r[0] != '?'] or every),
                        steps=max(map(latency, g.agents)) + latency(g.merge), steps_one=latency(g.one)))
    return out


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
    flow_steps = 20            # Euler steps per patch or frame of a flow head
    noise = 0.5                # scale of its initial noise; with bins of the choice among them: 0 is the median
    seed = 1337
    agents = 0                 # so many think about each question at once, and one reads their reports and answers; 0: off
    think = 128                # positions of an agent's thought
    depth = 1                  # tool spawn: agents may have agents, so deep,
    budget = 4096              # and they say so much in all
    workspace = ''             # tools: folder of files to view and change,
    documents = ''             # folder of texts to search,
    mbox = ''                  # mail,
    ics = ''                   # calendar
    save = ''                  # folder for pictures and sounds; '': out_dir/samples
    chat = False               # a conversation in the terminal
    json = False               # answers as JSON, one a line
    device = 'cpu'             # cpu | cuda
    dtype = 'float32'          # float32 | bfloat16: on a CPU of the blocks' large matrices alone, but for experts
    tp = 1                     # tensor parallel, and
    pp = 1                     # pipeline parallel: torchrun --nproc_per_node=(tp * pp) sample.py ...
    from configurator import configure
    with redirect_stdout(sys.stderr if any(a.startswith('--json') for a in sys.argv) else sys.stdout):
        configure(globals())
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    say = print if rank == 0 and not json else (lambda *a, **k: None)
    tty = sys.stdout.isatty() and rank == 0 and not json

    def die(why):
        sys.exit(f'sample.py: {why}' if rank == 0 else 1)

    gpu = device.startswith('cuda') and torch.cuda.is_available()
    fast = gpu or packs(torch.bfloat16)
    for ok, why in ((temperature >= 0, f'temperature={temperature}: 0 (greedy) or more'),
                    (0 < top_p <= 1, f'top_p={top_p}: above 0, at most 1'),
                    (top_k >= 0, f'top_k={top_k}: 0 (off) or more'), (num >= 1, f'num={num}: at least 1'),
                    (max_new >= 1, f'max_new={max_new}: at least 1'),
                    (0 <= agents <= 62 and think >= 1, f'agents={agents}, think={think}: 0 to 62 agents, at least 1 position'),
                    (not start or not (prompt or image or audio), f'start={start!r}: it stands alone, without prompt, image or audio'),
                    (num == 1 or not agents, f'num={num}: one answer of {agents} agents at a time'),
                    (device == 'cpu' or gpu, f'device={device}: use cpu' + ' or cuda' * torch.cuda.is_available()),
                    (dtype == 'float32' or dtype == 'bfloat16' and fast, f'dtype={dtype}: use float32' + ' or bfloat16' * fast),
                    (world == tp * pp, f'tp={tp} * pp={pp} is not the number of processes, {world}: torchrun --nproc_per_node={tp * pp} '
                                       'sample.py ..., or leave them 1'),
                    (world == 1 or not chat, f'chat: a conversation takes one process, not {world}')):
        if not ok:
            die(why)
    try:
        device = start_world(device)[2]
        model, codec, meta = load_model(out_dir, device, torch.bfloat16 if gpu and dtype == 'bfloat16' else torch.float32, tp, pp)
    except ValueError as e:
        die(e)
    folder = Path(save or Path(out_dir) / 'samples')
    ctx = dict(depth=depth, tokens=budget, images=[])
    ctx.update((k, v) for k, v in globals().items() if v and k in ('workspace', 'documents', 'mbox', 'ics'))
    options = dict(max_new=max_new, temperature=temperature, top_k=top_k, top_p=top_p, guide=guide, flow_steps=flow_steps, noise=noise,
                   half=dtype == 'bfloat16' and not gpu, ctx=ctx, unprompted=codec.encode(turn(codec, '')))

    def pictures(names):
        """Files, comma-separated -> what the model sees. Its tools see more: up to 4096 pixels a side."""
        names = [n.strip() for n in names.split(',') if n.strip()]
        check(model.cfg.image or not names, f'image={names}: this model was trained with --image=false')
        ctx['images'] += [load_image(n, 1 << 18, 512) for n in names]
        return [load_image(n, max_side=codec.n_loc - 1) for n in names]

    def sounds_of(names):
        check(model.cfg.audio or not names, f'audio={names}: this model was trained with --audio=false')
        return [mel(load_audio(n.strip())) for n in names.split(',') if n.strip()]

    def write(r, name):
        """Pictures and sounds that were made, and a copy of the first picture with the points and boxes that were said -> files."""
        things = {f'{name}{f"_{j}" if j else ""}.{end}': x for end, k in (('png', 'images'), ('wav', 'audio')) for j, x in enumerate(r[k])}
        marked = mark(ctx['images'][0], *codec.marks(r['ids'])) if ctx['images'] else None
        things |= {f'{name}_marked.png': marked} if marked is not None else {}
        for file, x in things.items() if rank == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            save_wav(folder / file, unmel(x)) if file.endswith('wav') else Image.fromarray(x).save(folder / file)
        return [str(folder / file) for file in things]

    def answer(doc, name, n=1, number=0):
        """Answers, printed and written -> the last as a document."""
        began, extra, show = time.monotonic(), {}, printer(codec, say, tty)
        try:
            if agents:
                g, = contemplate(model, codec, [doc], agents, think=think, seed=seed + number, watch=columns(codec, say, tty, show),
                                 **options)
                results, extra = [g.pop('result')], g
            else:
                results = generate(model, codec, [doc] * n, seed=seed + number, **options,
                                   stream=lambda row, i: n == 1 and row.prompt is doc and show(row))
        finally:
            say('\x1b[0m' * tty, end='\n' * (n == 1))
        extra['seconds'] = round(time.monotonic() - began, 3)
        for i, r in enumerate(results):
            files = write(r, f'{name}_{i}')
            say(*[f'[{i}] {clean(r["text"])}'] * (n > 1), *files, sep='\n', end='\n' * bool(n > 1 or files))
            if json and rank == 0:
                print(dumps(dict(answer=report(codec, r['ids']), text=r['text'], files=files, positions=len(r['ids'])) | extra), flush=True)
        if agents:
            say(*(f'agent {k}: {clean(x)}' for k, x in enumerate(extra['reports'], 1)), sep='\n')
            say(f'one agent: {clean(extra["one"])} | majority: {clean(extra["majority"])} | self-verified vote: {clean(extra["vote"])} | '
                f'{extra["steps"]} steps (one: {extra["steps_one"]}), {extra["seconds"]} s')
        return results[-1]['doc']

    try:
        images, sounds = pictures(image), sounds_of(audio)
        if not chat:
            if start and not codec.text(start):
                die('--start is empty')
            answer(codec.encode([('text', start)] if start else turn(codec, prompt, images, sounds)), 'sample', num)
            sys.exit(0)
    except (BadInput, OSError) as e:
        die(e)
    except KeyboardInterrupt:
        sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)           # a shell may have started us with Ctrl-C ignored
    say('A question, or /image FILE, /audio FILE, /agents N, /new, /quit. Ctrl-C ends an answer.')
    doc, turns = None, 0
    while True:
        try:
            line = input('' if json else '> ').strip()
        except (EOFError, KeyboardInterrupt):
            say()
            break
        try:
            if line in ('/quit', '/exit'):
                break
            elif line == '/new':
                doc, turns, images, sounds = None, 0, [], []
                ctx['images'].clear()
            elif line.startswith('/image '):
                images += pictures(line[7:])
            elif line.startswith('/audio '):
                sounds += sounds_of(line[7:])
            elif line.startswith('/agents ') and line[8:].isdecimal() and int(line[8:]) <= 62:
                agents = int(line[8:])
            elif line.startswith('/'):
                say('commands: /image FILE, /audio FILE, /agents N, /new, /quit')
            elif line:
                asked = turn(codec, line, images, sounds)
                doc, images, sounds = follow_up(codec, doc, asked) if doc else codec.encode(asked), [], []
                doc, turns = answer(doc, f'chat_{turns}', number=turns), turns + 1
        except (BadInput, OSError) as e:
            print(dumps(dict(error=str(e))) if json else e)
        except KeyboardInterrupt:
            say('(stopped)')
