"""
Lets agents of a warm start work on problems of `twice`, and freezes what they report: data/merge/reports.json, for RL of the orchestrator.

    python train.py config/sft_twice.py                 the warm start
    python data/merge/prepare.py                        about a minute on 2 cores

Held-out problems of `twice` are held out here, too.
"""
import json
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.merge.task import FILE, LEVELS
from data.media import BadInput
from data.source import guard, store
from data.twice.task import problem, verify
from sample import contemplate, load_model, turn

init_from = 'out-sft-twice'  # a folder of train.py, or one checkpoint in it
n_train = 3000  # problems
n_held = 500
level = 6  # digits of a row
think = 64  # positions of an agent's thought
seed = 0
out = str(FILE)

if __name__ == '__main__':
    configure(globals())
    with guard('merge'):
        try:
            model, codec, _ = load_model(init_from)
        except ValueError as e:
            raise BadInput(f'init_from={init_from}: {e}') from None
        found, brief = {}, level + 5                     # a guess with its ?, </report>, <eot>
        for split, n in (('train', n_train), ('held', n_held)):
            tasks = [problem(f'merge/{seed}/{i}', level, split) for i in range(n)]
            said = contemplate(model, codec, [codec.encode(turn(codec, p['question'])) for p in tasks], max(LEVELS), think=think,
                               brief=brief, max_new=1, alone=brief + 1, seed=seed, rows=512)
            found[split] = [dict(rows=p['rows'], targets=p['targets'], reports=g['reports']) for p, g in zip(tasks, said)]
            share = lambda k: sum(verify(p, g[k]) for p, g in zip(tasks, said)) / n
            print(f'{split}: {n} problems; right: {share("majority"):.1%} of majorities, {share("vote"):.1%} of self-verified votes')
        store(Path(out), json.dumps(found).encode())
        print(out)
