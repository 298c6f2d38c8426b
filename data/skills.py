"""
What a model can do: held-out questions of every data set that has a task.py, beside each the blind control, its payloads zeroed.

A task is SKILLS, problems(skill, n, codec, shards=) and verify(problem, output). Problems may say what the engine needs: max_new, patches
(of a picture, at most), stop, choices, guide; a task's on_stop(problem, row, codec) answers a model that asks for something in its
thought. Where problems have a true thought, two more rows: `given`, going on from it, and `swapped`, from that of another problem with
another answer.
"""
from importlib import import_module
from pathlib import Path
import numpy as np
from data.codec import BadInput, unmel
from sample import Engine, score, turn

MADE = 'draw play say recolour remove add'.split()                      # skills whose answer is a picture or a sound


def table(net, codec, folders, n, say=print, keep=None, only=()):
    """
    net and codec of sample.load_model, folders {data set: its shards}, n cases of each skill.  Says a line for each; yields
    dict(data, skill, score, blind: percent, None where there is no such control, chance, cases). keep(data set, skill, problems, results)
    is called with what was answered with open eyes; only: these skills, if any are named.
    """
    empty = codec.encode(turn(codec, ''))
    say(f'{"skill":>12s}   sighted   blind  chance  cases')
    for name, folder in folders.items():
        if not (Path(__file__).parent / name / 'task.py').is_file():
            continue
        task = import_module(f'data.{name}.task')
        for skill in (k for k in task.SKILLS if not only or k in only):
            seen = keep and (lambda ps, results: keep(name, skill, ps, results))
            try:
                ps = task.problems(skill, n, codec, shards=folder)
            except BadInput:                                           # nothing of the kind was prepared
                continue
            if not ps:
                continue
            if ps[0].get('choices'):
                right = chosen(net, codec, ps, seen)
            else:
                right = [answered(net, codec, task, ps, False, empty, keep=seen)]
                right += [] if skill in MADE else [answered(net, codec, task, ps, True, empty)]
            blind = f'{right[1]:6.1f}%' if len(right) > 1 else '      -'
            say(f'{skill:>12s}   {right[0]:6.1f}% {blind} {100 * ps[0]["chance"]:6.1f}% {len(ps):6d}')
            yield dict(data=name, skill=skill, score=right[0], blind=right[1] if len(right) > 1 else None,
                       chance=100 * ps[0]['chance'], cases=len(ps))
            if 'thought' in ps[0]:
                pairs = [(p, q) for p in ps if (q := task.stranger(p, ps))]
                for word, thoughts in (('given', [p['thought'] for p, _ in pairs]), ('swapped', [q['thought'] for _, q in pairs])):
                    right = answered(net, codec, task, [p for p, _ in pairs], False, empty, thoughts) if pairs else 0.0
                    say(f'{word:>12s}   {right:6.1f}% {"      -"} {100 * ps[0]["chance"]:6.1f}% {len(pairs):6d}')
                    yield dict(data=name, skill=f'{skill} {word}', score=right, blind=None, chance=100 * ps[0]['chance'],
                               cases=len(pairs))


def chosen(net, codec, ps, keep=None):
    """
    Percent right of the candidate whose log-probability per token the picture raises most; blind: of the one with the highest without it.
    """
    docs = [codec.encode(p['prompt'] + [('text', c), ('ids', [codec.sp['eot']])]) for p in ps for c in p['choices']]
    seen, unseen, size = (np.array(x, float).reshape(len(ps), -1) for x in (
        score(net, codec, docs), score(net, codec, docs, True), [d['w'].sum() for d in docs]))
    said = [[p['choices'][i] for p, i in zip(ps, s.argmax(1))] for s in ((seen - unseen) / size, unseen / size)]
    if keep:
        keep(ps, [dict(text=c, ids=[], images=[], audio=[]) for c in said[0]])
    return [100 * float(np.mean([c == p['answer'] for p, c in zip(ps, cs)])) for cs in said]


def answered(net, codec, task, ps, blind, empty, thoughts=(), keep=None):
    """
    Percent right, by the task's own judge, of greedy answers; pictures and sounds asked for are made with guidance. thoughts: what each of
    the problems ps goes on from, as if the model had said it. keep(ps, results) gets what was made.
    """
    made, ask = ps[0]['skill'] in MADE, getattr(task, 'on_stop', None)
    engine = Engine(net, codec, rows=100, guide=ps[0].get('guide', 1.5) if made else 1.0, unprompted=empty if made else None, blind=blind,
                    max_patches=max(p.get('patches', 64) for p in ps), on_stop=ask and (lambda row: ask(ps[row.index], row, codec)))
    rows = [engine.add(codec.encode(p['prompt']), thoughts[i] if thoughts else (), index=i, temperature=0, stop=p.get('stop', ()),
                       max_new=p.get('max_new', 64 if made else 48)) for i, p in enumerate(ps)]
    engine.run()
    for r in rows:
        r.result['audio'] = [unmel(f) for f in r.result['audio']]
    if keep:
        keep(ps, [r.result for r in rows])
    return 100 * float(np.mean([task.verify(p, r.result) for p, r in zip(ps, rows)]))
