"""
team: agents with roles who search on a problem of `twice`, and are paid for what they add to what an orchestrator makes of their reports.

    342718=5,193746=3  <agent><r0><r3>  <think>A7..x..</think><report>aBcDef</report><eot>       one of 8; see data/twice

An agent is right if its report is. credit() asks the orchestrator, which is the same model, for the answer with all reports and without
each one: half of an agent's pay is for itself, half for the difference (a counterfactual, as in Foerster et al. 2018). Who does not end in
time reports nothing. A level is the number of digits of a row.
"""
import random
from data.twice import task as twice

NAME, LEVELS, AGENTS, TRIES = 'team', twice.LEVELS, 8, 4      # TRIES: answers of the orchestrator to each set of reports
ROLES = [['agent', *(f'r{2 * b + (a >> b & 1)}' for b in range(3))] for a in range(AGENTS)]      # as contemplate() gives them

def problem(seed, level, split='train'):
    """Problem number `seed` of a level: those of `twice`, but others than its warm start saw."""
    return _team(twice.problem(f'{NAME}/{seed}', level, split))

def canary(seed, level):
    """A problem without a solution: any reward for it is an alarm."""
    return _team(twice.canary(seed, level))

def twin(p):
    """The same problem in another order: who has learned the problems by heart solves it less often."""
    return _team(twice.twin(p))

def _team(p):
    return dict(p, task=NAME, roles=ROLES)

def said(answer):
    """What stands behind a thought -> the report, '' if there is none."""
    return answer[8:-9] if isinstance(answer, str) and answer[:8] == '<report>' and answer[-9:] == '</report>' else ''

def verify(p, answer):
    return twice.verify(p, said(answer) if p['roles'][0] else answer)

def judge(p, answer):
    return twice.judge(p, said(answer) if p['roles'][0] else answer)

steps = twice.steps

def credit(groups, ask):
    """
    groups: lists of rollouts, of a problem each; ask(problems, k) -> k rollouts of each. Gives every rollout its pay, in [-1/2, 1]: half of
    r, and half of how much more often the orchestrator is right with its report than without it.
    """
    ps = []
    for g in groups:
        p, reports = g[0]['problem'], [said(o['answer']) for o in g]
        for out in range(-1, len(g)):                         # -1: nobody
            rest = [s for k, s in enumerate(reports) if s and k != out]
            random.Random(f'{p["question"]}/{out}').shuffle(rest)
            ps.append(dict(p, roles=[()], reports=rest))
    right = iter([sum(o['r'] for o in rolls) / TRIES for rolls in ask(ps, TRIES)])
    for g in groups:
        whole = next(right)
        for o in g:
            o['pay'] = o['r'] / 2 + (whole - next(right)) / 2

SKILLS = ()   # for the table of train.py, which is about pictures and sounds
