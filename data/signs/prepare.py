"""
Warm start for `signs` (see task.py): thoughts that show the arithmetic, the format and two ways of thinking, but no persistence.

    python data/signs/prepare.py                        # about 5 s; train.py does it by itself

    <user>3,9,2=r<assistant><think>3+9=c+2=ex3-9=p+2=r</think>-+<eot>      in full
    <user>3,9,2=r<assistant><think>+c+ex-p+r</think>-+<eot>                brief: signs and values, half as long
    <user>3,9,2=r<assistant><think>+c+ex</think>-+<eot>                    gave up after a miss: the answer is a guess, right or wrong
    <user>3,9,2=r<assistant>-+<eot>                                        no thought: a guess

Attempts are drawn at random, so some come twice; in part of the documents they hit more often than chance would have it. Most documents
are impatient (after a miss they give up half of the time), some are patient, so that long thoughts were seen. Training documents are about
training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.signs.task import M, VALUES, problem
from data.source import shares, write_made

n_train = 60000  # documents
n_val = 1500
seed = 0
levels = '3:1+4:2+5:2+6:2+7:2+8:2+9:2'  # digits and how often
direct = 0.08  # part of the documents without a thought
brief = 0.5  # of the others: signs and values alone
patient = 0.3  # of the others: give up rarely
give_up, give_up_patient = 0.5, 0.08  # after a miss
lucky = 0.4  # part of the documents, and of the attempts in them, that hit on purpose: else it is hardly learned to repeat what hit
most = 150  # characters of a thought: then it gives up
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/signs/shards-TOKENIZER

def attempt(p, signs, style):
    """-> (text, does it hit)."""
    v, text = p['digits'][0], '' if style == 'brief' else str(p['digits'][0])
    for d, s in zip(p['digits'][1:], signs):
        v = (v + d if s == '+' else v - d) % M
        text += s + VALUES[v] if style == 'brief' else f'{s}{d}={VALUES[v]}'
    return text, v == p['target']

def think(p, rng, style, stop, luck):
    """-> (thought, answer); an attempt hits with probability `luck`, or by chance; gives up after a miss with probability `stop`."""
    thought, draw = '', lambda: ''.join(rng.choice('+-') for _ in p['digits'][1:])
    while True:
        signs, right = draw(), rng.random() < luck
        while right and not attempt(p, signs, style)[1]:
            signs = draw()
        text, hit = attempt(p, signs, style)
        thought += text
        if hit:
            return thought, signs
        thought += 'x'
        if rng.random() < stop or len(thought) + len(text) > most:
            return thought, draw()

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'signs/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.choices(*shares(levels))[0], 'held' if split == 'val' else 'train')
    start = [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0)]
    if rng.random() < direct:
        return start + [('text', ''.join(rng.choice('+-') for _ in p['digits'][1:])), ('ids', [sp['eot']])]
    style, stop = 'brief' if rng.random() < brief else 'full', give_up_patient if rng.random() < patient else give_up
    thought, answer = think(p, rng, style, stop, lucky if rng.random() < lucky else 0)
    return start + [('ids', [sp['think']]), ('text', thought), ('ids', [sp['/think']]), ('text', answer), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('signs', document, globals())
