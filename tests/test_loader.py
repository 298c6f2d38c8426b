"""Shards and batches: hand-written documents literally, rows as a function of (seed, step, row), context-parallel slices, damage."""
import json
import multiprocessing.connection
import os
import re
import select
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from data.codec import Codec
from data.collate import collate
from data.loader import eval_batches, pack_eval, pack_train, remarks, train_batches
from data.media import FRAME_D, BadInput
from data.shards import mixture, open_shards, shard_dir, write_shards
from data.workers import _read, ahead, made
from parallel import zigzag
from toy import codec

sp, L = codec.sp, codec.loc0
ARRAYS = ('ids', 'w', 'patch', 'rc', 'frame', 'doc')


def whole(s, d):
    return s, d, 0, int(s['doc'][d + 1, 0] - s['doc'][d, 0]) - 1


def live(b, name):
    """The entries of a compact array that are no padding, as {key: tensor}."""
    n = len(b[f'{name}_i'])
    if f'{name}_w' in b:
        n = int(b[f'{name}_w'].sum())
    elif n:
        n = n - next((k for k in range(n) if not padding(b, name, n - 1 - k)), n)
    return {k: b[k][:n] for k in b if k == name or k.startswith(name + '_')}


def padding(b, name, k):
    return b[f'{name}_i'][k] == 0 and (b[name][k] == (-1 if name == 'rc' else 0)).all()


def within(seconds, work):
    """work() in a thread: its value or exception; fails instead of waiting for ever."""
    out = []
    def run():
        try:
            out.append((work(), None))
        except BaseException as e:
            out.append((None, e))
    t = threading.Thread(target=run, daemon=True)
    t.start()
    t.join(seconds)
    assert out, f'no answer in {seconds} s'
    if out[0][1]:
        raise out[0][1]
    return out[0][0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- one document, literally

def test_a_hand_written_document_literally():
    rng = np.random.default_rng(0)
    image, frames = rng.integers(0, 256, (8, 16, 3)).astype(np.uint8), rng.standard_normal((2, 128)).astype(np.float16).astype(np.float32)
    s = toy.shards([[('text', 'hi', 0), ('image', image), ('audio', frames), ('text', 'b'), ('ids', [sp['eot']])]])
    key = (9, 4, 2)
    b, counts = collate([[whole(s, 0)]], 16, codec, 3, [key])
    # position                    0    1    2          3      4      5          6          7          8          9          10         11   
    #      12   (13)
    assert b['ids'].tolist() == [[104, 105, sp['boi'], L + 1, L + 2, sp['img'], sp['img'], sp['eoi'], sp['boa'], sp['aud'], sp['aud'],
                                  sp['eoa'], 98]
                                 + [sp['pad']] * 3]
    assert b['pos'].tolist() == [[*range(13), 0, 0, 0]] and b['doc'].tolist() == [[0] * 13 + [-1] * 3]
    # learned ids: not 'i' (weight 0), no placeholders of patches, not <eoi> (forced), but [aud] and <eoa>
    n = 9
    assert b['txt_i'][:n].tolist() == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    assert b['txt_y'][:n].tolist() == [sp['boi'], L + 1, L + 2, sp['boa'], sp['aud'], sp['aud'], sp['eoa'], 98, sp['eot']]
    assert b['txt_w'].tolist() == [1] * n + [0] * (128 - n)
    pixels = torch.from_numpy(np.stack([image[:, :8].reshape(-1), image[:, 8:].reshape(-1)]) / np.float32(127.5) - 1)
    # the first patch from the last header token
    assert b['img_i'][:2].tolist() == [4, 5] and torch.equal(b['img_y'][:2], pixels)
    assert b['xin_img_i'][:2].tolist() == [5, 6] and torch.equal(b['xin_img'][:2], pixels)
    wide = torch.zeros(2, 192)
    wide[:, :128] = torch.from_numpy(frames)
    assert b['aud_i'][:2].tolist() == [8, 9] and torch.equal(b['aud_y'][:2], wide)
    assert b['xin_aud_i'][:2].tolist() == [9, 10] and torch.equal(b['xin_aud'][:2], wide)
    for k in ('img', 'aud'):
        assert b[f'{k}_w'].tolist() == [1, 1] + [0] * 126 and b[f'{k}_e'].shape == (128, 3, 192) and b[f'{k}_t'].shape == (128, 3)
    one, two = 1.5 / 64, 2.5 / 64                                     # the header's values; the second has the one before it as column
    assert b['rc_i'][:4].tolist() == [3, 4, 5, 6]
    assert b['rc'][:4].tolist() == [[one, -1, -1, -1], [two, one, 0.5, 0.25], [0.5, 0.25, 0.5, 0.75], [0.5, 0.75, -1, -1]]
    assert counts.tolist() == [9, 2, 2, 1]                            # targets, and one byte of text
    for name in ('txt', 'img', 'aud', 'rc', 'xin_img', 'xin_aud'):    # padding adds nothing
        for k, v in b.items():
            if k == name or k.startswith(name + '_'):
                assert len(v) == 128 and (v[n if name == 'txt' else 4 if name == 'rc' else 2:] == (-1 if k == 'rc' else 0)).all(), k


def test_past_ids_are_those_of_the_document():
    """The nearest first; -1 before a document's first id in the row, and for padding."""
    s = toy.shards([[('text', 'abcd')], [('text', 'xyz')]])
    b, _ = collate([[(s, 0, 1, 2), whole(s, 1)]], 6, codec, 1, [(1, 0, 0)], past=2)       # a window: 'bc', then 'xy'
    assert b['ids'].tolist() == [[98, 99, 120, 121, sp['pad'], sp['pad']]]
    assert b['past'].tolist() == [[[-1, -1], [98, -1], [-1, -1], [120, -1], [-1, -1], [-1, -1]]]
    b, _ = collate([[whole(s, 0)]], 3, codec, 1, [(1, 0, 0)], past=5)                     # more than the row has
    assert b['past'].tolist() == [[[-1] * 5, [97] + [-1] * 4, [98, 97] + [-1] * 3]]
    assert 'past' not in collate([[whole(s, 0)]], 3, codec, 1, [(1, 0, 0)])[0]


def test_two_documents_in_a_row_and_two_rows():
    """Positions restart, documents are numbered, a document's last position is no input, flat positions count rows."""
    s = toy.shards([[('text', 'abc')], [('audio', np.ones((1, 128), np.float32))], [('text', 'xy')]])
    b, counts = collate([[whole(s, 0), whole(s, 1)], [whole(s, 2)]], 5, codec, 1, [(1, 0, 0), (1, 0, 1)])
    assert b['ids'].tolist() == [[97, 98, sp['boa'], sp['aud'], sp['pad']], [120] + [sp['pad']] * 4]
    assert b['pos'].tolist() == [[0, 1, 0, 1, 0], [0] * 5] and b['doc'].tolist() == [[0, 0, 1, 1, -1], [0, -1, -1, -1, -1]]
    assert b['txt_i'][:5].tolist() == [0, 1, 2, 3, 5] and b['txt_y'][:5].tolist() == [98, 99, sp['aud'], sp['eoa'], 121]
    assert b['aud_i'][:1].tolist() == [2] and b['xin_aud_i'][:1].tolist() == [3] and counts.tolist() == [5, 0, 1, 3]
    for t in b.values():
        assert t.dtype in (torch.int64, torch.int32, torch.float32)


def test_a_lit_pixel_arrives_where_it_belongs():
    """Row 11, column 17, blue, of a 16x24 picture: patch (1, 2), pixel (3, 1)."""
    image = np.zeros((16, 24, 3), np.uint8)
    image[11, 17, 2] = 255
    s = toy.shards([[('text', 'q', 0), ('image', image)]])
    b, _ = collate([[whole(s, 0)]], 16, codec, 1, [(1, 0, 0)])
    want = torch.full((6, 192), -1.0)
    want[1 * 3 + 2, (3 * 8 + 1) * 3 + 2] = 1.0
    first = 4                                                         # q <boi> 2 3 [img] ..
    assert torch.equal(b['xin_img'][:6], want) and b['xin_img_i'][:6].tolist() == list(range(first, first + 6))
    assert torch.equal(b['img_y'][:6], want) and b['img_i'][:6].tolist() == list(range(first - 1, first + 5))
    rc = dict(zip(b['rc_i'].tolist(), b['rc'].tolist()))
    assert rc[first + 5] == pytest.approx([0.75, 5 / 6, -1, -1]) and rc[first + 4] == pytest.approx([0.75, 0.5, 0.75, 5 / 6])


def test_a_crop_keeps_the_coordinates_of_its_source():
    s = toy.shards([[('text', 'q', 0), ('image', np.zeros((8, 16, 3), np.uint8), 0, (0.5, 0.25, 1.0, 0.75))]])
    b, counts = collate([[whole(s, 0)]], 16, codec, 1, [(1, 0, 0)])
    assert dict(zip(b['rc_i'].tolist(), b['rc'].tolist()))[4] == [0.5, 0.625, 0.5, 0.875]
    assert counts.tolist() == [0, 0, 0, 0] and len(b['img_i']) == 0 and b['xin_img_i'][:2].tolist() == [4, 5]       # seen, not learned


def test_a_row_that_ends_inside_a_picture():
    """What is cut off is no input; the last target's value still is a target."""
    image = np.arange(8 * 32 * 3).reshape(8, 32, 3).astype(np.uint8)
    s = toy.shards([[('image', image), ('text', 'after')]])
    b, _ = collate([[(s, 0, 0, 5)]], 5, codec, 1, [(1, 0, 0)])        # <boi> 1 4 [img] [img] | [img] [img] ..
    assert b['ids'].tolist() == [[sp['boi'], L + 1, L + 4, sp['img'], sp['img']]]
    assert live(b, 'xin_img')['xin_img_i'].tolist() == [3, 4] and live(b, 'img')['img_i'].tolist() == [2, 3, 4]
    patches = torch.from_numpy(s['patch'][:3] / np.float32(127.5) - 1)
    assert torch.equal(live(b, 'img')['img_y'], patches) and torch.equal(live(b, 'xin_img')['xin_img'], patches[:2])


# ---------------------------------------------------------------- rows

@pytest.fixture(scope='module')
def sets():
    return [toy.shards(toy.documents(30)), toy.shards([[('text', ' '.join(map(str, range(200))))], [('text', 'short')]])]


def rows_of(sets, steps, **kw):
    """{(step, global row): that row's part of the batch} through train_batches, for every dp rank."""
    out, dp = {}, kw.get('dp', 1)
    options = dict(seed=5, step=0, rows=8, micro=2, T=112, draws=2) | kw
    for rank in range(dp):
        loader = train_batches(sets, [1, 3], codec, dp_rank=rank, **options)
        for _ in range(steps):
            s, micros, counts = within(60, loader.__next__)
            total = 0
            for m, b in enumerate(micros):
                assert b['ids'].shape == (options['micro'], 112)
                for r in range(options['micro']):
                    out[s, rank * 8 // dp + m * options['micro'] + r] = one_row(b, r, 112)
                total += np.array([b[f'{k}_w'].sum() for k in ('txt', 'img', 'aud')])
            assert counts[:3].tolist() == total.tolist()
        loader.close()
    return out


def one_row(b, r, T):
    """Row r of a batch, flat positions counted from its beginning."""
    out = {k: b[k][r] for k in ('ids', 'pos', 'doc')}
    for name in ('txt', 'img', 'aud', 'rc', 'xin_img', 'xin_aud'):
        part = live(b, name)
        mine = part[f'{name}_i'] // T == r
        out |= {k: v[mine] - (r * T if k.endswith('_i') else 0) for k, v in part.items()}
    return out


def test_rows_are_the_same_for_every_number_of_ranks(sets):
    """And for every size of microbatch: noise and times of the flow heads, too."""
    want = rows_of(sets, 2)
    assert len(want) == 16 and any(len(r['img_t']) for r in want.values()) and any(len(r['aud_t']) for r in want.values())
    assert len({r['ids'].numpy().tobytes() for r in want.values()}) == 16            # all differ
    noise = [r['img_e'][0, 0] for r in want.values() if len(r['img_e'])] + [r['aud_e'][0, 0] for r in want.values() if len(r['aud_e'])]
    assert len({e.numpy().tobytes() for e in noise}) == len(noise)
    for kw in (dict(dp=2), dict(dp=4), dict(micro=1), dict(micro=8), dict(dp=4, micro=1)):
        got = rows_of(sets, 2, **kw)
        assert got.keys() == want.keys() and all(same(got[k], want[k]) for k in want), kw
    assert not same(rows_of(sets, 1, seed=6)[0, 0], want[0, 0])


def test_a_restart_goes_on_where_it_stopped(sets):
    want = rows_of(sets, 4)
    got = rows_of(sets, 2, step=2)
    assert got.keys() == {k for k in want if k[0] >= 2} and all(same(got[k], want[k]) for k in got)


def test_rows_are_full_and_documents_whole(sets):
    """A row holds whole documents, or windows of long text; little is left over."""
    T, used, seen = 112, 0, set()
    for r in range(400):
        chunks = pack_train(sets, np.array([0.9, 0.1]), T, (1, 0, r))
        total = sum(n for *_, n in chunks)
        assert 0 < total <= T
        used += total
        for s, d, first, n in chunks:
            length = int(s['doc'][d + 1, 0] - s['doc'][d, 0]) - 1
            assert (first, n) == (0, length) or (s is sets[1] and d == 0 and length > T and 0 <= first <= length - n)
            seen.add((s is sets[1], d))
    assert used > 0.85 * 400 * T and len(seen) == 32                  # every document comes up


def test_the_mixture_follows_its_weights(sets):
    """By documents drawn: with weights 1 to 3 a quarter comes from the first set."""
    few = [toy.shards([[('text', 'aaaa')]]), toy.shards([[('text', 'bbbb')]])]
    n = [0, 0]
    for r in range(300):
        for s, *_ in pack_train(few, np.array([0.25, 0.75]), 40, (1, 0, r)):
            n[s is few[1]] += 1
    assert n[0] / sum(n) == pytest.approx(0.25, abs=0.03)


def test_windows_of_long_text_reach_both_ends():
    s = toy.shards([[('text', bytes(range(32, 127)).decode())]])
    firsts = [pack_train([s], None, 64, (1, 0, r))[0][2:] for r in range(300)]
    assert min(firsts) == (0, 64) and max(firsts) == (94 - 64, 64)
    b, _ = collate([[(s, 0, 30, 64)]], 64, codec, 1, [(1, 0, 0)])
    assert b['ids'][0].tolist() == list(range(62, 126)) and b['txt_y'][:64].tolist() == list(range(63,
        127)) and b['pos'][0].tolist() == list(range(64))


def test_empty_and_one_token_documents_are_harmless():
    s = toy.shards([[], [('text', 'x')], [('text', 'abcdef')]])
    for r in range(20):
        chunks = pack_train([s], None, 32, (1, 0, r))
        assert sum(n for *_, n in chunks) <= 32
        b, counts = collate([chunks], 32, codec, 1, [(1, 0, r)])
        assert counts[0] > 0


def test_errors_of_the_thread_reach_the_reader(sets):
    broken = dict(sets[0], w=None)
    loader = train_batches([broken], [1], codec, seed=1, step=0, rows=2, micro=2, T=48)
    with pytest.raises(TypeError):
        within(60, loader.__next__)


def test_closing_ends_the_thread(sets):
    before = set(threading.enumerate())
    loader = train_batches(sets, [1, 1], codec, seed=1, step=0, rows=2, micro=2, T=48)
    next(loader)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 1
    loader.close()
    assert not mine.pop().is_alive()


def test_processes_make_what_the_thread_makes(sets):
    want, got = (train_batches(sets, [1] * len(sets), codec, seed=3, step=5, rows=4, micro=2, T=64, past=2, workers=w) for w in (0, 3))
    for s in range(5, 17):                                             # each of them has to use its places again
        (i, a, m), (j, b, n) = next(want), next(got)
        assert i == j == s and (m == n).all()
        for x, y in zip(a, b, strict=True):
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
    want.close(), got.close()
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_in_the_middle_of_a_message():
    """What it began to send is no message, and the error says that it died, not what the pipe thinks of it."""
    end, pipe = multiprocessing.Pipe()
    os.write(pipe.fileno(), struct.pack('!i', 100) + b'x' * 10)
    pipe.close()
    with pytest.raises(EOFError):
        _read(end)


def test_errors_of_the_processes_reach_the_reader(sets):
    def make(s):
        if s == 7:
            raise IndexError('of step 7')
        return s, [dict(x=torch.arange(s))], s
    batches = ahead(make, 0, 1, 4096)
    for s in range(7):
        i, (b,), rest = next(batches)
        assert i == rest == s and torch.equal(b['x'], torch.arange(s))
        if s == 6:                                     # it was made long ago: if its process ended then, what is sent to it now fails
            multiprocessing.connection.wait([p.sentinel for p in multiprocessing.active_children()], 1)
    with pytest.raises(IndexError, match='of step 7'):
        next(batches)
    batches = train_batches(sets, [1] * len(sets), codec, seed=3, step=0, rows=4, micro=2, T=64, workers=2)
    next(batches)
    for p in multiprocessing.active_children():
        p.kill(), p.join()
    with pytest.raises(RuntimeError, match='workers=0'):
        for _ in range(9):
            next(batches)
    assert not multiprocessing.active_children()

    def document(i):
        if i == 120:
            raise BadInput('number 120')
        return i
    documents = made(document, 200, 2)
    with pytest.raises(BadInput, match='number 120'):
        assert [next(documents) for _ in range(100)] == [*range(100)] and next(documents)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('end, status', [('os.kill(os.getpid(), signal.SIGKILL)', -9), ('sys.exit(3)', 3),
                                         ('os.killpg(0, signal.SIGTERM); print(next(g)[0], flush=True); sys.exit(4)', 4)])
def test_processes_end_with_their_parent(end, status):
    """Killed, as the kernel does it for want of memory; without closing anything; and not before it, when a signal is meant for all."""
    code = f"""
import os, signal, sys
from data.workers import ahead
signal.signal(signal.SIGTERM, lambda *a: None)
g = ahead(lambda s: (s, [], os.getpid()), 0, 3, 64)
print(*(next(g)[2] for _ in range(3)), flush=True)
sys.stdin.read()
{end}"""
    run = subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).resolve().parents[1], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, text=True, start_new_session=True)
    pids = [int(x) for x in run.stdout.readline().split()]
    assert len(set(pids)) == 3
    ends = [os.pidfd_open(p) for p in pids]
    run.stdin.close()
    assert run.stdout.read().split() == ['3'] * (status == 4) and run.wait() == status
    for e in ends:
        assert select.select([e], [], [], 60)[0], 'a process is left'
        os.close(e)


# ---------------------------------------------------------------- context parallel slices

@pytest.mark.parametrize('cp', [2, 4])
def test_slices_together_are_the_whole(sets, cp):
    T, B = 128, 3
    keys = [(1, 0, r) for r in range(B)]
    rows = [pack_train(sets, np.array([0.9, 0.1]), T, k) for k in keys]
    b, counts = collate(rows, T, codec, 2, keys, past=3)
    assert counts[1] > 8 and counts[2] > 8
    got = {}
    for rank in range(cp):
        c, its = collate(rows, T, codec, 2, keys, cp, rank, 3)
        cols = zigzag(T, cp, rank)
        assert its.tolist() == counts.tolist() and torch.equal(c['doc'], b['doc'])       # global counts, whole rows of documents
        assert torch.equal(c['ids'], b['ids'][:, cols]) and all(torch.equal(c[k], b[k][:, cols]) for k in ('pos', 'past'))
        for name in ('txt', 'img', 'aud', 'rc', 'xin_img', 'xin_aud'):
            part, n = live(c, name), T // cp
            assert (part[f'{name}_i'].diff() > 0).all()               # sorted
            for j, i in enumerate(part.pop(f'{name}_i').tolist()):
                at = i // n * T + int(cols[i % n])
                assert (name, at) not in got
                got[name, at] = {k: v[j] for k, v in part.items()}
    want = {}
    for name in ('txt', 'img', 'aud', 'rc', 'xin_img', 'xin_aud'):
        part = live(b, name)
        for j, at in enumerate(part.pop(f'{name}_i').tolist()):
            want[name, at] = {k: v[j] for k, v in part.items()}
    assert got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)


# ---------------------------------------------------------------- evaluation

def test_evaluation_covers_every_document_once():
    docs = toy.documents(23) + [[('text', 'abcdefgh' * 40)], [('text', 'end')]]
    s, T = toy.shards(docs), 120
    enc = [codec.encode(d) for d in docs]
    want = np.zeros(4)
    for e in enc:
        t, w = e['ids'][1:], e['w'][1:] > 0
        want += (np.sum(w & (t != sp['img'])), np.sum(w & (t == sp['img'])), np.sum(w & (t == sp['aud'])), np.sum(w & (t < 256)))
    for dp, micro in ((1, 4), (1, 1), (2, 2), (3, 4)):
        total, ids = np.zeros(4), []
        ranks = [list(eval_batches(s, codec, micro=micro, T=T, draws=1, dp=dp, dp_rank=r)) for r in range(dp)]
        assert len({len(x) for x in ranks}) == 1                      # as many batches everywhere: nobody waits
        for batches in zip(*ranks):
            for b, counts in batches:
                assert b['ids'].shape == (micro, T)
                assert [b[f'{k}_w'].sum() for k in ('txt', 'img', 'aud')] == counts[:3].tolist()
                total += counts
                ids += b['ids'][b['doc'] >= 0].tolist()
        assert total.tolist() == want.tolist()
        assert ids == [i for e in enc for i in e['ids'][:-1].tolist()]                   # in order, each position once


def test_evaluation_windows_are_adjacent_and_limits_hold():
    s = toy.shards([[('text', 'ab')], [('text', 'x' * 95)], [('text', 'cd')], [('text', 'ef')]])
    rows = [[(d, first, n) for _, d, first, n in row] for row in pack_eval(s, 40)]
    assert [c for r in rows for c in r] == [(0, 0, 1), (1, 0, 40), (1, 40, 40), (1, 80, 14), (2, 0, 1), (3, 0, 1)]
    assert all(sum(n for *_, n in r) <= 40 for r in rows)
    assert {d for row in pack_eval(s, 40, limit=2) for _, d, *_ in row} == {0, 1}


def test_evaluation_noise_repeats():
    s = toy.shards(toy.documents(8))
    a, b = ([x for x, _ in eval_batches(s, codec, micro=2, T=64)] for _ in range(2))
    assert len(a) > 1 and all(same(x, y) for x, y in zip(a, b))


# ---------------------------------------------------------------- shards

INFO = dict(source='nowhere', licence='MIT', skipped={})


def test_shards_read_back_what_was_written(tmp_path, capsys):
    docs = toy.documents(12)
    meta = write_shards(tmp_path / 'toy' / 'shards', {'train': iter(docs), 'val': docs[:3]}, codec, INFO)
    for split, part in (('train', docs), ('val', docs[:3])):
        s, want = open_shards(tmp_path / 'toy' / 'shards', split, codec), toy.shards(part)
        for k in ARRAYS:
            assert s[k].shape == want[k].shape and (s[k] == want[k]).all(), (split, k)
        text = sum(codec.n_bytes(codec.encode(d)['ids']) for d in part)
        assert meta['splits'][split] == dict(documents=len(part), positions=len(want['ids']), patches=len(want['patch']),
                                              frames=len(want['frame']), text_bytes=text)
    assert meta['licence'] == 'MIT' and json.loads((tmp_path / 'toy' / 'shards' / 'meta.json').read_text()) == meta
    said = capsys.readouterr().out
    assert '12 documents' in said and 'MIT' in said and 'nowhere' in said
    assert os.listdir(tmp_path / 'toy') == ['shards']


def test_shards_without_pictures_and_of_large_vocabularies(tmp_path):
    wide = Codec('bytes', n_loc=70000)                                # ids beyond 16 bits
    write_shards(tmp_path / 's', {'train': [[('text', 'no pictures'), ('ids', [wide.loc0 + 69999])]]}, wide, INFO)
    s = open_shards(tmp_path / 's', 'train', wide)
    assert s['ids'][-1] == wide.n_vocab - 1 > 65535 and s['patch'].shape == (0, 192) and s['frame'].shape == (0,
        FRAME_D) and s['rc'].shape == (0, 2)
    assert shard_dir('x', wide) != shard_dir('x', codec)
    b, counts = collate([[whole(s, 0)]], 16, wide, 1, [(1, 0, 0)])
    assert counts.tolist() == [11, 0, 0, 10]


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing_half_made(tmp_path, stop):
    def docs(n):
        yield from toy.documents(n)
        raise stop
    out = tmp_path / 'shards'
    with pytest.raises(stop):
        write_shards(out, {'train': docs(7)}, codec, INFO)
    assert os.listdir(tmp_path) == []
    write_shards(out, {'train': toy.documents(5)}, codec, INFO)      # with good data in place, an interrupted renewal leaves that
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(stop):
        write_shards(out, {'train': docs(7)}, codec, INFO)
    assert os.listdir(tmp_path) == ['shards'] and {p.name: p.read_bytes() for p in out.iterdir()} == before
    write_shards(out, {'train': toy.documents(6)}, codec, INFO)      # and a whole one replaces it
    assert os.listdir(tmp_path) == ['shards'] and len(open_shards(out, 'train', codec)['doc']) == 7


def test_stopped_between_the_renames_one_data_set_survives(tmp_path, monkeypatch):
    out = tmp_path / 'shards'
    write_shards(out, {'train': toy.documents(5)}, codec, INFO)
    rename, calls = os.rename, []
    def stop(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(a, b)
    monkeypatch.setattr(os, 'rename', stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(out, {'train': toy.documents(6)}, codec, INFO)
    assert out.exists()


@pytest.mark.parametrize('there', ['thesis.tex', 'val/0.bin', ''])
def test_a_folder_of_something_else_is_not_replaced(tmp_path, there):
    """A user's own, or a file; an empty folder is."""
    out = tmp_path / 'mine'
    (out / there).parent.mkdir(parents=True, exist_ok=True)
    (out / there).write_text('years of work')
    with pytest.raises(BadInput, match=f'out={out}'):
        write_shards(out, {'train': toy.documents(5)}, codec, INFO)
    assert (out / there).read_text() == 'years of work' and os.listdir(tmp_path) == ['mine']
    (tmp_path / 'empty').mkdir()
    write_shards(tmp_path / 'empty', {'train': toy.documents(5)}, codec, INFO)


@pytest.mark.parametrize('docs', [[], [[('text', 'a')]], [[('text', 'a')], [('text', 'b')]]])
def test_a_split_with_nothing_to_predict_is_refused(tmp_path, docs):
    write_shards(tmp_path / 's', {'train': toy.documents(2), 'val': docs}, codec, INFO)
    open_shards(tmp_path / 's', 'train', codec)
    with pytest.raises(ValueError, match=f'nothing to predict in its split val of {len(docs)} documents'):
        open_shards(tmp_path / 's', 'val', codec)


def test_what_is_missing_from_rows_is_said():
    """Ends of documents with payloads that are longer than a row, none that fits; and payloads that the model does without."""
    picture = lambda h: [('text', 'a'), ('image', np.zeros((8 * h, 64, 3), np.uint8)), ('text', 'b')]
    sets, said = [toy.shards([picture(1), picture(4), [('text', 'long ' * 99)]])], []
    size = np.diff(sets[0]['doc'][:, 0])
    for T, n in ((int(size[1]) - 1, 0), (int(size[1]) - 2, 1), (int(size[0]) - 2, 2)):
        said.clear()
        remarks(['toy'], sets, T, True, True, said.append)
        assert len(said) == (n > 0) and all(f'toy: {n} of 3' in x and f'block_size={T}' in x and str(size[1] - 1) in x for x in said)
    with pytest.raises(ValueError, match='toy: 2 of 2 .* lose their end'):
        remarks(['toy'], [toy.shards([picture(4), picture(3)])], 10, True, True, said.append)
    said.clear()
    remarks(['toy'], sets, 512, False, False, said.append)
    assert len(said) == 1 and 'toy: 40 ' in said[0] and 'image=false' in said[0]


@pytest.mark.parametrize('text', ['scenes:nan', 'scenes:inf+emoji', 'scenes:0', 'scenes:x', 'scenes:1+'])
def test_weights_of_a_mixture(text):
    with pytest.raises(ValueError, match=f'dataset={re.escape(text)}'):
        mixture(text)


def test_another_codec_is_refused_in_one_line(tmp_path):
    write_shards(tmp_path / 's', {'train': toy.documents(2)}, codec, INFO)
    with pytest.raises(ValueError) as e:
        open_shards(tmp_path / 's', 'train', Codec('bytes', n_loc=100))
    assert str(tmp_path / 's') in str(e.value) and 'delete' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('cut', ['row', 'byte', 'all', 'missing'])
@pytest.mark.parametrize('array', ARRAYS)
def test_truncated_shards_are_refused_in_one_line(tmp_path, array, cut):
    write_shards(tmp_path / 's', {'train': toy.documents(10)}, codec, INFO)
    f = tmp_path / 's' / f'train.{array}.bin'
    row = dict(ids=2, w=1, patch=192, rc=8, frame=256, doc=24)[array]
    data = f.read_bytes()
    f.unlink() if cut == 'missing' else f.write_bytes(data[:dict(row=-row, byte=-1, all=0)[cut]])
    with pytest.raises(ValueError) as e:
        open_shards(tmp_path / 's', 'train', codec)
    assert str(tmp_path / 's') in str(e.value) and 'delete' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('damage', ['', '{"codec": ', '{}', None])
def test_a_damaged_meta_file_is_refused_in_one_line(tmp_path, damage):
    write_shards(tmp_path / 's', {'train': toy.documents(2)}, codec, INFO)
    f = tmp_path / 's' / 'meta.json'
    f.unlink() if damage is None else f.write_text(damage)
    with pytest.raises(ValueError) as e:
        open_shards(tmp_path / 's', 'train', codec)
    assert str(tmp_path / 's') in str(e.value) and '\n' not in str(e.value)


