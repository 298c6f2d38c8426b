"""
Warm start for `pytool` (see task.py): most documents call the tool, some try it in the head.

    python data/pytool/prepare.py                       # about 5 s; train.py does it by itself

    <user>4821*937=<assistant><tool>python{"code": "print(4821*937)"}</tool><out>4517277
    </out>4517277<eot>
    <user>4821*937=<assistant>4517277<eot>                         no tool

Nothing is run: what the tool will say is known. Training documents are about training problems only, validation documents about held-out
ones.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.pytool.task import call, problem
from data.source import write_made

n_train = 30000  # documents
n_val = 1000
seed = 0
most_digits = 5  # 2 up to so many, equally often
direct = 0.3  # part of the documents without the tool
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/pytool/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'pytool/{seed}/{split}/{i}/document'), codec.sp
    p = problem(i, rng.randint(2, most_digits), 'held' if split == 'val' else 'train')
    doc = [('ids', [sp['user']], 0), ('text', p['question'], 0), ('ids', [sp['assistant']], 0)]
    if rng.random() >= direct:
        doc += [('ids', [sp['tool']]), ('text', call(p)), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), ('text', f'{p["product"]}\n', 0),
                ('ids', [sp['/out']], 0)]
    return doc + [('text', str(p['product'])), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('pytool', document, globals())
