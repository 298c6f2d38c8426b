"""
merge: what agents reported on a problem of `twice`, frozen, and the answer that an orchestrator makes of it.

    342718=5,193746=3 <report>?aBcDeF</report><report>AbCDef</report><report>?abCdEF</report>     AbCDef

A report with ? is a guess: its author ran out of time; one without was found right by its author, who may have erred. The most frequent
answer is therefore wrong most of the time, and the orchestrator has to learn whom to believe. The reports are of a warm start's own agents
(prepare.py); a level is how many of them are read, in any order. An answer is judged as that of `twice` is.
"""
import json
import random
from functools import lru_cache
from pathlib import Path
from data.media import BadInput
from data.twice import task as twice

NAME, LEVELS = 'merge', range(1, 9)   # reports
FILE = Path(__file__).with_name('reports.json')

@lru_cache
def frozen():
    """-> dict(train, held): lists of dict(rows, targets, reports), as prepare.py made them."""
    if not FILE.is_file():
        raise BadInput(f'task=merge: no {FILE}: make it with python data/merge/prepare.py')
    return json.loads(FILE.read_text())

def problem(seed, level, split='train'):
    """Problem number `seed`: `level` of the reports on a problem of 'train' or 'held'."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    f = rng.choice(frozen()[split])
    return _make(f['rows'], f['targets'], rng.sample(f['reports'], level))

def canary(seed, level):
    """A problem without a solution, with the reports on another."""
    p = twice.canary(seed, len(problem(seed, level)['rows'][0]))
    return _make(p['rows'], p['targets'], problem(seed, level)['reports'])

def twin(p):
    """The same problem in another order: who has learned where the right report stands solves it less often."""
    return _make(p['rows'], p['targets'], p['reports'][::-1])

def _make(rows, targets, reports):
    return dict(twice._make(rows, targets), task=NAME, level=len(reports), reports=reports)

def verify(p, answer):
    return twice.verify(dict(p, level=len(p['rows'][0])), answer)

def judge(p, answer):
    return twice.judge(p, answer)

def steps(p, thought):
    """There are no thoughts."""
    return 1, 1

SKILLS = ()   # for the table of train.py, which is about pictures and sounds
