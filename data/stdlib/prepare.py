"""
Python source as text: the standard library of the interpreter that runs this, about 9 MB, split by file into train, dev, val and test.

    python data/stdlib/prepare.py

Left out: tests, installed packages, and tables made by programs (encodings, pydoc_data). Files of one name (tokenize.py is there twice) go
to the same split, all of a split are joined by <eot> into one document, so that windows are drawn evenly over its bytes. dev is for
choosing settings (train.py --val_split=dev), val for scoring what was chosen, test for nothing yet. Another Python has another library:
meta.json names it.
"""
import sys, sysconfig, tokenize
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.codec import Codec
from data.shards import shard_dir, write_shards
from data.media import BadInput
from data.source import divide, guard, leave_out

NOT = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'encodings', 'pydoc_data'}

root = ''              # a folder of .py files; '': the standard library
share = 0.04           # of the files to val and test, and of the rest to dev
tokenizer = 'bytes'    # see data/codec.py
n_loc = 64             # bins of a coordinate
out = ''               # folder; '' = data/stdlib/shards-TOKENIZER

def sources(root, skipped):
    """Every .py file beneath root, in the order of its path -> [{name, text, keys}]; keys: what puts files into the same split."""
    items = []
    for path in sorted(root.rglob('*.py')):
        name = path.relative_to(root)
        if NOT & set(name.parts):
            continue
        try:
            with tokenize.open(path) as f:                     # in the encoding that its first lines declare, line ends as \n
                text = f.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as e:
            leave_out(skipped, path, e)
            continue
        if text.strip():
            items.append(dict(name=str(name), text=text, keys={str(name) if name.stem.startswith('__') else name.name}))
    return items

if __name__ == '__main__':
    configure(globals())
    with guard('stdlib'):
        folder, skipped = Path(root or sysconfig.get_path('stdlib')).resolve(), Counter()
        items = sources(folder, skipped)
        if len(items) < 5:
            raise BadInput(f'root={folder}: {len(items)} files of Python source; five are needed, one for each split and two to train')
        rest, held = divide(items, share, 0)
        val, test = divide(held, 0.5, 2) if len(held) > 1 else (held, held)
        train, dev = divide(rest, share, 1)
        codec = Codec(tokenizer, n_loc)
        docs = lambda items: [[part for i in sorted(items, key=lambda i: i['name'])
                               for part in (('text', i['text']), ('ids', [codec.sp['eot']]))]]
        print(f'{len(train)} files to train, {len(dev)} dev, {len(val)} val, {len(test)} test')
        licence = 'its own' if root else 'PSF-2.0, (c) Python Software Foundation; read where it is installed, never committed'
        write_shards(out or shard_dir('stdlib', codec), dict(train=docs(train), dev=docs(dev), val=docs(val), test=docs(test)), codec,
                     dict(source=root or f'the standard library of Python {sys.version.split()[0]}', skipped=dict(skipped),
                          licence=licence))
