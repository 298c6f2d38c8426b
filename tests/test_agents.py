"""
Tools, sub-agents, contemplating and the command line, with a small model that has learned a handful of documents by heart: it says exactly
the calls that are to be tested, and what comes back is compared with the documents.
"""
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import toy
from data.media import mark
from data.tools import call
from data.twice import task as twice
from data.twice.prepare import document
from model import ModelConfig, Muse
from parallel import solo_mesh
from sample import Engine, generate, turn
from test_parallel import ranks
from test_sample import run, save
from toy import codec

sp, L = codec.sp, codec.loc0
ROOT = Path(__file__).resolve().parents[1]
PIXELS = np.zeros((32, 48, 3), np.uint8)
PIXELS[:, :24] = 255, 0, 0
PIXELS[8:24, 30:40] = 0, 0, 255
DEEP = [(('r0', 'r2'), '7'), (('r1', 'r2'), '?8'), (('r0', 'r3'), '?8'), (('r1', 'r3'), '?9')]          # roles and reports of four agents
DOT = [sp['point'], L + 46, L + 32]


def tool(text, result):
    """A call and what comes back, as segments: the latter is not learned."""
    result = [('text', result, 0)] if isinstance(result, str) else result
    return [('ids', [sp['tool']]), ('text', text), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), *result, ('ids', [sp['/out']], 0)]


def thought(text):
    return [('ids', [sp['think']]), ('text', text), ('ids', [sp['/think']])]


def told(text):
    return [('ids', [sp['report']]), ('text', text), ('ids', [sp['/report']])]


def lessons():
    """name -> (prompt, answer), both segments."""
    ask = lambda text, pictures=(): turn(codec, text, pictures)
    agent = lambda text, *roles: [*ask(text), ('ids', [sp['agent'], *(sp[r] for r in roles)], 0)]
    looked, bad = (call(c, dict(images=[PIXELS])) for c in ('look{"box": [0, 0, 31, 63]}', 'calculate{"expression": '))
    out = dict(
        calc=(ask('6*7?'), [*tool('calculate{"expression": "6*7"}', '42'), ('text', '42')]),
        bad=(ask('bad'), [*tool('calculate{"expression": ', bad), ('text', 'sorry')]),
        note=(ask('note'), [*tool('insert{"path": "a.txt", "line": 0, "text": "hi"}', 'a.txt: 1 lines written'), ('text', 'ok')]),
        find=(ask('find', [PIXELS]), [*tool('ground{"query": "dot"}', [('ids', DOT, 0)]), ('text', 'at '), ('ids', DOT)]),
        dot=(ask('dot', [PIXELS]), [('ids', [*DOT, sp['tool']])]),             # a tool's result is never a call
        look=(ask('near', [PIXELS]), [*tool('look{"box": [0, 0, 31, 63]}', looked), ('text', 'red')]),
        draw=(ask('paint'), [*tool('draw{"prompt": "sun"}', [('image', PIXELS[:8, :16], 0)]), ('text', 'done')]),
        sun=(ask('sun'), [('image', PIXELS[:8, :16])]),
        team=(ask('team'), [*tool('spawn{"tasks": ["one", "two"]}', '1. A\n2. B'), ('text', 'both')]),
        one=(agent('one'), told('A')),
        two=(agent('two'), [*tool('spawn{"tasks": ["three"]}', '1. C'), *told('B')]),
        three=(agent('three'), told('C')),
        alone=(ask('deep'), [*thought('abcdefgh'), ('text', '8')]),
        long=(ask('long'), [('text', 80 * 'ab')]),
        **{f'long {r}': (agent('long', r), [('text', 80 * 'ab')]) for r in ('r0', 'r1')})
    for k, (roles, said) in enumerate(DEEP):
        out[f'agent {k}'] = agent('deep', *roles), [*thought('abcd'[:k + 1]), *told(said)]
    for k, order in enumerate(itertools.permutations(range(4))):
        reports = [s for j in order for s in told(DEEP[j][1])]
        out[f'merge {k}'] = [*ask('deep'), *((kind, v, 0) for kind, v in reports)], [*thought('m'), ('text', '5')]
    for k, order in enumerate(('46', '64')):                          # an orchestrator that answers at once
        out[f'short r{k}'] = agent('short', f'r{k}'), told('46'[k])
        out[f'join {k}'] = [*ask('short'), *((kind, v, 0) for r in order for kind, v in told(r))], [('text', '3')]
    return out


@pytest.fixture(scope='module')
def clerk():
    """Has learned the lessons by heart, in a few seconds."""
    torch.manual_seed(0)
    docs = [[*p, *a, *[('ids', [sp['eot']])] * ('long' not in n)] for n, (p, a) in lessons().items()]
    docs.append([*lessons()['sun'][0], ('image', 255 - PIXELS[:8, :16]), ('ids', [sp['eot']])])         # one picture or another
    model = Muse(ModelConfig(vocab_size=codec.n_vocab, n_layer=2, n_embd=64, n_head=4, flow_width=32, flow_depth=1, audio=False), seed=1)
    opt, sets = torch.optim.Adam(model.parameters(), 4e-3, betas=(.9, .98)), toy.shards(docs)
    steps = 200
    for step in range(steps):
        b, = toy.micros([sets], step, rows=8, micro=8, T=192, dtype=torch.float32)
        opt.zero_grad()
        model(b)['loss'].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for g in opt.param_groups:
            g['lr'] = 4e-3 * min(1, (step + 1) / 10, (steps - step) / 60)
        opt.step()
    return model.eval()


def ask(model, name, **options):
    """The answer to a lesson's prompt, greedy -> result and the document as it was learned."""
    prompt, answer = lessons()[name]
    r, = generate(model, codec, [codec.encode(prompt)], max_new=100, temperature=0, flow_steps=4, **options)
    return r, codec.encode([*prompt, *answer, ('ids', [sp['eot']])])


# ---------------------------------------------------------------- calls in the stream

@pytest.mark.parametrize('name', ['calc', 'bad', 'find', 'look', 'draw', 'note'])
def test_a_call_is_run_and_its_result_read(name, clerk, tmp_path):
    """The result stands between <out> and </out>, weight 0; the model says the rest. Errors come back as text, pictures as patches."""
    r, want = ask(clerk, name, ctx=dict(images=[PIXELS], workspace=tmp_path))
    doc, n = r['doc'], len(codec.encode(lessons()[name][0])['ids'])
    assert doc['ids'].tolist() == want['ids'].tolist()
    said = want['w'][n:] > 0
    assert (doc['w'][n:] > 0).tolist() == said.tolist() and not np.array(r['logp'])[~said].any() and np.array(r['logp'])[said].all()
    if name != 'draw':
        assert (doc['patches'] == want['patches']).all() and (doc['rc'] == want['rc']).all()
    else:
        assert doc['rc'].tolist() == [[.5, .25], [.5, .75]] and doc['patches'].shape == (2, 192)


def test_without_a_ctx_there_are_no_tools(clerk):
    """The model is not stopped at </tool>: it goes on, weight 1."""
    r, want = ask(clerk, 'calc')
    assert all(r['w']) and sp['/tool'] in r['ids']


def test_calls_of_many_rows(clerk, tmp_path):
    """Rows with calls beside one another, more than there are places, give what each gives alone, random numbers of requests too."""
    names, ctx = ['draw', 'calc', 'find', 'bad', 'draw', 'draw', 'draw'], dict(images=[PIXELS])
    prompts = [codec.encode(lessons()[n][0]) for n in names]
    together = generate(clerk, codec, prompts, max_new=100, temperature=.1, flow_steps=4, batch=2, ctx=ctx, seed=3)
    for i, (p, r) in enumerate(zip(prompts, together)):
        engine = Engine(clerk, codec, flow_steps=4)
        alone = engine.add(p, index=i, max_new=100, temperature=.1, ctx=ctx, seed=3)
        engine.run()
        off = np.abs(alone.result['doc']['patches'].astype(int) - r['doc']['patches'])
        assert alone.result['ids'] == r['ids'] and off.max(initial=0) <= 1
    assert len({together[i]['doc']['patches'].tobytes() for i in (0, 4, 5, 6)}) > 1          # each draws with its own


def stopped_at(said, **ctx):
    """agent_step for a row that has just said this -> (text of what comes back, positions left of 50)."""
    row = SimpleNamespace(ctx=ctx, prompt=codec.encode([('text', 'q')]), ids=codec.encode(said)['ids'].tolist(), left=50, key=[0],
                          knobs=(0, 9, 2))
    engine = SimpleNamespace(codec=codec, model=SimpleNamespace(mesh=solo_mesh()), max_patches=64)
    out = sample.agent_step(engine, row)
    return out and codec.untext(codec.encode(out)['ids']), row.left


def test_only_the_last_call_is_run():
    one, two, stray = tool('calculate{"expression": "1+1"}', '2'), tool('calculate{"expression": "2+2"}', '')[:3], ('ids', [sp['/tool']])
    assert stopped_at([*one, *two])[0] == '<out>4</out>'
    for said in ([stray], [*one, stray], [*two, stray], [*one, ('text', 'calculate{"expression": "3"}'), stray]):
        assert 'error: a call is name' in stopped_at(said)[0]
    assert 'error: a call is name' in stopped_at([('ids', [sp['tool']]), stray])[0]
    assert stopped_at([('ids', [sp['tool'], sp['eot']])])[0] is None


def test_results_leave_room():
    """room: positions of the whole document; q, the call, and 6 of the result."""
    say = tool('calculate{"expression": "2+2222"}', '')[:3]
    n = 1 + len(codec.encode(say)['ids'])
    assert stopped_at(say, room=n + 6 + 100) == ('<out>2224</out>', 50) and stopped_at(say, room=n + 6 + 8) == ('<out>2224</out>', 8)
    assert stopped_at(say, room=n + 6)[0] is None
    big = tool('calculate{"expression": "2**1000"}', '')[:3]
    full = 1 + len(codec.encode(big)['ids']) + 2 + len('error: no room for the result')
    assert stopped_at(big, room=full + 20) == ('<out>error: no room for the result</out>', 20)


# ---------------------------------------------------------------- sub-agents

def spawned(clerk, **ctx):
    """-> transcript, what each row was (text of the prompt, ctx), positions that sub-agents said, the row's ctx afterwards."""
    engine, ctx = Engine(clerk, codec), dict(ctx)
    row, seen, add = engine.add(codec.encode(lessons()['team'][0]), max_new=100, temperature=0, ctx=ctx), [], engine.add
    engine.add = lambda *a, **k: seen.append(add(*a, **k)) or seen[-1]
    engine.run()
    return row.result['text'], seen, ctx


def test_agents_have_agents(clerk):
    text, seen, ctx = spawned(clerk, depth=2, tokens=400)
    assert text == '<tool>spawn{"tasks": ["one", "two"]}</tool><out>1. A\n2. B</out>both'
    assert [codec.untext(r.prompt['ids']) for r in seen] == [f'<user>{t}<assistant><agent>' for t in ('one', 'two', 'three')]
    assert [r.ctx['depth'] for r in seen] == [1, 1, 0] and len({int(r.key[0]) for r in seen}) == 3
    said = sum(sum(r.w) for r in seen)
    assert ctx['tokens'] == 400 - said                                # what they did not use came back, and nothing more


def test_depth_and_tokens_are_limits(clerk):
    assert 'no more agents' in spawned(clerk, depth=0, tokens=400)[0] and 'no more agents' in spawned(clerk, depth=2, tokens=0)[0]
    assert 'error: 1 tokens are left, too few for 2 agents' in spawned(clerk, depth=1, tokens=1)[0]
    text, seen, _ = spawned(clerk, depth=1, tokens=400)               # the second may not have agents of its own, and says so
    assert len(seen) == 2 and '1. A' in text and 'no more agents' in codec.untext(seen[1].ids)
    for tokens in (2, 7, 30, 90):
        text, seen, ctx = spawned(clerk, depth=2, tokens=tokens)
        assert sum(sum(r.w) for r in seen) + ctx['tokens'] == tokens and ctx['tokens'] >= 0


def test_a_report_is_what_is_to_be_read():
    read = lambda *segments: sample.report(codec, codec.encode(list(segments))['ids'].tolist())
    s = lambda *names: ('ids', [sp[n] for n in names])
    assert read(s('agent', 'r3'), s('think'), ('text', 'a'), s('/think', 'report'), ('text', ' b '), s('/report', 'eot')) == 'b'
    assert read(s('report'), ('text', 'a'), s('/report', 'report'), ('text', 'cut')) == 'cut'
    assert read(s('report'), ('text', 'a'), s('/report'), ('text', 'noise'), s('eot')) == 'a'
    assert read(s('think'), ('text', 'a'), s('/think'), ('text', 'b'), s('eot')) == 'b' and read(('text', 'c')) == 'c'
    assert read(s('think'), ('text', 'open')) == '' and read(('text', 'x'), s('tool'), ('text', 'open')) == ''
    assert read(*tool('f{}', 'result'), ('text', 'so')) == 'so' and read() == ''


# ---------------------------------------------------------------- contemplating

def test_contemplating(clerk):
    """Four agents with a role each, their reports in any order, the orchestrator; what else could have been answered; latency by hand."""
    deep, seen = codec.encode(lessons()['alone'][0]), []
    other = codec.encode(turn(codec, 'deep'))                         # the same question: another order of reports
    a, b = sample.contemplate(clerk, codec, [deep, other], 4, temperature=0, rows=7, watch=seen.append)
    for g in (a, b):
        assert (g['answer'], g['reports'], g['one']) == ('5', ['7', '?8', '?8', '?9'], '8') and (g['majority'], g['vote']) == ('8', '7')
        # role; <think>abcd</think><report>?9</report><eot>; reports; <think>m</think>5<eot>
        assert g['steps'] == 1 + 6 + 4 + 1 + 1 + 5 and g['steps_one'] == 12
    order = [codec.untext(g['result']['doc']['ids']).split('<think>')[0].split('<report>')[1:] for g in (a, b)]
    assert sorted(order[0]) == sorted(order[1]) == [f'{r}</report>' for r in ('7', '?8', '?8', '?9')] and order[0] != order[1]
    group = seen[-1][0]
    for (roles, said), r in zip(DEEP, group.agents):
        assert r.ids[:3] == [sp['agent'], *(sp[k] for k in roles)] and r.w[:3] == [0] * 3 and all(r.w[3:])
    w, ids = np.array(group.merge.w), np.array(group.merge.ids)
    assert not w[:list(ids).index(sp['think'])].any() and w[list(ids).index(sp['think']):].all()
    assert len({id(r.prompt) for r in (*group.agents, group.merge, group.one)}) == 1


def test_an_answer_right_behind_the_reports(clerk):
    g, = sample.contemplate(clerk, codec, [codec.encode(turn(codec, 'short'))], 2, temperature=0, max_new=8)
    assert g['reports'] == ['4', '6'] and g['answer'] == '3'
    g, = sample.contemplate(clerk, codec, [codec.encode(turn(codec, 'short'))], 2, temperature=0, max_new=1)
    assert g['answer'] == '3' and sum(g['result']['w']) == 1


def test_the_prompt_is_read_once(clerk, monkeypatch):
    prompt, n, read = codec.encode(turn(codec, 300 * 'q')), [], sample.read
    monkeypatch.setattr(sample, 'read', lambda dec, c, feeds, *a: n.append(sum(len(f[0]) for f in feeds)) or read(dec, c, feeds, *a))
    sample.contemplate(clerk, codec, [prompt], 8, think=4, brief=4, max_new=8)
    assert 300 < sum(n) < 500


def test_thoughts_end_in_time(clerk):
    """At the deadline </think>, for agents <report> too, is put in, weight 0; nobody says more than think + brief."""
    seen = []
    g, = sample.contemplate(clerk, codec, [codec.encode(lessons()['alone'][0])], 4, think=3, brief=3, max_new=10, alone=6, temperature=0,
                            watch=seen.append)
    group = seen[-1][0]
    for k, r in enumerate(group.agents):
        n = min(3, k + 3)                                             # <think>ab: thoughts of a, ab, abc, abcd
        closing = [sp['/think'], sp['report']] if k > 0 else [sp['report']]
        assert sum(r.w) <= 6 and r.w[3:6] == [1] * 3 and r.ids[6:6 + len(closing)] == closing and not any(r.w[6:6 + len(closing)]), k
    one = group.one
    assert one.ids[:4] == [sp['think'], *b'ab', sp['/think']] and one.w[:4] == [1, 1, 1, 0] and sum(one.w) <= 6
    assert [i for i, w in zip(one.ids, one.w) if not w] == [sp['/think']]
    assert g['steps_one'] == sum(one.w) + 1 and g['steps'] == max(sum(r.w) for r in group.agents) + 2 + sample.latency(group.merge)


def test_numbers_decide_all(clerk):
    seen = []
    ask = lambda seed: sample.contemplate(clerk, codec, [codec.encode(turn(codec, 'deep'))] * 2, 3, think=20, temperature=3.0,
                                          seed=seed, rows=3, watch=seen.append)
    a, b, c = ask(1), ask(1), ask(2)
    strip = lambda g: [(x['answer'], x['reports'], x['one'], x['steps']) for x in g]
    assert strip(a) == strip(b) and strip(a) != strip(c) and a[0]['reports'] != a[1]['reports']
    assert seen[-1][0].merge.knobs[0] == 0 and {r.knobs[0] for r in (*seen[-1][0].agents, seen[-1][0].one)} == {3.0}


def test_votes():
    assert sample.majority(['b', 'a', 'a', 'b']) == 'b' and sample.majority(['b', 'a', 'a']) == 'a' and sample.majority([]) == ''


# ---------------------------------------------------------------- the task of the bench

def test_both_verifiers_of_twice_agree():
    every = [''.join(x) for x in itertools.product('+-', repeat=6)]
    assert twice.word('++---+') == 'ABcdeF'
    right = 0
    for i in range(40):
        p = twice.problem(i, 6, 'held')
        for s in every:
            sums = [eval(''.join(c + d for c, d in zip(s, q.split('=')[0]))) % 10 == int(q.split('=')[1]) for q in p['question'].split(',')]
            assert twice.verify(p, twice.word(s)) == twice.judge(p, twice.word(s)) == all(sums)
            right += all(sums)
        for s in ('', 'A', every[0], 'ABCDEFG', 'ABCDE', 'ABCDE*', 'BACDEF', 'ABCDE\u00c6', None, 7, 'ABCDEF '):
            assert twice.verify(p, s) == twice.judge(p, s) == 0
    assert 2.5 < right / 40 < 4.5
    assert not any(twice.verify(twice.canary(1, 4), twice.word(s)) for s in itertools.product('+-', repeat=4))


def test_a_twin_of_twice_has_the_answers_in_reverse():
    p = twice.problem(3, 6)
    q = twice.twin(p)
    words = [''.join(s) for s in itertools.product('+-', repeat=6)]
    hits = [s for s in words if twice.verify(p, twice.word(s))]
    assert hits and [s for s in words if twice.verify(q, twice.word(s[::-1]))] == hits and q['question'] != p['question']


def test_held_out_problems_of_twice_are_not_trained_on():
    key = lambda p: (*sorted(zip(*p['rows'])), *p['targets'])
    train, held = ({key(twice.problem(i, 3, part)) for i in range(1500)} for part in ('train', 'held'))
    assert len(train) > 1300 and len(held) > 800 and not train & held


def test_documents_of_twice():
    """Thoughts are right in every step; a report is what was found, or a guess behind a ?; roles are kept; one report is repeated."""
    kinds, last = Counter(), []
    for i in range(400):
        text, p = codec.untext(codec.encode(document(i, 'train', codec))['ids']), twice.problem(i, 6)
        question, agent, roles, reports, thought, answer = re.fullmatch(
            r'<user>(.*)<assistant>(<agent>)?((?:<r\d>)*)((?:<report>[^<>]*</report>)*)(?:<think>(.*)</think>)?(.*)<eot>', text).groups()
        answer = answer.removeprefix('<report>').removesuffix('</report>')
        said = re.findall('<report>(.*?)</report>', reports)
        claims = [r for r in said if r[0] != '?']
        kinds['agent' if agent else 'merge' if reports else 'alone'] += 1
        assert question == p['question'] and (thought is None) == bool(reports)
        assert answer.removeprefix('?' * bool(agent)).upper() == 'ABCDEF'
        if reports:
            assert answer in [r.lstrip('?') for r in said]
            last += [answer == claims[-1]] if len(claims) > 1 else []
            continue
        good, steps = twice.steps(p, thought)
        assert good == steps, text
        tries = thought.split('x')
        hit = len(tries[-1]) == 25 and tries[-1].endswith('0')        # both rows, nothing left
        assert hit == twice.verify(p, answer) and tries[-1][:12:2] == answer if hit else answer[0] == '?' or not agent
        for b, r in enumerate(re.findall(r'<r(\d)>', roles)):
            assert int(r) // 2 == b and all(t[2 * b:2 * b + 1] in ('', chr((65, 97)[int(r) % 2] + b)) for t in tries)
            assert answer.lstrip('?')[b] == chr((65, 97)[int(r) % 2] + b)
    assert min(kinds.values()) > 60 and .5 < np.mean(last) < .85


def test_problems_of_merge(tmp_path, monkeypatch):
    """Reports are those of the problem, held-out problems stay apart, the judge is that of twice, and no canary pays."""
    from data.merge import task as merge
    monkeypatch.setattr(merge, 'FILE', tmp_path / 'reports.json')
    merge.frozen.cache_clear()
    with pytest.raises(merge.BadInput, match='data/merge/prepare.py'):
        merge.problem(0, 8)
    made = {split: [twice.problem(i, 6, split) for i in range(20)] for split in ('train', 'held')}
    hits = {p['question']: next(w for s in itertools.product('+-', repeat=6) if twice.verify(p, w := twice.word(s)))
            for ps in made.values() for p in ps}
    merge.FILE.write_text(json.dumps({split: [dict(rows=p['rows'], targets=p['targets'], reports=[hits[p['question']]] + ['?ABCDEF'] * 7)
                                              for p in ps] for split, ps in made.items()}))
    for i in range(40):
        split = ('train', 'held')[i % 2]
        p, q = merge.problem(i, 8, split), merge.problem(i, 3, split)
        hit = hits[p['question']]
        assert p['question'] in [t['question'] for t in made[split]] and p['level'] == 8 and len(q['reports']) == 3
        assert sorted(p['reports']) == sorted([hit] + ['?ABCDEF'] * 7)
        assert merge.verify(p, hit) == merge.judge(p, hit) == 1
        assert merge.verify(p, hit[:5]) == merge.judge(p, hit[:5]) == merge.verify(p, None) == merge.judge(p, None) == 0
    fake = merge.canary(1, 8)
    turned = merge.twin(p)
    assert turned['reports'] == p['reports'][::-1] and turned['question'] == p['question']
    assert len(fake['reports']) == 8 and not any(merge.verify(fake, twice.word(s)) for s in itertools.product('+-', repeat=6))
    merge.frozen.cache_clear()


def test_an_agent_of_a_team_is_paid_half_for_what_it_adds():
    """Two that found the same add nothing to one another; a guess, or nothing, earns nothing; who misleads pays."""
    from data.team import task as team
    p = team.problem(0, 6)
    hit = next(w for s in itertools.product('+-', repeat=6) if twice.verify(p, w := twice.word(s)))
    miss = hit.swapcase()
    assert twice.verify(p, miss) == 0 and len(p['roles']) == len({tuple(r) for r in p['roles']}) == team.AGENTS
    for answer, right in ((f'<report>{hit}</report>', 1), (f'<report>?{hit}</report>', 0), (hit, 0), (f'<report>{hit}', 0), (None, 0),
                          ('', 0)):
        assert team.verify(p, answer) == team.judge(p, answer) == right, answer
    asked = []
    def ask(problems, k):
        """An orchestrator that believes any miss, else any hit, and is paid as whoever answers."""
        asked.extend(problems)
        said = [miss if miss in q['reports'] else hit if hit in q['reports'] else 'x' for q in problems]
        return [[dict(r=team.verify(q, a))] * k for q, a in zip(problems, said)]
    for reports, pay in (((hit, '?ABCDEF', None), (1, 0, 0)), ((hit, hit, None), (.5, .5, 0)), ((hit, miss, None), (.5, -.5, 0))):
        group = [dict(problem=p, answer=s and f'<report>{s}</report>', r=float(s == hit)) for s in reports]
        asked.clear()
        team.credit([group], ask)
        assert tuple(o['pay'] for o in group) == pay
        assert [sorted(q['reports']) for q in asked] == [
            sorted(s for j, s in enumerate(reports) if s and j != out) for out in (-1, 0, 1, 2)]
        assert all(q['roles'] == [()] and q['question'] == p['question'] for q in asked)


def test_steps_of_twice_see_what_is_wrong():
    p = twice._make([[3, 4, 2], [1, 9, 3]], [5, 5])                   # 3+4-2 = 5; 1+9-3 = 7; -3+4+2 = 3; 3-4+2 = 1
    assert twice.steps(p, 'A2b6c8x') == (4, 4) and twice.steps(p, 'A2B8c0,A4B5c8x') == (8, 8)
    assert twice.steps(p, 'A2b7c9x') == (2, 4)                        # a value that is wrong, and all after it; missed, as it says
    assert twice.steps(p, 'A2b6c8,') == (3, 4) and twice.steps(p, 'A2B8c0x') == (3, 4)       # verdicts
    assert twice.steps(p, 'A2B8c0,A4b3c6x')[0] < 8                    # other signs in the second row
    assert twice.steps(p, 'A2b6') == (2, 2) and twice.steps(p, '') == (0, 0)


def test_a_long_row_reads_little_beside_one_that_reads_much(clerk):
    """In one step: the largest n and the largest T are those of different rows, and together more than the cache holds."""
    long, other, got = codec.encode([('text', 60 * 'x')]), codec.encode(lessons()['calc'][0] + [('text', 40 * 'y')]), []
    for together in (True, False):
        engine = Engine(clerk, codec, rows=2)
        row = engine.add(long, index=0, max_new=6, temperature=0)
        engine.step()
        if together:
            second = engine.add(other, index=1, max_new=6, temperature=0)
        engine.insert(row, [('text', 'z')])
        if not together:
            while engine.step():
                pass
            second = engine.add(other, index=1, max_new=6, temperature=0)
        engine.run()
        got.append((row.result['ids'], second.result['ids']))
    assert got[0] == got[1]


# ---------------------------------------------------------------- layouts

def on_rank(rank, path, where):
    tp, pp = (2, 1) if rank < 2 and where == 'tp' else (1, 2)
    model = sample.load_model(path, tp=tp, pp=pp)[0]
    out = [ask(model, name, ctx=dict(images=[PIXELS], depth=2, tokens=400, workspace=f'{path}/{where}'))
           for name in ('note', 'find', 'calc')]
    return [r['doc']['ids'].tolist() == want['ids'].tolist() for r, want in out]


@pytest.mark.parametrize('where', ['tp', 'pp'])
def test_one_rank_runs_the_tools_for_all(where, clerk, tmp_path):
    """`insert` adds a line to a file: once, not once for each rank; all read the same result."""
    (tmp_path / where).mkdir()
    save(tmp_path, 1, clerk)
    assert ranks(2, on_rank, tmp_path, where) == 2 * [[True] * 3]
    assert (tmp_path / where / 'a.txt').read_text() == 'hi\n'


# ---------------------------------------------------------------- the command line

@pytest.fixture(scope='module')
def desk(clerk, tmp_path_factory):
    """A folder with the clerk's checkpoint and a picture."""
    folder = tmp_path_factory.mktemp('desk')
    save(folder / 'clerk', 1, clerk)
    Image.fromarray(PIXELS).save(folder / 'p.png')
    return folder


def flags(desk):
    return [f'--out_dir={desk}/clerk', '--temperature=0', '--guide=1', '--max_new=100000', f'--save={desk}/made']


class Terminal:
    """A program on a pseudo-terminal: say(what is typed), until(text) -> everything that it showed up to that text."""
    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            signal.signal(signal.SIGINT, signal.SIG_IGN)              # as a shell does for what runs in the background; it is inherited
            os.execv(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
        self.shown = b''

    def say(self, text):
        os.write(self.fd, text.encode())

    def until(self, text, patience=300):
        while text.encode() not in self.shown:
            assert select.select([self.fd], [], [], patience)[0], f'no {text!r} in {self.shown!r}'
            try:
                new = os.read(self.fd, 65536)
            except OSError:                                           # it has ended
                new = b''
            assert new, f'it ended without {text!r}: {self.shown!r}'
            self.shown += new
        seen, _, self.shown = self.shown.partition(text.encode())
        return seen.decode()


def test_a_conversation_on_a_terminal(desk):
    """A picture, a call, points on a copy of the picture, agents in columns, Ctrl-C in the middle of both kinds of answer, the next one."""
    t = Terminal(sys.executable, 'sample.py', '--chat', '--think=100000', *flags(desk))
    try:
        t.until('> ')
        t.say(f'/image {desk}/p.png\n')
        t.until('> ')
        t.say('find\n')
        seen = t.until('_marked.png')
        assert '\x1b[2m<tool>ground{"query": "dot"}</tool>\x1b[0m' in seen
        assert '\x1b[2m<out><point><46><32></out>\x1b[0mat <point><46><32>' in seen
        t.until('> ')
        t.say('/new\n/agents 4\n')
        t.until('> ')
        t.until('> ')
        t.say('deep\n')
        seen = t.until('steps (one: ')
        answer = seen[seen.rindex('<think>'):]
        assert re.search(r'1: \d+ done +2: \d+ done +3: \d+ done +4: \d+ done\x1b\[0m\r\na 7 +ab \?8 +abc \?8 +abcd \?9', seen), seen
        assert '<think>m</think>\x1b[0m5' in answer and 'agent 1: 7' in answer and 'self-verified vote: 7 | 18 ' in answer
        t.until('> ')
        for agents, shown in (0, 6 * 'ab'), (2, '\x1b[7F\x1b[J'):     # in the stream; columns drawn over themselves
            t.say(f'/new\n/agents {agents}\n')
            t.until('> ')
            t.until('> ')
            t.say('long\n')
            t.until(shown)
            t.say('\x03')
            t.until('(stopped)')
            t.until('> ')
        t.say('/new\n/agents 0\n')
        t.until('> ')
        t.until('> ')
        t.say('6*7?\n')
        t.until('<out>42</out>\x1b[0m42\x1b[0m\r\n')
        t.until('> ')
        t.say('/quit\n')
        assert os.waitpid(t.pid, 0)[1] == 0
        t.pid = 0
    finally:
        if t.pid:
            os.kill(t.pid, signal.SIGKILL)
            os.waitpid(t.pid, 0)
        os.close(t.fd)
    marked = np.array(Image.open(desk / 'made' / 'chat_0_0_marked.png'))
    k = len(marked) // len(PIXELS)
    at = int((46 + .5) / 64 * 48 * k), int((32 + .5) / 64 * 32 * k)
    assert k > 1 and marked[at[1], at[0]].tolist() == [255, 0, 0] and (marked[::k, ::k] == PIXELS).all(-1).mean() > .95


def test_programs_read_json_and_pipes_have_no_colours(desk):
    lines = run('--chat', '--json', *flags(desk),
                stdin=f'/image {desk}/p.png\nfind\n/image nowhere.png\n/new\n/agents 4\ndeep\n').splitlines()
    first, wrong, second = map(json.loads, lines)
    assert first['answer'] == 'at <point><46><32>' and first['files'] == [f'{desk}/made/chat_0_0_marked.png'] and first['seconds'] > 0
    assert 'nowhere.png' in wrong['error']
    assert {k: second[k] for k in ('answer', 'reports', 'one', 'majority', 'vote', 'steps', 'steps_one')} == dict(
        answer='5', reports=['7', '?8', '?8', '?9'], one='8', majority='8', vote='7', steps=18, steps_one=12)
    plain = run('--chat', *flags(desk), stdin='6*7?\n/new\n/agents 4\ndeep\n')
    assert '\x1b' not in plain and '</tool><out>42</out>42\n' in plain and '<think>m</think>5\nagent 1: 7\n' in plain


def test_marks():
    ids = [97, *DOT, sp['box'], L, L + 63, L + 31, L, 98, sp['point'], L + 1, 99, sp['box'], L, L, L]
    points, boxes = codec.marks(ids)
    assert points == [((46 + .5) / 64, 32.5 / 64)] and boxes == [(.5 / 64, 63.5 / 64, 31.5 / 64, .5 / 64)]
    a = np.full((256, 512, 3), 9, np.uint8)
    out = mark(a, [(.5, .5)], [(.25, .75, .5, .25)])
    red = (out == [255, 0, 0]).all(-1)
    assert out.shape == a.shape and (a == 9).all() and red[128, 256] and red[64, 128:256].all() and red[64:192, 128].all()
    assert not red[100, 200]
    assert mark(a, [], []) is None and mark(a[:100, :100], [(0, 0)], []).shape == (500, 500, 3)
