"""
Warm start for `point` (see task.py): careless clicks, near the right square or on another.

    python data/point/prepare.py                        # about 10 s; train.py does it by itself

    (picture)<user>red?<assistant><point><20><41><eot>

Training documents are about training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.point.task import SIDE, problem
from data.source import write_made

n_train = 30000  # documents
n_val = 1000
seed = 0
most = 4  # squares in a picture, 1 up to so many, equally often
other = 0.2  # part of the clicks that go to any of the squares
spread = 2.5  # pixels: the standard deviation of a click about the centre
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/point/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'point/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.randint(1, most), 'held' if split == 'val' else 'train')
    x0, y0, x1, y1 = rng.choice(p['boxes']) if rng.random() < other else p['box']
    at = [codec.loc(min(max((c + rng.gauss(0, spread)) / SIDE, 0), 1)) for c in ((x0 + x1) / 2, (y0 + y1) / 2)]
    return [('image', p['images'][0], 0), ('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0),
            ('ids', [sp['point'], *at, sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('point', document, globals())
