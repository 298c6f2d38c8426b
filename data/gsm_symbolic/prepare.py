"""
Warm start for `gsm_symbolic` (see task.py): three ways of thinking, of different cost.

    python train.py --dataset=gsm_symbolic --tokenizer=bpe:1024 --image=false --audio=false --block_size=512 --out_dir=out-gsm
    python rl.py --init_from=out-gsm --task=gsm_symbolic --levels=2+3 --block_size=512 --max_new=200 --min_skill=0

    <user>Amy has 34 ..<assistant><think>Together they have 34 + 30 = 64 ..</think>61<eot>      the worked solution
    <user>Amy has 34 ..<assistant><think>34+30=64,125-64=61</think>61<eot>                       brief: its equations
    <user>Amy has 34 ..<assistant>61<eot>                                                        no thought

Training documents are about training problems only, validation documents about held-out ones. Where the equations cannot be read from the
solution, or one of them is wrong, the solution stands instead.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.gsm_symbolic.task import LEVELS, equations, problem
from data.source import write_made

n_train = 40000  # documents
n_val = 1000
seed = 0
direct = 0.2  # part of the documents without a thought
brief = 0.4  # and with the equations alone
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/gsm_symbolic/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'gsm_symbolic/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.choice(LEVELS), 'held' if split == 'val' else 'train')
    u, short = rng.random(), equations(p['worked'])
    short = ','.join(e for e, _ in short) if len(short) >= p['level'] and all(ok for _, ok in short) else p['worked']
    said = None if u < direct else short if u < direct + brief else p['worked']
    think = [] if said is None else [('ids', [sp['think']]), ('text', said), ('ids', [sp['/think']])]
    return [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0), *think, ('text', p['value']),
            ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('gsm_symbolic', document, globals())
