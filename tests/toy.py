"""What several tests share: a small multimodal data set in memory, and batches of it."""
import numpy as np
import torch
from data.codec import Codec
from data.collate import collate
from data.loader import pack_train
from optim_zero import gather_rows
from parallel import all_gather_into, solo_mesh

codec = Codec('bytes')
PAST = 3                                                          # ids that n-gram memory sees before each: ngram=4


def documents(n=40, seed=0):
    """Short documents with text, pictures of several shapes (also two in one) and sounds; some segments or documents without weight."""
    rng = np.random.default_rng(seed)
    docs = []
    for i in range(n):
        text = bytes(rng.integers(97, 123, rng.integers(3, 12), np.uint8)).decode()
        image = lambda: ('image', rng.integers(0, 256, (8 * rng.integers(1, 4), 8 * rng.integers(1, 4), 3)).astype(np.uint8),
                         int(rng.random() < 0.7))
        audio = ('audio', rng.standard_normal((int(rng.integers(2, 6)), 128)).astype(np.float32), int(rng.random() < 0.7))
        doc = [[image(), ('text', text, 0)], [('text', text), image()], [audio, ('text', text)], [('text', 2 * text)],
               [image(), audio, ('text', text), image()], [('text', 9 * text, 0)]][i % 6]
        docs.append(doc + [('ids', [codec.sp['eot']], int(i % 6 < 5))])
    return docs


def shards(docs):
    """The same dict of arrays as shards.open_shards, in memory."""
    enc = [codec.encode(d) for d in docs]
    cat = lambda k: np.concatenate([e[k] for e in enc])
    at = np.cumsum([[0, 0, 0]] + [[len(e['ids']), len(e['patches']), len(e['frames'])] for e in enc], 0)
    return dict(ids=cat('ids'), w=cat('w'), patch=cat('patches'), rc=cat('rc'), frame=cat('frames').astype(np.float16),
                doc=at.astype(np.int64))


def whole(u, x):
    """A tensor as long as the span of a unit -> (n,), gathered over its group."""
    if u.stage == 0:
        return x
    y = x.new_empty(u.n)
    all_gather_into(y, x.contiguous(), u.group).wait()
    return y


def touched(table, g=solo_mesh().dpcp):
    """The gradient that backward passes left for a memory table, as a dense tensor."""
    return torch.zeros_like(table).index_add_(0, *gather_rows(table, g)) if table.pairs else torch.zeros_like(table)


def micros(sets, step, *, rows=8, micro=2, T=64, dp=1, dp_rank=0, cp=1, cp_rank=0, dtype=torch.float64, experts=False, seed=560):
    """
    The microbatches of one step for one rank, as train.py makes them: weights already divided by the global counts. The seed was searched
    for: in step 0 pictures and sounds straddle chunks, two rows are ignored altogether, some ranks of dp2 and dp4 have no sound or no
    picture (test_parallel.py looks that it stays so).
    """
    keys = [(seed, step, r) for r in range(rows)]
    packed = [pack_train(sets, None, T, k) for k in keys]
    counts = np.maximum(collate(packed, T, codec, 2, keys)[1], 1)
    mine, out = range(dp_rank * rows // dp, (dp_rank + 1) * rows // dp), []
    for m in range(0, len(mine), micro):
        at = list(mine[m:m + micro])
        b, _ = collate([packed[r] for r in at], T, codec, 2, [keys[r] for r in at], cp, cp_rank, PAST)
        for k, c in zip(('txt', 'img', 'aud'), counts):
            b[f'{k}_w'] /= c
        b = {k: v.to(dtype) if v.is_floating_point() else v for k, v in b.items()}
        if experts:
            b['kind'] = (b['ids'] == codec.sp['img']) + 2 * (b['ids'] == codec.sp['aud']) + 3 * (b['ids'] == codec.sp['pad'])
        out.append(b)
    return out
