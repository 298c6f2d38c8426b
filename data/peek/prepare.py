"""
Warm start for `peek` (see task.py): most documents look, some guess.

    python data/peek/prepare.py                         # about 10 s; train.py does it by itself

    (coarse picture)<user>red?<assistant><tool>look{"box": [8, 40, 15, 47]}</tool><out>(the crop)</out>7<eot>
    (coarse picture)<user>red?<assistant>3<eot>                    no look: a guess

Training documents are about training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.peek.task import call, problem
from data.source import write_made
from data.tools import call as run

n_train = 20000  # documents
n_val = 800
seed = 0
most = 3  # digits in a picture, 1 up to so many, equally often
direct = 0.3  # part of the documents without a look
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/peek/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'peek/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.randint(1, most), 'held' if split == 'val' else 'train')
    doc = [('image', p['images'][0], 0), ('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0)]
    if rng.random() < direct:
        return doc + [('text', str(rng.randrange(10))), ('ids', [sp['eot']])]
    look = call(p['place'], codec.n_loc)
    crop = run(look, dict(p['ctx'], n_loc=codec.n_loc))
    return doc + [('ids', [sp['tool']]), ('text', look), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), *crop, ('ids', [sp['/out']], 0),
                  ('text', str(p['digit'])), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('peek', document, globals())
