"""
Shards on disk -> batches.

A data set is a folder  data/NAME/shards-TOKENIZER/  of raw little-endian arrays, one set per split, memory-mapped:
    SPLIT.ids.bin   uint16 / uint32 (N,)   token ids, placeholders included       SPLIT.w.bin   uint8 (N,)  learned as a target?
    SPLIT.patch.bin uint8 (P, 192)         image patches in order                 SPLIT.rc.bin  float32 (P, 2)  patch centres
    SPLIT.frame.bin float16 (F, 128)       audio frames in order                  SPLIT.doc.bin int64 (n + 1, 3)  offsets of each document
and meta.json (counts, tokenizer, licence). Only write_shards writes it, and renames it into place when it is whole.

A training row is a pure function of (seed, step, global row): nothing but `step` is needed to resume, and the rows of a step are
the same for every number of ranks. Targets are shifted here, so a split of the row along T needs no halo.
Payloads travel compactly: *_i are flat positions into this rank's (B, T), sorted; everything else has one entry per such position.
"""
import json, os, queue, shutil, sys, threading, time
from pathlib import Path
import numpy as np
import torch

PAD = 128                       # compact arrays are padded to a multiple of it
D, FRAME_D = 192, 128           # payload width of a position (8x8x3 patch); audio frames fill the first FRAME_D of it


# ---------------------------------------------------------------- shards

def shard_dir(name, codec, root=Path(__file__).resolve().parent):
    return Path(root) / name / ('shards-' + codec.name.replace(':', '_') + ('' if codec.n_loc == 64 else f'-{codec.n_loc}'))


def write_shards(out_dir, splits, codec, info):
    """Encode {'train': iterable of documents, 'val': ...} into out_dir; returns the meta dict. Half-made data never gets the final name."""
    out, tmp = Path(out_dir), Path(f'{out_dir}.tmp{os.getpid()}')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    meta = dict(info, tokenizer=codec.name, codec=codec.fingerprint(), splits={})
    dtype = np.uint16 if codec.n_vocab <= 65536 else np.uint32
    try:
        for split, docs in splits.items():
            files = {k: open(tmp / f'{split}.{k}.bin', 'wb') for k in ('ids', 'w', 'patch', 'rc', 'frame', 'doc')}
            at, n, n_text, t0, shown = np.zeros(3, np.int64), 0, 0, time.time(), 0.0
            files['doc'].write(at.tobytes())
            for doc in docs:
                e = codec.encode(doc)
                for key, a in (('ids', e['ids'].astype(dtype)), ('w', e['w']), ('patch', e['patches']), ('rc', e['rc']),
                               ('frame', e['frames'].astype(np.float16))):
                    files[key].write(np.ascontiguousarray(a).tobytes())
                at += (len(e['ids']), len(e['patches']), len(e['frames']))
                files['doc'].write(at.tobytes())
                n, n_text = n + 1, n_text + codec.n_bytes(e['ids'])
                if time.time() - shown > 0.5 and sys.stderr.isatty():
                    shown = time.time()
                    print(f'\r{out.parent.name} {split}: {n:,} documents, {at[0]:,} positions, {shown - t0:.0f} s ', end='',
                          file=sys.stderr)
            for f in files.values():
                f.flush(), os.fsync(f.fileno()), f.close()
            if sys.stderr.isatty():
                print('\r' + ' ' * 79, end='\r', file=sys.stderr)
            meta['splits'][split] = dict(documents=n, positions=int(at[0]), patches=int(at[1]), frames=int(at[2]), text_bytes=int(n_text))
        (tmp / 'meta.json').write_text(json.dumps(meta, indent=1))
        if out.exists():                                 # aside first: what has the final name is whole at every moment
            os.rename(out, f'{tmp}.old')
        os.rename(tmp, out)
    finally:
        if not out.exists() and Path(f'{tmp}.old').exists():     # stopped between the two renames
            os.rename(f'{tmp}.old', out)
        for old in (tmp, Path(f'{tmp}.old')):
            shutil.rmtree(old, ignore_errors=True)
    for split, s in meta['splits'].items():
        print(f"{out.parent.name} {split}: {s['documents']:,} documents, {s['positions']:,} positions "
              f"({s['patches']:,} patches, {s['frames']:,} frames, {s['text_bytes']:,} bytes of text)")
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB; source: {info.get('source')}; licence: {info.get('licence')}; "
          f"skipped: {info.get('skipped') or 'none'}")
    return meta


def open_shards(out_dir, split, codec):
    """One split of one data set as a dict of memory-mapped arrays. Raises ValueError, one line, if it was made by another codec."""
    out, s = Path(out_dir), {}
    try:
        s['meta'] = meta = json.loads((out / 'meta.json').read_text())
        if meta['codec'] != codec.fingerprint():
            raise RuntimeError(f"{out} was prepared with another tokenizer ({meta['tokenizer']}, fingerprint {meta['codec']}): "
                               'delete that folder to prepare it again')
        if split not in meta['splits']:
            raise RuntimeError(f"{out} has no split {split}: it has {', '.join(meta['splits'])}")
        size = meta['splits'][split]
        for k, dt, width, n in (('ids', np.uint16 if codec.n_vocab <= 65536 else np.uint32, 0, size['positions']),
                                ('w', np.uint8, 0, size['positions']),
                                ('patch', np.uint8, D, size['patches']), ('rc', np.float32, 2, size['patches']),
                                ('frame', np.float16, FRAME_D, size['frames']), ('doc', np.int64, 3, size['documents'] + 1)):
            f = out / f'{split}.{k}.bin'
            if f.stat().st_size != n * max(width, 1) * np.dtype(dt).itemsize:
                raise ValueError(f'{f.name} has {f.stat().st_size} bytes, {n * max(width, 1) * np.dtype(dt).itemsize} expected')
            a = np.memmap(f, dt, 'r').view(np.ndarray) if n else np.zeros(0, dt)            # plain arrays slice faster
            s[k] = a.reshape(-1, width) if width else a
    except RuntimeError as e:
        raise ValueError(str(e)) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f'{out} is damaged ({" ".join(str(e).split()) or type(e).__name__}): delete that folder to prepare it again') from None
    return s


# ---------------------------------------------------------------- rows

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


def loc_rc(ids, codec):
    """
    ids (..., T) -> (..., T, 2): a loc token says its value as `row` in the features that patches have too, and the loc token before it as
    `column`: the y of a point (x, y) has the features of the patch that it lies in. -1 where there is none.
    """
    v = np.where(ids >= codec.loc0, (ids - codec.loc0 + np.float32(0.5)) / np.float32(codec.n_loc), np.float32(-1))
    before = np.concatenate([np.full_like(v[..., :1], -1), v[..., :-1]], -1)
    return np.stack([v, np.where(v >= 0, before, np.float32(-1))], -1)


def collate(rows, T, codec, draws, keys, cp=1, cp_rank=0, past=0):
    """
    Chunks of B rows -> a batch for one context-parallel rank (cp = 1: whole rows), as torch tensors:
        ids (B, Tl), pos (B, Tl) int64; doc (B, T) int32, whole rows, -1 padding (attention masks need the other ranks' documents too)
        past (B, Tl, past) int64: the ids before each, of its document in this row, the nearest first; -1: none
        txt_i (N,) positions with a text target, txt_y (N,) ids, txt_w (N,)     likewise img_* and aud_*: y (N, D), e (N, draws, D), t (N,
        draws) xin_img_i (N,), xin_img (N, D) patches as input; xin_aud_i, xin_aud; rc_i (N,), rc (N, 4) own and next centre of patches,
        loc_rc() of loc tokens; -1: none
    Compact arrays are padded to a multiple of PAD with entries that add nothing (position 0, weight 0, payload 0).
    Also returns the counts of targets of the *whole* rows, (text, image, audio, bytes of text).  keys: per row the key of its flow noise
    and times.
    """
    B, img, aud, eoi = len(rows), codec.sp['img'], codec.sp['aud'], codec.sp['eoi']
    ids, tgt = np.full((B, T), codec.sp['pad'], np.int64), np.full((B, T), codec.sp['pad'], np.int64)
    w, pos, doc = np.zeros((B, T), np.uint8), np.zeros((B, T), np.int64), np.full((B, T), -1, np.int32)
    rc = np.full((B, T, 4), -1, np.float32)
    out = {k: [] for k in ('xin_img_i', 'xin_img', 'xin_aud_i', 'xin_aud', 'img_i', 'img_y', 'aud_i', 'aud_y')}
    for b, chunks in enumerate(rows):
        at = 0
        for k, (s, d, first, n) in enumerate(chunks):
            lo, p0, f0 = (int(v) for v in s['doc'][d])
            a = s['ids'][lo + first:lo + first + n + 1].astype(np.int64)
            ids[b, at:at + n], tgt[b, at:at + n] = a[:-1], a[1:]
            w[b, at:at + n] = s['w'][lo + first + 1:lo + first + n + 1]
            pos[b, at:at + n], doc[b, at:at + n] = np.arange(n), k
            for kind, ph, data, off in (('img', img, s['patch'], p0), ('aud', aud, s['frame'], f0)):
                if len(data) == 0:
                    continue
                where = np.flatnonzero(a == ph)          # windows of long documents have none; whole documents start at payload `off`
                if len(where) == 0:
                    continue
                v = np.zeros((len(where), D), np.float32)
                raw = data[off:off + len(where)]
                v[:, :raw.shape[1]] = raw / np.float32(127.5) - 1 if kind == 'img' else raw
                own, nxt = where < n, where > 0          # as inputs, as targets
                out[f'xin_{kind}_i'].append(b * T + at + where[own]), out[f'xin_{kind}'].append(v[own])
                out[f'{kind}_i'].append(b * T + at + where[nxt] - 1), out[f'{kind}_y'].append(v[nxt])
                if kind == 'img':
                    c = s['rc'][off:off + len(where)]
                    rc[b, at + where[own], :2], rc[b, at + where[nxt] - 1, 2:] = c[own], c[nxt]
            at += n
    before = np.full((B, T, past), -1, np.int64)
    for k in range(1, min(past, T - 1) + 1):
        before[:, k:, k - 1] = np.where(pos[:, k:] >= k, ids[:, :-k], -1)
    at_loc = loc_rc(ids, codec)
    at_loc[pos == 0, 1] = -1                             # what comes before belongs to another document
    rc[..., :2] = np.where((ids >= codec.loc0)[..., None], at_loc, rc[..., :2])
    cat = lambda k, width: np.concatenate(out[k]) if out[k] else np.zeros((0, width) if width else 0, np.float32 if width else np.int64)
    g = {k: cat(k, 0 if k.endswith('_i') else D) for k in out}
    learn = w.reshape(-1) > 0
    is_txt = learn & (tgt.reshape(-1) != img)
    g['txt_i'] = np.flatnonzero(is_txt)
    g['txt_y'] = tgt.reshape(-1)[g['txt_i']]
    for kind in ('img', 'aud'):
        keep = learn[g[f'{kind}_i']]
        g[f'{kind}_i'], g[f'{kind}_y'] = g[f'{kind}_i'][keep], g[f'{kind}_y'][keep]
        n_row = np.bincount(g[f'{kind}_i'] // T, minlength=B)
        e, t = [np.zeros((0, draws, D), np.float32)], [np.zeros((0, draws), np.float32)]
        for b in np.flatnonzero(n_row):                  # drawn for the whole row, then sliced: never depends on the layout
            rng = np.random.Generator(np.random.Philox(key=keys[b][0] * 1000003 + (11 if kind == 'img' else 13),
                                                       counter=[0, 0, keys[b][1], keys[b][2]]))
            e.append(rng.standard_normal((n_row[b], draws, D), np.float32))
            t.append(1 / (1 + np.exp(-rng.standard_normal((n_row[b], draws), np.float32))))
        g[f'{kind}_e'], g[f'{kind}_t'] = np.concatenate(e), np.concatenate(t)
    g['rc_i'] = np.flatnonzero((rc >= 0).any(-1).reshape(-1))
    g['rc'] = rc.reshape(-1, 4)[g['rc_i']]
    counts = np.array([len(g['txt_i']), len(g['img_i']), len(g['aud_i']), codec.n_bytes(g['txt_y'])], np.float64)
    if cp > 1:                                           # zigzag: of 2 cp chunks this rank holds number cp_rank and its mirror image
        h = T // (2 * cp)
        cols = np.r_[cp_rank * h:(cp_rank + 1) * h, T - (cp_rank + 1) * h:T - cp_rank * h]
        new = np.full(T, -1)
        new[cols] = np.arange(2 * h)
        for name in ('xin_img', 'xin_aud', 'img', 'aud', 'txt', 'rc'):
            i = g[f'{name}_i']
            keep = new[i % T] >= 0
            for k in [k for k in g if k == name or (k.startswith(name + '_') and k != f'{name}_i')]:
                g[k] = g[k][keep]
            i = i[keep]
            g[f'{name}_i'] = i // T * (2 * h) + new[i % T]
            order = np.argsort(g[f'{name}_i'], kind='stable')
            for k in [k for k in g if k == name or k.startswith(name + '_')]:
                g[k] = g[k][order]
        ids, pos, before = ids[:, cols], pos[:, cols], before[:, cols]
    for name in ('txt', 'img', 'aud'):
        g[f'{name}_w'] = np.ones(len(g[f'{name}_i']), np.float32)
    for name in ('xin_img', 'xin_aud', 'img', 'aud', 'txt', 'rc'):                 # few different sizes, so that kernels are made once;
        # padding adds nothing: weight and payload 0, no coordinates
        for k in [k for k in g if k == name or k.startswith(name + '_')]:
            n = -len(g[k]) % PAD
            if n:
                g[k] = np.concatenate([g[k], np.full((n, *g[k].shape[1:]), -1 if k == 'rc' else 0, g[k].dtype)])
    g.update(ids=ids, pos=pos, doc=doc, **({'past': before} if past else {}))
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in g.items()}, counts


# ---------------------------------------------------------------- batches

def train_batches(sets, weights, codec, *, seed, step, rows, micro, T, draws=4, dp=1, dp_rank=0, cp=1, cp_rank=0, past=0):
    """
    Endless generator of (step, [microbatch, ...], counts of this dp rank), from `step` on, made one step ahead by a thread.
    rows: global rows per step; each dp rank takes rows/dp adjacent ones in microbatches of `micro` rows.
    """
    weights = np.array(weights, np.float64) / sum(weights)
    mine = range(dp_rank * rows // dp, (dp_rank + 1) * rows // dp)
    out, stop = queue.Queue(2), threading.Event()

    def work():
        s = step
        while not stop.is_set():
            try:
                batch, counts = [], 0
                for m in range(0, len(mine), micro):
                    keys = [(seed, s, r) for r in mine[m:m + micro]]
                    b, c = collate([pack_train(sets, weights, T, k) for k in keys], T, codec, draws, keys, cp, cp_rank, past)
                    batch.append(b)
                    counts = counts + c
                item = (s, batch, counts)
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
