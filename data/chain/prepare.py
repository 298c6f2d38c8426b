"""
Warm start for `chain` (see task.py): three ways of thinking, of different cost and different reliability.

    python data/chain/prepare.py                        # about 5 s; train.py does it by itself

    <user>12+7*3-8=<assistant><think>19,57,49</think>49<eot>      every value
    <user>12+7*3-8=<assistant><think>57,49</think>49<eot>         brief: every second value, and the last
    <user>12+7*3-8=<assistant>49<eot>                             no thought

Training documents are about training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.chain.task import problem
from data.source import write_made

n_train = 60000  # documents
n_val = 1500
seed = 0
most_operations = 10  # 2 up to so many, equally often
direct = 0.3  # part of the documents without a thought
brief = 0.3  # and with every second value
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/chain/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'chain/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.randint(2, most_operations), 'held' if split == 'val' else 'train')
    n, u, v = p['level'], rng.random(), p['values']
    start = [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0)]
    said = None if u < direct else v if u >= direct + brief else [*v[1:n - 1:2], v[-1]]
    think = [] if said is None else [('ids', [sp['think']]), ('text', ','.join(map(str, said))), ('ids', [sp['/think']])]
    return start + think + [('text', str(v[-1])), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('chain', document, globals())
