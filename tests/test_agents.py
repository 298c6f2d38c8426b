"""
Tools, sub-agents, contemplating and the command line, with a small model that has learned a handful of documents by heart: it says exactly
the calls that are to be tested, and what comes back is compared with the documents.
"""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import toy
from data.tools import call
from model import ModelConfig, Muse
from parallel import solo_mesh
from sample import Engine, generate, turn
from test_parallel import ranks
from test_sample import save
from toy import codec

sp, L = codec.sp, codec.loc0
ROOT = Path(__file__).resolve().parents[1]
PIXELS = np.zeros((32, 48, 3), np.uint8)
PIXELS[:, :24] = 255, 0, 0
PIXELS[8:24, 30:40] = 0, 0, 255
DOT = [sp['point'], L + 46, L + 32]


def tool(text, result):
    """A call and what comes back, as segments: the latter is not learned."""
    result = [('text', result, 0)] if isinstance(result, str) else result
    return [('ids', [sp['tool']]), ('text', text), ('ids', [sp['/tool']]), ('ids', [sp['out']], 0), *result, ('ids', [sp['/out']], 0)]


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
        dot=(ask('dot', [PIXELS]), [('ids', DOT)]),
        look=(ask('near', [PIXELS]), [*tool('look{"box": [0, 0, 31, 63]}', looked), ('text', 'red')]),
        draw=(ask('paint'), [*tool('draw{"prompt": "sun"}', [('image', PIXELS[:8, :16], 0)]), ('text', 'done')]),
        sun=(ask('sun'), [('image', PIXELS[:8, :16])]),
        team=(ask('team'), [*tool('spawn{"tasks": ["one", "two"]}', '1. A\n2. B'), ('text', 'both')]),
        one=(agent('one'), told('A')),
        two=(agent('two'), [*tool('spawn{"tasks": ["three"]}', '1. C'), *told('B')]),
        three=(agent('three'), told('C')))
    return out


@pytest.fixture(scope='module')
def clerk():
    """Has learned the lessons by heart, in a few seconds."""
    torch.manual_seed(0)
    docs = [[*p, *a, ('ids', [sp['eot']])] for p, a in lessons().values()]
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
    names, ctx = ['draw', 'calc', 'find', 'bad', 'draw'], dict(images=[PIXELS])
    prompts = [codec.encode(lessons()[n][0]) for n in names]
    together = generate(clerk, codec, prompts, max_new=100, temperature=.1, flow_steps=4, batch=2, ctx=ctx, seed=3)
    for i, (p, r) in enumerate(zip(prompts, together)):
        engine = Engine(clerk, codec, flow_steps=4)
        alone = engine.add(p, index=i, max_new=100, temperature=.1, ctx=ctx, seed=3)
        engine.run()
        assert alone.result['ids'] == r['ids'] and np.abs(alone.result['doc']['patches'].astype(int) - r['doc']['patches']).max(initial=0) <= 1
    assert (together[0]['doc']['patches'] != together[4]['doc']['patches']).any()


def stopped_at(said, **ctx):
    """agent_step for a row that has just said this -> (text of what comes back, positions left of 50)."""
    row = SimpleNamespace(ctx=ctx, prompt=codec.encode([('text', 'q')]), ids=codec.encode(said)['ids'].tolist(), left=50, key=[0], knobs=(0, 9, 2))
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
    assert read(s('think'), ('text', 'a'), s('/think'), ('text', 'b'), s('eot')) == 'b' and read(('text', 'c')) == 'c'
    assert read(s('think'), ('text', 'open')) == '' and read(('text', 'x'), s('tool'), ('text', 'open')) == ''
    assert read(*tool('f{}', 'result'), ('text', 'so')) == 'so' and read() == ''


# ---------------------------------------------------------------- layouts

def on_rank(rank, path, where):
    tp, pp = (2, 1) if rank < 2 and where == 'tp' else (1, 2)
    model = sample.load_model(path, tp=tp, pp=pp)[0]
    out = [ask(model, name, ctx=dict(images=[PIXELS], depth=2, tokens=400, workspace=f'{path}/{where}')) for name in ('note', 'find', 'calc')]
    return [r['doc']['ids'].tolist() == want['ids'].tolist() for r, want in out]


@pytest.mark.parametrize('where', ['tp', 'pp'])
def test_one_rank_runs_the_tools_for_all(where, clerk, tmp_path):
    """`insert` adds a line to a file: once, not once for each rank; all read the same result."""
    (tmp_path / where).mkdir()
    save(tmp_path, 1, clerk)
    assert ranks(2, on_rank, tmp_path, where) == 2 * [[True] * 3]
    assert (tmp_path / where / 'a.txt').read_text() == 'hi\n'
