"""
Shards -> rows -> batches.

A training row is a pure function of (seed, step, global row): nothing but `step` is needed to resume, and the rows of a step are
the same for every number of ranks. data/shards.py has the shards, data/collate.py makes the tensors.
"""
import queue, threading
import numpy as np
import torch
from data.collate import PAD, collate
from data.media import D
from data.workers import ahead
from parallel import flash_mask

# ---------------------------------------------------------------- rows

def remarks(names, sets, T, image, audio, say):
    """Says what will be missing from rows of T of these data sets. ValueError, one line: every document of one loses its end."""
    for name, s in zip(names, sets):
        for key, what, used in (('image', 'patch', image), ('audio', 'frame', audio)):
            if len(s[what]) and not used:
                say(f'{name}: {len(s[what]):,} positions of the kind {what} are neither seen nor learned: {key}=false')
        size = np.diff(s['doc'], axis=0)
        long = size[(size[:, 1:] > 0).any(1) & (size[:, 0] > T + 1), 0]
        line = f'{name}: {len(long):,} of {len(size):,} with pictures or sound lose their end: block_size={T} < {long.max(initial=1) - 1:,}'
        if len(long) == len(size):
            raise ValueError(line)
        say(line) if len(long) else None


def pack_train(sets, weights, T, key):
    """Row of T positions as a list of chunks (set, document, first, n): n inputs, and a target after each. key: (seed, step, row)."""
    rng = np.random.Generator(np.random.Philox(key=key[0] * 1000003 + 7, counter=[0, 0, key[1], key[2]]))
    chunks, room, misses = [], T, 0
    while room > 1 and misses < 8:
        s = sets[rng.choice(len(sets), p=weights) if len(sets) > 1 else 0]
        d = int(rng.integers(len(s['doc']) - 1))
        lo, hi = s['doc'][d], s['doc'][d + 1]
        n = int(hi[0] - lo[0]) - 1
        if n < 1:                                                 # nothing to predict in it
            misses += 1
            continue
        if n <= room:
            chunks.append((s, d, 0, n))
        elif n > T and hi[1] == lo[1] and hi[2] == lo[2]:         # long text: a random window fills the row
            n, first = room, int(rng.integers(n - room + 1))
            chunks.append((s, d, first, n))
        elif not chunks:                                          # long, with payloads: its beginning
            n = T
            chunks.append((s, d, 0, n))
        else:
            misses += 1                                           # does not fit into what is left: try others, then pad
            continue
        room -= n
    return chunks


def pack_eval(s, T, limit=0):
    """Every document of a split once, in order, in rows of T; long documents in adjacent windows. Yields rows as pack_train makes them."""
    row, room = [], T
    for d in range(min(len(s['doc']) - 1, limit or 1 << 60)):
        n = int(s['doc'][d + 1, 0] - s['doc'][d, 0]) - 1
        text_only = (s['doc'][d + 1, 1:] == s['doc'][d, 1:]).all()
        for first in (range(0, n, T) if text_only or n < 1 else (0,)):
            m = min(n - first, T)
            if m > room:
                yield row
                row, room = [], T
            row.append((s, d, first, m))
            room -= m
    if row:
        yield row


# ---------------------------------------------------------------- batches

def train_batches(sets, weights, codec, *, seed, step, rows, micro, T, draws=4, dp=1, dp_rank=0, cp=1, cp_rank=0, past=0, workers=0):
    """
    Endless generator of (step, [microbatch, ...], counts of this dp rank), from `step` on, made ahead by a thread, or by so many `workers`,
    processes (a thread takes its time from the one that feeds a GPU): those hold until the next is asked for.
    rows: global rows per step; each dp rank takes rows/dp adjacent ones in microbatches of `micro` rows.
    """
    weights = np.array(weights, np.float64) / sum(weights)
    mine = range(dp_rank * rows // dp, (dp_rank + 1) * rows // dp)
    out, stop = queue.Queue(2), threading.Event()

    def make(s):
        batch, counts = [], 0
        for m in range(0, len(mine), micro):
            keys = [(seed, s, r) for r in mine[m:m + micro]]
            b, c = collate([pack_train(sets, weights, T, k) for k in keys], T, codec, draws, keys, cp, cp_rank, past)
            batch.append(b)
            counts = counts + c
        return s, batch, counts

    if workers:                                          # all numbers of a position, and what pads the compact arrays of a microbatch
        each = (2 + draws) * 4 * D + 16 * draws + 8 * past + 128
        yield from ahead(make, step, workers, (len(mine) * T + 16 * PAD * -(-len(mine) // micro)) * each)
        return

    def work():
        s = step
        while not stop.is_set():
            try:
                item = make(s)
            except BaseException as e:                   # the reader must not wait for ever
                item = e
            while not stop.is_set():
                try:
                    out.put(item, timeout=0.2)
                    break
                except queue.Full:
                    pass
            s += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = out.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()                                    # python aborts if it ends while a thread of its own wakes up


def eval_batches(s, codec, *, micro, T, limit=0, draws=4, dp=1, dp_rank=0, cp=1, cp_rank=0, past=0):
    """The documents of one split once, as (batch, counts); short last batches are padded with empty rows. Noise keyed by the row."""
    rows = list(pack_eval(s, T, limit))
    rows += [[]] * (-len(rows) % (micro * dp))
    for m in range(0, len(rows), micro * dp):
        keys = [(1, 0, m + dp_rank * micro + r) for r in range(micro)]
        yield collate([rows[k[2]] for k in keys], T, codec, draws, keys, cp, cp_rank, past)


def to_device(b, device, compute, codec, mesh, cfg):
    """A batch where and as the model computes; with experts also the kind of each position, for their load."""
    if device != 'cpu':
        doc = b['doc']
        b = {k: v.pin_memory().to(device, non_blocking=True) for k, v in b.items()}
        flash = compute == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0) and cfg.hd <= 256
        if flash and (mesh.cp.size == 1 or mesh.cp_mode == 'ring'):
            b['mask'] = flash_mask(doc, mesh, device)
    if compute == torch.float64:
        b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
    if cfg.n_expert:                                     # 0 text, 1 image, 2 audio, 3 padding
        b['kind'] = (b['ids'] == codec.sp['img']) + 2 * (b['ids'] == codec.sp['aud']) + 3 * (b['ids'] == codec.sp['pad'])
    return b
