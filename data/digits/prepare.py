"""
Handwritten digits of 8x8 pixels and 17 shades (Alpaydin and Kaynak 1998, UCI; the 1,797 that scikit-learn comes with): a patch each.

    python data/digits/prepare.py                       # from the wheel scikit-learn on PyPI, which is read, not installed

Documents, `copies` of each kind per digit:
    read    <boi> 1 1 <img> <eoi> <user>digit?<assistant>7<eot>        in training moved by up to a pixel, and lighter or darker
    draw    <user>draw: 7<assistant><boi> 1 1 <img> <eoi><eot>         10% of the prompts are empty, for guidance
The fifth of the pictures with the lowest hash is held out.
"""
import gzip
import hashlib
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from configurator import configure
from data.codec import Codec
from data.media import BadInput, check
from data.shards import shard_dir, write_shards
from data.source import guard, keep, store, wheel

HERE = Path(__file__).resolve().parent
WHEEL, SHA256 = 'scikit-learn==1.9.1', '09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22'
CACHE = HERE / 'digits-1.9.1.csv.gz'

copies = 20  # documents of each kind per picture
seed = 0
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # bins of a coordinate
out = ''  # folder; '': data/digits/shards-TOKENIZER

def digits():
    """-> pixels uint8 (1797, 8, 8, 3), white on black, and what they are, int (1797,). Fetched once into CACHE and checked by its hash."""
    if not CACHE.exists():
        store(CACHE, wheel(WHEEL, r'datasets/data/digits\.csv\.gz$', f'put its digits.csv.gz at {CACHE}')[0])
    data = CACHE.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise BadInput(f'{CACHE}: not the expected digits, {len(data):,} bytes; delete it to fetch it again')
    a = np.loadtxt(gzip.decompress(data).decode().splitlines(), delimiter=',', dtype=np.int64)       # 64 shades of 0 to 16, the digit
    return np.repeat((a[:, :64].reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8), 3, 3), a[:, 64]

def held_out(pixels):
    """-> bool (n,): the fifth with the lowest hash of its pixels."""
    rank = np.array([int.from_bytes(hashlib.sha1(p.tobytes()).digest()[:8], 'big') for p in pixels])
    return rank <= np.sort(rank)[len(rank) // 5 - 1]

def shaken(img, rng):
    """uint8 (8, 8, 3) -> the same, moved by up to a pixel each way, its contrast changed."""
    y, x = rng.integers(-1, 2, 2)
    moved = np.pad(img, ((1, 1), (1, 1), (0, 0)))[1 + y:9 + y, 1 + x:9 + x]
    return (moved * rng.uniform(.7, 1)).round().astype(np.uint8)

def documents(pixels, names, codec, copies, seed, train=True):
    """Yields the documents of a split. train: pictures that are read are shaken, some prompts of drawings are empty."""
    turn = lambda text: [('ids', [codec.sp['user']], 0), *[('text', text, 0)] * bool(text), ('ids', [codec.sp['assistant']], 0)]
    eot = ('ids', [codec.sp['eot']])
    for n, (img, name) in enumerate(zip(pixels, names)):
        rng = np.random.default_rng((seed, n))
        for _ in range(copies):
            yield [('image', shaken(img, rng) if train else img, 0), *turn('digit?'), ('text', str(name)), eot]
            yield [*turn('' if train and rng.random() < .1 else f'draw: {name}'), ('image', img), eot]

if __name__ == '__main__':
    configure(globals())
    with guard('digits'):
        check(copies > 0, f'copies={copies} is not at least 1')
        codec, (pixels, names) = Codec(tokenizer, n_loc), digits()
        val, target = held_out(pixels), Path(out or shard_dir('digits', codec))
        kept = keep(target.parent, pixels=pixels[..., 0], name=names, val=val)
        docs = dict(train=documents(pixels[~val], names[~val], codec, copies, seed),
                    val=documents(pixels[val], names[val], codec, 1, seed, train=False))
        write_shards(target, docs, codec, dict(source=f'PyPI wheel {WHEEL}', licence='CC BY 4.0 (UCI Machine Learning Repository)',
                                               skipped={}, val=kept))
