"""
Warm start for `spawn` (see task.py): agents that do one sum; and orchestrators: most ask agents, the others do it alone or guess.

    python data/spawn/prepare.py                        # about 10 s; train.py does it by itself

    <user>37..48<assistant><agent><think>37+38=75+39=14...=10</think>10<eot>
    <user>37..48 5..17<assistant><tool>spawn{"tasks": ["37..48", "5..17"]}</tool><out>1. 10
    2. 43</out>10,43<eot>
    <user>37..48 5..17<assistant><think>37+38=75...=10;5+6=11...=43</think>10,43<eot>         alone: up to `most_alone` sums
    <user>37..48 5..17<assistant>71,5<eot>                                                    a guess

Nothing is run: what agents report is known. Training documents are about training sums only, validation documents about held-out ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.source import write_made
from data.spawn.task import call, problem, thought

n_train = 30000  # documents
n_val = 1000
seed = 0
most = 5  # sums of an orchestrator, 1 up to so many, equally often
agents = 0.5  # part of the documents that an agent writes
ask = 0.8  # of the others: give the sums to agents
most_alone = 2  # sums that are done alone; more are guessed
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/spawn/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'spawn/{seed}/{split}/{i}/document'), codec.sp
    agent = rng.random() < agents
    p = problem(i, 1 if agent else rng.randint(1, most), 'held' if split == 'val' else 'train')
    doc = [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']] + [sp['agent']] * agent, 0)]
    if not agent and rng.random() < ask:
        reports = '\n'.join(f'{k}. {v}' for k, v in enumerate(p['values'], 1))
        doc += [('ids', [sp['tool']]), ('text', call(p)), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), ('text', reports, 0),
                ('ids', [sp['/out']], 0)]
    elif agent or p['level'] <= most_alone and rng.random() < 0.5:
        doc += [('ids', [sp['think']]), ('text', ';'.join(map(thought, p['question'].split(' ')))), ('ids', [sp['/think']])]
    else:                                   # true ones would be learned by heart, and RL on the training sums would find no use in agents
        p = dict(p, values=[rng.randrange(100) for _ in p['values']])
    return doc + [('text', ','.join(map(str, p['values']))), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('spawn', document, globals())
