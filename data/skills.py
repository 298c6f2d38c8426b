"""What a model can do: held-out questions of every data set that has a task.py, beside each the blind control, its payloads zeroed."""
from importlib import import_module
from pathlib import Path
import numpy as np
from data.codec import BadInput, unmel
from sample import generate, score, turn


def table(net, codec, folders, n, say=print):
    """
    net and codec of sample.load_model, folders {data set: its shards}, n cases of each skill.  Says a line for each; yields
    dict(skill, score, blind: percent, None where there is no such control, cases).
    """
    empty = codec.encode(turn(codec, ''))
    say(f'{"skill":>12s}   sighted   blind  chance  cases')
    for name, folder in folders.items():
        if not (Path(__file__).parent / name / 'task.py').is_file():
            continue
        task = import_module(f'data.{name}.task')
        for skill in task.SKILLS:
            try:
                ps = task.problems(skill, n, codec, shards=folder)
            except BadInput:                                           # nothing of the kind was prepared
                continue
            made = skill in ('draw', 'play', 'say')
            if ps and ps[0].get('choices'):
                right = chosen(net, codec, ps)
            else:
                right = [answered(net, codec, task, ps, blind, made, empty) for blind in ((False,) if made else (False, True))]
            blind = f'{right[1]:6.1f}%' if len(right) > 1 else '      -'
            say(f'{skill:>12s}   {right[0]:6.1f}% {blind} {100 * ps[0]["chance"]:6.1f}% {len(ps):6d}')
            yield dict(skill=skill, score=right[0], blind=right[1] if len(right) > 1 else None, cases=len(ps))


def chosen(net, codec, ps):
    """
    Percent right of the candidate whose log-probability per token the picture raises most; blind: of the one with the highest without it.
    """
    docs = [codec.encode(p['prompt'] + [('text', c), ('ids', [codec.sp['eot']])]) for p in ps for c in p['choices']]
    seen, unseen, size = (np.array(x, float).reshape(len(ps), -1) for x in (
        score(net, codec, docs), score(net, codec, docs, True), [d['w'].sum() for d in docs]))
    return [100 * float(np.mean([p['choices'][i] == p['answer'] for p, i in zip(ps, s.argmax(1))]))
            for s in ((seen - unseen) / size, unseen / size)]


def answered(net, codec, task, ps, blind, made, empty):
    """Percent right, by the task's own judge, of greedy answers. made: a picture or a sound, with guidance."""
    outs = generate(net, codec, [codec.encode(p['prompt']) for p in ps], max_new=64 if made else 48, temperature=0, blind=blind, batch=100,
                    guide=1.5 if made else 1.0, unprompted=empty if made else None)
    for o in outs:
        o['audio'] = [unmel(f) for f in o['audio']]
    return 100 * float(np.mean([task.verify(p, o) for p, o in zip(ps, outs)]))
