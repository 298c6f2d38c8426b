"""
Warm start for `lookup` (see task.py): some documents follow every link, some stop too early or guess.

    python data/lookup/prepare.py                       # about 5 s; train.py does it by itself

    <user>tuvo>><assistant><tool>search{"query": "tuvo"}</tool><out>tuvo.txt: tuvo 731 to_bela</out><tool>open{"path": "bela.txt"}</tool>
    <out>1  bela 204 to_miro</out><tool>open{"path": "miro.txt"}</tool><out>1  miro 958 to_kavu</out>958<eot>
    <user>tuvo>><assistant><tool>search{"query": "tuvo"}</tool><out>tuvo.txt: tuvo 731 to_bela</out>731<eot>      too early
    <user>tuvo>><assistant>412<eot>                                                                             a guess

Nothing is searched: what the tools will say is known. Every document is about a world of its own, with the names of its split.
"""
import random
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.lookup.task import calls, links, text
from data.source import write_made

n_train = 20000  # documents
n_val = 800
seed = 0
most_links = 3  # 1 up to so many, equally often
direct = 0.2  # part of the documents with a guess
early = 0.3  # and part that stops before the last document
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # see data/codec.py
out = ''  # folder; '': data/lookup/shards-TOKENIZER

def document(i, split, codec):
    """-> document i of a split: a list of segments."""
    rng, sp = random.Random(f'lookup/{seed}/{split}/{i}/document'), codec.sp
    world = links(f'document/{seed}/{i}', 'held' if split == 'val' else 'train')
    level = rng.randint(1, most_links)
    name = rng.choice(list(world))
    path = [name] + [name := world[name][1] for _ in range(level)]
    doc = [('ids', [sp['user']], 0), ('text', path[0] + '>' * level, 0), ('ids', [sp['assistant']], 0)]
    u, upto = rng.random(), level + 1
    if u < direct:
        return doc + [('text', str(rng.randrange(100, 1000))), ('ids', [sp['eot']])]
    if u < direct + early:
        upto = rng.randint(1, level)
    for k, call in enumerate(calls(dict(path=path))[:upto]):
        said = (f'{path[0]}.txt: ' if k == 0 else '1  ') + text(path[k], world)
        doc += [('ids', [sp['tool']]), ('text', call), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), ('text', said, 0),
                ('ids', [sp['/out']], 0)]
    return doc + [('text', str(world[path[upto - 1]][0])), ('ids', [sp['eot']])]

if __name__ == '__main__':
    configure(globals())
    write_made('lookup', document, globals())
