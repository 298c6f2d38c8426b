"""
Documents of three kinds for `twice` (see task.py): one who thinks alone, one of many agents, and the orchestrator who reads their reports.

    python data/twice/prepare.py                        # about 20 s; train.py does it by itself

    <user>Q<assistant><think>A2b6...xA2B8...,A2...</think>AbCdeF<eot>                                     alone
    <user>Q<assistant><agent><r1><r2><think>a7B1...x...</think><report>aBCdEf</report><eot>               an agent: found
    <user>Q<assistant><agent><r1><r2><think>a7B1...xa7B</think><report>?abcDEf</report><eot>              time was up: a guess
    <user>Q<assistant><report>?AbcDef</report><report>aBCdEf</report><report>?abcDEf</report>...aBCdEf<eot>    the orchestrator

An agent's role is up to four tokens, each of which fixes a sign: <r0> the first is +, <r1> it is -, <r2> the second is +, and so on; so
agents with different roles never try the same. An attempt says what is left of the target after each sign, because a small model learns at
once that 0 is a hit, and late whether two digits far apart are equal. Attempts are drawn at random, with repetition. Thoughts are cut off
anywhere: </think> and <report> are then given, not learned, and who thinks alone has to guess, as the agent does behind a ?. The
orchestrator repeats any one of the reports, half of the time the last that was not a guess: whom to believe is for RL (data/merge).
Training documents are about training problems only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.agents import reports
from data.source import write_made
from data.twice.task import problem, word

n_train = 60000  # documents
n_val = 1500
seed = 0
level = 6  # digits of a row
alone, merging = 0.25, 0.3  # parts of the documents; the others are agents'
shortest, longest = 16, 120  # characters of a thought, before it is cut off
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/twice/shards-TOKENIZER

def attempt(p, signs):
    """-> (text, do both sums come out)."""
    text = ''
    for row, left in zip(p['rows'], p['targets']):
        for d, c in zip(row, word(signs)):
            left = (left - d if c.isupper() else left + d) % 10
            text += c + str(left)
        if left:
            return text, False
        text += ','
    return text[:-1], True

def think(p, rng, fixed, most):
    """Attempts with random signs after those that are fixed -> (thought, the signs that hit or None: cut off after `most` characters)."""
    thought = ''
    while True:
        signs = guess(p, rng, fixed)
        text, hit = attempt(p, signs)
        thought += text
        if len(thought) > most:
            return thought[:most], None
        if hit:
            return thought, signs
        thought += 'x'

def guess(p, rng, fixed=''):
    return fixed + ''.join(rng.choice('+-') for _ in range(p['level'] - len(fixed)))

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'twice/{seed}/{split}/{i}/document'), codec.sp
    ids = lambda *names, w=1: ('ids', [sp[n] for n in names], w)
    p = problem(i, level, 'held' if split == 'val' else 'train')
    start, kind = [ids('user', w=0), ('text', p['question'], 0), ids('assistant', w=0)], rng.random()
    if kind < alone:
        thought, found = think(p, rng, '', rng.randint(shortest, longest))
        return start + [ids('think'), ('text', thought), ids('/think', w=int(found is not None)),
                        ('text', word(found or guess(p, rng))), ids('eot')]
    if kind >= alone + merging:
        fixed = guess(p, rng)[:rng.randrange(5)]
        roles = [f'r{2 * b + (s == "-")}' for b, s in enumerate(fixed)]
        thought, found = think(p, rng, fixed, rng.randint(shortest, longest))
        return start + [ids('agent', *roles, w=0), ids('think'), ('text', thought), ids('/think', 'report', w=int(found is not None)),
                        ('text', word(found) if found else f'?{word(guess(p, rng, fixed))}'), ids('/report', 'eot')]
    claims = rng.random() ** 2
    said = [('?' if rng.random() >= claims else '') + word(guess(p, rng)) for _ in range(2 ** rng.randrange(5))]
    claimed = [r for r in said if r[0] != '?']
    answer = claimed[-1] if claimed and rng.random() < .5 else rng.choice(said).lstrip('?')
    return start + reports(codec, said) + [('text', answer), ids('eot')]

if __name__ == '__main__':
    configure(globals())
    write_made('twice', document, globals())
