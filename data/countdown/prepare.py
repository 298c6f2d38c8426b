"""
Warm start for `countdown` (see task.py): thoughts that show the arithmetic and the format, but no persistence and no insight.

    python data/countdown/prepare.py                    # about 10 s; train.py does it by itself

    <user>3 8 5=55<assistant><think>3+5=8*8=64x3+8=11*5=55</think>(3+8)*5<eot>     in any order of the numbers
    <user>3 8 5=55<assistant><think>3+5=8*8=64x</think>3*8+5<eot>                  gave up after a miss: the answer is a guess
    <user>3 8 5=55<assistant>3*8+5<eot>                                            no thought: a guess

Chains are drawn at random. Training documents are about training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.countdown.task import MAX, OPS, problem
from data.source import shares, write_made

n_train = 60000  # documents
n_val = 1500
seed = 0
levels = '2:1+3:3+4:1'  # numbers and how often
direct = 0.05  # part of the documents without a thought
patient = 0.3  # of the others: give up rarely
give_up, give_up_patient = 0.5, 0.08  # after a miss
most = 110  # characters of a thought: then it gives up
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/countdown/shards-TOKENIZER

def chain(p, rng):
    """A random chain that stays within 0 to MAX -> (its text with the values, its value, the expression)."""
    while True:
        first, *rest = rng.sample(p['numbers'], p['level'])
        text, v, expr, weak = str(first), first, str(first), False
        for n in rest:
            op = rng.choice('+-*')
            v = OPS[op](v, n)
            if not 0 <= v <= MAX:
                break
            text += f'{op}{n}={v}'
            expr, weak = (f'({expr})' if op == '*' and weak else expr) + f'{op}{n}', op != '*'
        else:
            return text, v, expr

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'countdown/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.choices(*shares(levels))[0], 'held' if split == 'val' else 'train')
    start = [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0)]
    if rng.random() < direct:
        return start + [('text', chain(p, rng)[2]), ('ids', [sp['eot']])]
    thought, stop = '', give_up_patient if rng.random() < patient else give_up
    while True:
        text, v, answer = chain(p, rng)
        thought += text
        if v == p['target']:
            break
        thought += 'x'
        if rng.random() < stop or len(thought) + len(text) > most:
            answer = chain(p, rng)[2]
            break
    return start + [('ids', [sp['think']]), ('text', thought), ('ids', [sp['/think']]), ('text', answer), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('countdown', document, globals())
