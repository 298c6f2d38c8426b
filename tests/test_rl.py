"""
rl.py and its tasks: verifiers against each other and against what people try to game them with; the policy gradient against autograd
through a plain model, under every packing and layout; the script: stopped and resumed, on several ranks, on what a user gets wrong.

    python -m pytest tests/test_rl.py            about 40 s on 2 cores
"""
import ast
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toy
from data.checkpoint import Checkpoint, checkpoints, save_checkpoint
from data.codec import BadInput, Codec
from data.rollouts import alarms, pack, pass_at, repeated, split
from data.shards import open_shards
from data.tools import call
from model import ModelConfig, Muse, build
from optim_zero import Optimizer
from parallel import forward_backward, forward_only, make_mesh, solo_mesh
from sample import Engine, turn
from test_parallel import ranks
from test_train import TERM, machine, one_line  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
codec = Codec('bytes')
THINK, TOOLS = ('signs', 'countdown', 'chain'), ('pytool', 'lookup', 'peek', 'point', 'spawn')
TASKS = THINK + TOOLS


def functions(script, *names):
    """These functions of a script, which is not run, and what it imports."""
    tree = ast.parse((ROOT / script).read_text())
    tree.body = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) or getattr(n, 'name', None) in names]
    exec(compile(tree, script, 'exec'), space := {})
    return SimpleNamespace(**{n: space[n] for n in names})


rl = functions('rl.py', 'advantages', 'coefficients')


# ---------------------------------------------------------------- tasks

@pytest.fixture(params=TASKS)
def task(request):
    return import_module(f'data.{request.param}.task')


def candidates(task, p, rng):
    """Answers to a problem, right and wrong ones."""
    if task.NAME == 'signs':
        return [''.join(s) for n in (p['level'] - 2, p['level'] - 1, p['level']) for s in product('+-', repeat=n)]
    if task.NAME == 'chain':
        return [str(v) for v in range(-3, 103)] + [f'0{v}' for v in range(10)]
    if task.NAME == 'pytool':
        n = p['product'] or 10 ** 5
        return [str(n + d) for d in range(-9, 10)] + [f'0{n}', f'+{n}', f'{n}.0', f'{n}*1', str(n * 10), str(n)[:-1]]
    if task.NAME == 'lookup':
        return [str(v) for v in range(95, 1005)] + ['0100', '+204']
    if task.NAME == 'peek':
        return [str(v) for v in range(-1, 11)] + ['07']
    if task.NAME == 'spawn':
        v = p['values'] or [1, 2]
        return [','.join(map(str, x)) for x in (v, v[::-1], v[1:], v + v[:1], [(n + 1) % 100 for n in v])] + [' '.join(map(str, v)), '07']
    if task.NAME == 'point':
        return [f'<point><{x}><{y}>' for x in range(0, 66, 3) for y in range(1, 66, 3)] + ['<point><5>', '<box><5><5>']
    out = []
    for _ in range(60):
        s = ''
        for n in rng.sample(p['numbers'], p['level']):
            s += (rng.choice('+-*/') if s else '') + rng.choice(['', '', '(']) + str(n) + rng.choice(['', '', ')'])
        out += [s, s + ')' * (s.count('(') - s.count(')')), s.replace('+', '')]
    return out


def test_two_verifiers_agree_and_every_problem_has_an_answer(task):
    rng, right = random.Random(0), 0
    for i in range(60):
        p = task.problem(i, (levels := list(task.LEVELS)[:4])[i % len(levels)], ('train', 'held')[i % 2])
        answers = candidates(task, p, rng)
        assert [task.verify(p, a) for a in answers] == [task.judge(p, a) for a in answers], p
        right += (found := sum(task.verify(p, a) for a in answers)) > 0
        assert found or task.NAME == 'countdown'              # there they are drawn at random
    assert right > 20


def test_canaries_pay_nothing(task):
    rng = random.Random(0)
    for i in range(12):
        p = task.canary(i, list(task.LEVELS)[:3][i % 3])
        assert not any(task.verify(p, a) or task.judge(p, a) for a in candidates(task, p, rng)), p


@pytest.mark.parametrize('name, turned', [('signs', lambda a: a[::-1]), ('countdown', lambda a: a), ('pytool', lambda a: a)])
def test_twins_are_another_question_with_the_same_answers(name, turned):
    task, rng, differ, hits = import_module(f'data.{name}.task'), random.Random(1), 0, 0
    for i in range(12):
        p = task.problem(i, 3)
        q = task.twin(p)
        differ += q['question'] != p['question']
        for a in candidates(task, p, rng):
            assert task.verify(p, a) == task.verify(q, turned(a)) == task.judge(q, turned(a)), (p, a)
            hits += task.verify(p, a)
        assert q['level'] == p['level'] and task.twin(q)['question'] == p['question']
    assert differ > 8 and hits > 8


HOSTILE = ['4**2+1', '4.5*2', '99**98**97', '', ' ', '\n', '٣', '１２', '²', '+' * 10 ** 6, '(' * 10 ** 5, '1' * 10 ** 6, '9**9**9',
           '3/0', '((((((((', '-(' * 90, '+-\n', '1_0', '0x10', '1e3', 'None', '__import__("os").system("id")', '</think>+-', '\ud800',
           '\0', '3 + 4', '---------', '1//1', '(1,)', 'True', '0o7', '5 if 1 else 2', None, 7, 3.5, [], b'+-', {}]


@pytest.mark.parametrize('answer', HOSTILE, ids=lambda a: repr(a)[:20])
def test_hostile_answers_are_wrong_at_once(answer):
    for name in TASKS:
        task, spent = import_module(f'data.{name}.task'), []
        for level in list(task.LEVELS)[1:4]:
            p = task.problem(1, level)
            before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
            began = time.process_time()
            assert task.verify(p, answer) == task.judge(p, answer) == 0
            spent.append(time.process_time() - began)
            after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
            assert after[:2] == before[:2] and torch.equal(after[2], before[2])
        assert min(spent) < 0.002, f'{name}: {spent}'         # of CPU: whatever else the machine does


def test_splits_have_no_problem_in_common(task):
    """Nor one that differs by the order of its numbers only (signs, countdown)."""
    def key(p):
        if task.NAME == 'signs':
            return p['digits'][0], *sorted(p['digits'][1:]), p['target']
        if task.NAME == 'pytool':
            return tuple(sorted(p['question'][:-1].split('*')))
        return {'countdown': lambda: (*sorted(p['numbers']), p['target']), 'peek': lambda: (p['images'][0] > 16).tobytes(),
                'point': lambda: str(sorted(p['boxes']))}.get(task.NAME, lambda: p['question'])()
    for level in list(task.LEVELS)[1:3]:
        train, held = ({key(task.problem(i, level, s)) for i in range(400)} for s in ('train', 'held'))
        assert not train & held and key(task.problem(3, level)) == key(task.problem(3, level)) != key(task.problem(4, level))
    if task.NAME == 'spawn':                                  # and of a held-out sum every step is in a training one
        said = lambda s: {r for i in range(600) for r in task.problem(i, 2, s)['question'].split(' ')}
        train, held = ({x for r in said(s) for x in re.findall('(?=((?:^|[+=])[0-9]+[+][0-9]+=[0-9]+))', task.thought(r))}
                       for s in ('train', 'held'))
        assert held and held <= train
    if task.NAME == 'signs':
        assert len({task.problem(i, 3, 'held')['question'] for i in range(8 * 256)}) >= 256


@pytest.mark.parametrize('task', [import_module(f'data.{n}.task') for n in THINK], ids=THINK)
def test_thoughts_of_the_warm_start_are_right_steps_and_end_in_their_answer(task):
    """Every step counts as right; one wrong character makes some step wrong; validation documents are about held-out problems."""
    prepare, rng = import_module(f'data.{task.NAME}.prepare'), random.Random(0)
    styles, spoiled = set(), 0
    for i in range(200):
        doc = prepare.document(i, ('train', 'val')[i % 2], codec)
        question, *thought, answer = (s[1] for s in doc if s[0] == 'text')
        p = next(p for l in task.LEVELS for p in [task.problem(i, l, ('train', 'held')[i % 2])] if p['question'] == question)
        right, total = task.steps(p, thought[0] if thought else '')
        assert right == total and (total > 0) == bool(thought)
        if task.NAME == 'chain' or (thought and not thought[0].endswith('x')):
            assert task.verify(p, answer) == 1
        text = thought[0] if thought else ''
        styles.add((bool(thought), '=' in text, len(text.split(',')) == p['level']))
        if thought:
            at = rng.choice([k for k, c in enumerate(thought[0]) if c.isalnum() and c != "x"])
            bad = thought[0][:at] + rng.choice([c for c in '0123456789' if c != thought[0][at]]) + thought[0][at + 1:]
            r, t = task.steps(p, bad)
            spoiled += r < t
    assert len(styles) >= 2 and spoiled > 120                 # in brief thoughts another digit may be right, too


def test_gsm_symbolic():
    """Its problems, thoughts and verifiers, where the package that has the templates can be had."""
    from data.gsm_symbolic import prepare, task
    try:
        task.templates()
    except BadInput as e:
        pytest.skip(str(e))
    asked = {s: set() for s in ('train', 'held')}
    for i in range(120):
        p = task.problem(i, list(task.LEVELS)[i % 5], s := ('train', 'held')[i % 2])
        asked[s].add(p['question'])
        assert p == task.problem(i, p['level'], s)
        for a in (p['value'], f"{float(p['value']) + 1:g}", p['value'] + '0', p['value'] + '.0', '0' + p['value'], '-' + p['value']):
            assert task.verify(p, a) == task.judge(p, a), (p, a)
        assert task.verify(p, p['value']) == 1
        assert task.verify(task.canary(i, p['level']), p['value']) == task.judge(task.canary(i, p['level']), p['value']) == 0
    assert not asked['train'] & asked['held'] and 'reasoning_gym' not in sys.modules
    for a in HOSTILE:
        assert task.verify(p, a) == task.judge(p, a) == 0
        began = time.process_time()
        assert not isinstance(a, str) or task.steps(p, a)[1] in (0, 1)
        assert time.process_time() - began < 0.1
    assert task.steps(p, 'A has 3 x (4+5) = 27 apples, 27/2=13.5, then 2 + 2 = 5, and 7 = 7') == (2, 3)
    thoughts = [[s[1] for s in prepare.document(i, 'train', codec) if s[0] == 'text'][1:-1] for i in range(60)]
    assert {len(t) for t in thoughts} == {0, 1} and 5 < sum('=' in t[0] and ' ' not in t[0] for t in thoughts if t) < 30


def test_the_warm_starts_shards_keep_the_splits_apart(tmp_path):
    """By the task's own hash, read back from the files: a loop variable bound late once made training documents about held-out problems."""
    task, flags = import_module('data.signs.task'), ['--n_train=60', '--n_val=30', f'--out={tmp_path / "out"}']
    subprocess.run([sys.executable, ROOT / 'data/signs/prepare.py', *flags], check=True, capture_output=True)
    for split, part in (('train', 'train'), ('val', 'held')):
        said = codec.untext(open_shards(tmp_path / 'out', split, codec)['ids'].tolist())
        asked = re.findall('<user>([0-9,]+)=([0-9a-u])<assistant>', said)
        problems = [task._make([int(d) for d in digits.split(',')], task.VALUES.index(t)) for digits, t in asked]
        assert len(problems) == dict(train=60, val=30)[split] and {task._part(p) for p in problems} == {part}


@pytest.mark.parametrize('name', TOOLS)
def test_what_the_warm_start_reads_is_what_the_tools_say(name):
    """The calls that a problem needs, run, give what the documents of the warm start have between <out> and </out>."""
    task, prepare = (import_module(f'data.{name}.{m}') for m in ('task', 'prepare'))
    p = task.problem(3, level := list(task.LEVELS)[1])
    calls = {'pytool': lambda: [task.call(p)], 'lookup': lambda: task.calls(p), 'peek': lambda: [task.call(p['place'])],
             'spawn': lambda: [task.call(p)], 'point': list}[name]()
    agents = dict(spawn=lambda tasks: [str(task.values(t)[-1]) for t in tasks]) if name == 'spawn' else {}
    said = [call(c, {**p['ctx'], 'seconds': 60, **agents}) for c in calls]
    thought = ''.join(f'<tool>{c}</tool><out></out>' for c in calls)
    assert task.steps(p, thought) == (len(calls), len(calls)) and task.steps(p, thought.replace('"', "'"))[0] == 0
    if name == 'pytool':
        refused = said[0][0][1].startswith('python: no sandbox')
        assert said == [[('text', f'{p["product"]}\n', 0)]] or refused
    if name == 'spawn':
        assert said == [[('text', '\n'.join(f'{k}. {v}' for k, v in enumerate(p['values'], 1)), 0)]]
    if name == 'lookup':
        world = {**task.links(random.Random(f'lookup/3/{level}/train').randrange(task.WORLDS), 'train')}
        heads = [f'{p["path"][0]}.txt: '] + ['1  '] * level
        assert said == [[('text', head + task.text(n, world), 0)] for head, n in zip(heads, p['path'])]
    if name == 'peek':
        (_, crop, _, box), = said[0]
        assert (crop == p['ctx']['images'][0][tuple(slice(8 * k, 8 * k + 8) for k in p['place'])]).all() and box[1] == p['place'][0] / 8
        other = [task._make(['red', 'blue'], [d, 9 - d], [(3, 4), (7, 6)])['images'][0] for d in range(10)]
        assert all((o == other[0]).all() for o in other)      # without a look nothing shows which digits they are
    for i in range(40):
        doc = codec.encode(prepare.document(i, ('train', 'val')[i % 2], codec))
        said = codec.untext(doc['ids'])
        assert said.endswith('<eot>') and said.count('<tool>') == said.count('</out>') and len(doc['ids']) < 300
        if name == 'spawn' and '<agent>' in said:             # an agent has room for one sum
            assert (doc['w'] > 0).sum() <= task.AGENT
        inside = 0
        for t, w in zip(doc['ids'].tolist(), doc['w'].tolist()):
            inside += (t == codec.sp['out']) - (t == codec.sp['/out'])
            assert not (inside and w)                         # what a tool said is not learned


@pytest.mark.parametrize('said, thought, answer', [
    ('+-', '', '+-'), ('<think>3+4</think>+-', '3+4', '+-'), ('<think>3+4', '3+4', ''), ('+-<think>', '+-', ''),
    ('<tool>f{}</tool><out>7</out>7', '<tool>f{}</tool><out>7', '7'), ('<tool>f{}</tool>', '<tool>f{}</tool>', ''),
    ('5<tool>f{}', '5<tool>f{}', ''), ('<think>a</think>1<think>b</think>2', 'a</think>1b', '2'),
    ('<think>a<tool>f{}</tool><out>7</out>b</think>8', 'a<tool>f{}</tool><out>7</out>b', '8'),
    ('<tool>f{}</tool><out>7</out><think>7', '<tool>f{}</tool><out>7</out>7', ''), ('', '', '')])
def test_the_answer_is_what_stands_behind_the_last_thought_or_result(said, thought, answer):
    """An open thought or call has none."""
    ids = [i for t in re.split('(</?[a-z]+>)', said) for i in ([codec.sp[t[1:-1]]] if t[:1] == '<' else codec.text(t))]
    assert split(codec, ids) == split(codec, [*ids, codec.sp['eot']]) == (thought, answer)


# ---------------------------------------------------------------- the formulas

def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n in (1, 4, 6):
        for right in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations(range(n), k))
                assert pass_at(k, right, n) == pytest.approx(sum(min(s) < right for s in subsets) / len(subsets))


def test_advantages_by_loops():
    rng = np.random.default_rng(0)
    r, n = (rng.random((5, 6)) < 0.6).astype(float), rng.integers(5, 60, (5, 6)).astype(float)
    r[0], r[1] = 1, 0                                         # solved by all, by none
    judged = np.ones_like(r, bool)
    R, A = rl.advantages(r, n, judged, 0.5, 40, 0.3, 0.9)
    for g in range(5):
        want = []
        for i in range(6):
            p = np.mean([r[g, j] for j in range(6) if j != i])
            want.append(r[g, i] * (1 - 0.5 * min(max((p - 0.3) / 0.6, 0), 1) * min(1, n[g, i] / 40)))
        assert R[g] == pytest.approx(want)
        assert A[g] == pytest.approx([want[i] - np.mean([want[j] for j in range(6) if j != i]) for i in range(6)])
    assert not A[1].any() and A[0].any()
    assert np.abs(rl.advantages(r, n, judged, 1e-3, 40, 0.3, 0.9)[1][0]).max() <= 2e-3      # a small penalty stays small in a solved group
    assert (rl.advantages(r, n, judged, 0.0, 40, 0.3, 0.9)[0] == r).all()
    some = rng.random((5, 6)) < 0.7                           # others were truncated: they count for these
    assert (rl.advantages(r, n, some, 0.5, 40, 0.3, 0.9)[1] == np.where(some, rl.advantages(r, n, judged, 0.5, 40, 0.3, 0.9)[1], 0)).all()
    longer = n + 30 * (r == 0)
    assert (rl.advantages(r, longer, judged, 0.5, 40, 0.3, 0.9)[0] == R).all()              # the length of wrong answers changes nothing


def literal(kind, new, old, logq, ref, A, own, total, low, high, tis, kl):
    """The loss of coefficients(), as it is written, for autograd. Tensors (N,)."""
    sg = lambda x: x.detach()
    if kind == 'gspo':
        mean = lambda x: torch.stack([x[own == i].mean() for i in own])
        rho, m = mean(new - old).exp(), mean(old - logq).exp().clamp(max=tis)
    else:
        rho, m = (new - old).exp(), (old - logq).exp().clamp(max=tis)
    each = m * sg(rho.clamp(max=1 + high)) * A * new if kind == 'cispo' else m * torch.minimum(rho * A, rho.clamp(1 - low, 1 + high) * A)
    return -each.sum() / total + kl / total * (new - ref).square().sum() / 2


KINDS = [('clip', 0.0), ('clip', 0.3), ('cispo', 0.0), ('gspo', 0.0), ('gspo', 0.2)]


@pytest.mark.parametrize('kind, kl', KINDS)
def test_coefficients_are_the_derivative_of_the_loss(kind, kl):
    g = torch.Generator().manual_seed(0)
    old = -torch.rand(60, generator=g, dtype=torch.float64) * 3
    move = lambda s: s * torch.randn(60, generator=g, dtype=torch.float64)
    own = torch.arange(60) // 10
    new, logq, ref = (old + move(1.2 if kind == 'gspo' else 0.4)).requires_grad_(), old + move(0.8), old + move(0.3)
    A = torch.randn(6, generator=g, dtype=torch.float64)[own]
    literal(kind, new, old, logq, ref, A, own, 96.0, 0.2, 0.28, 2.0, kl).backward()
    c, clipped = rl.coefficients(*(x.detach().numpy() for x in (new, old, logq, ref, A, own)), 96.0, kind, 0.2, 0.28, 2.0, kl)
    np.testing.assert_allclose(c, -new.grad.numpy(), rtol=1e-12, atol=1e-15)
    assert 0 < clipped < 1 and (kind == 'cispo' or kl or 0 < (c == 0).sum() < 60)


# ---------------------------------------------------------------- through the model

CFG = dict(vocab_size=codec.n_vocab, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ff=48, flow_width=32, flow_depth=1, zero_init=False,
           softcap=15.0, z_loss=0.0)
T, TOTAL = 64, 200.0


def rollouts(n=11, seed=0):
    """Prompts and what followed, of different lengths, with inserted tokens inside and at the end, one with a picture; advantages (n,)."""
    rng, out = np.random.default_rng(seed), []
    picture = rng.integers(0, 256, (16, 8, 3)).astype(np.uint8)
    for i in range(n):
        before = [('image', picture, 0)] if i == 3 else []
        prompt = codec.encode([*before, ('ids', [codec.sp['user']], 0), ('text', 'q' * int(rng.integers(1, 9)), 0)])
        size = int(rng.integers(1, 30))
        ids, w = rng.integers(97, 123, size), np.ones(size, np.uint8)
        w[size // 3:size // 3 + (i % 3)] = 0
        w[len(w) - (i % 2) * (size > 2):] = 0
        doc = dict(prompt, ids=np.concatenate([prompt['ids'], ids]), w=np.concatenate([0 * prompt['w'], w]))
        doc['w'][doc['ids'] == codec.sp['img']] = 1               # as if the model had drawn it
        out.append(dict(doc=doc, first=len(prompt['ids']), w=w))
    return out, rng.standard_normal(n)


def weighted(rolls, A, micro, mesh, dtype=torch.float64, c=None):
    """Microbatches of this rank with the coefficients of an update on policy (ratio 1), or those given."""
    own = np.repeat(np.arange(len(rolls)), [len(o['w']) for o in rolls])
    c = np.append(A[own] * np.concatenate([o['w'] for o in rolls]) / TOTAL, 0.0) if c is None else c
    micros = pack(rolls, T, micro, mesh, codec)
    for b, where in micros:
        b.update({k: v.to(dtype) for k, v in b.items() if v.is_floating_point()}, txt_w=torch.from_numpy(c[where]).to(dtype))
    return micros


def gradients(mesh, micro, rolls, A, zero=0):
    """{parameter: whole gradient} of one update, and what the trainer said about each token."""
    models = build(ModelConfig(**CFG), mesh, 5)
    opt = Optimizer(models, mesh, torch.float64, zero=zero)
    micros = weighted(rolls, A, micro, mesh)
    opt.start(len(micros))
    losses = forward_backward(models, [b for b, _ in micros], mesh)
    opt.reduce()
    out = {p.spec.name: (p.spec, toy.whole(u, u.due)[s].view_as(p).clone()) for u in opt.units for p, s in zip(u.params, u.slices)}
    return out, losses, micros


def plain(rolls, A):
    """The same by autograd: every rollout alone, the whole softmax, log-probabilities of its drawn tokens times their advantage."""
    model, = build(ModelConfig(**CFG), solo_mesh(), 5)
    model.double()
    loss, logps = 0, []
    for o, a in zip(rolls, A):
        (b, _), = pack([o], T, 1, solo_mesh(), codec)
        b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
        ctx = model.context(b, torch.float64)
        x = model.embed(b)
        for block in model.blocks.values():
            x = block(x, ctx)
        y = torch.nn.functional.linear(model.norm(x)[0], model.head)
        n, first = len(o['doc']['ids']), o['first']
        logp = torch.log_softmax(15 * torch.tanh(y / 15), -1)[torch.arange(first - 1, n - 1), torch.from_numpy(o['doc']['ids'][first:])]
        loss = loss - (a * logp * torch.from_numpy(o['w'].astype(float))).sum() / TOTAL
        logps.append(logp.detach().numpy())
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}, np.concatenate(logps)


@pytest.mark.parametrize('micro', [1, 2, 8])
def test_the_packed_gradient_is_autograds(micro):
    """Whatever the microbatch; patches and inserted tokens add nothing; where points at the right token."""
    rolls, A = rollouts()
    want, logps = plain(rolls, A)
    got, losses, micros = gradients(solo_mesh(), micro, rolls, A)
    assert got.keys() == want.keys() and len(micros) == {1: 4, 2: 2, 8: 1}[micro]
    for name, g in want.items():
        mine = got[name][1]
        assert g is None and not mine.any() or torch.allclose(mine, g, rtol=1e-9, atol=1e-12 * float(g.abs().max())), name
    drawn = np.concatenate([o['w'] for o in rolls]) > 0
    seen = np.full(len(drawn), np.nan)
    for (_, where), o in zip(micros, losses):
        seen[where[where >= 0]] = -o['txt_each'].numpy()[where >= 0]
    np.testing.assert_allclose(seen[drawn], logps[drawn], rtol=1e-10)
    assert np.isnan(seen[~drawn]).all()


def test_interleaved_stages_get_microbatches_in_groups():
    """Empty rows make their number a multiple of `times`, on every dp rank; nothing else changes."""
    rolls, _ = rollouts()
    for micro, n in ((1, 4), (2, 2), (8, 1)):
        a, b = (pack(rolls, T, micro, solo_mesh(), codec, 0, k) for k in (1, 3))
        assert len(a) == n and len(b) == n + -n % 3
        for (x, i), (y, j) in zip(a, b):
            assert np.array_equal(i, j) and all(torch.equal(x[k], y[k]) for k in x)
        assert all((i < 0).all() for _, i in b[n:])


def test_inserted_tokens_at_the_end_may_be_anything():
    """Nothing follows them, so they are no context, only targets; a mutant that learns from them is caught here."""
    rolls, A = rollouts()
    a = gradients(solo_mesh(), 8, rolls, A)[0]
    for o in rolls:
        if not o['w'][-1]:
            o['doc']['ids'] = np.append(o['doc']['ids'][:-1], 33)
    b = gradients(solo_mesh(), 8, rolls, A)[0]
    assert all(torch.equal(a[n][1], b[n][1]) for n in a)


def layout_gradients(rank, kw, zero):
    mesh = make_mesh(**kw, n_kv_head=2)
    return {n: (s.dim, s.blocks, g) for n, (s, g) in gradients(mesh, 2, *rollouts(), zero=zero)[0].items()}


@pytest.mark.parametrize('kw, zero', [(dict(dp=2, tp=2), 0), (dict(dp=2), 3), (dict(cp=2), 0)], ids=str)
def test_layouts_give_the_gradient_of_one_process(kw, zero):
    """Groups are cut by the ranks wherever the packing does."""
    want = gradients(solo_mesh(), 2, *rollouts())[0]
    for got in ranks(math.prod(kw.values()), layout_gradients, kw, zero):
        for n, (dim, blocks, g) in got.items():
            part = torch.cat([want[n][1].narrow(dim, o, k) for o, k in blocks], dim) if blocks else want[n][1]
            assert torch.allclose(g, part, rtol=1e-9, atol=1e-12 * max(1e-3, float(part.abs().max()))), n


@pytest.mark.parametrize('temperature', [0.7, 1.0])
def test_the_sampler_says_what_the_trainer_says(temperature):
    """
    log-probabilities of the policy (temperature 1, whatever it was drawn at), of prompts of different lengths in one batch, as the trainer
    has them: alone in a row that it fills (no padding), first in a longer row (padding on the right), last behind others. float64.
    """
    model, = build(ModelConfig(**CFG, image=False, audio=False), solo_mesh(), 5)
    engine = Engine(model.double().eval(), codec, rows=4)
    prompts = [codec.encode(turn(codec, 'q' * n)) for n in (1, 9, 4, 2, 6)]
    rows = [engine.add(p, index=i, seed=3, max_new=12 + i, temperature=temperature) for i, p in enumerate(prompts)]
    engine.run()
    rolls = [dict(doc=r.result['doc'], first=len(p['ids']), w=np.array(r.w, np.uint8)) for r, p in zip(rows, prompts)]
    sizes = [len(o['w']) for o in rolls]
    def trainer(some, T):
        (b, where), = pack(some, T, 1, solo_mesh(), codec)
        b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
        said = forward_only([model], b, solo_mesh(), (1, T, 32), torch.float64, 'cpu')['txt_each'].numpy()
        seen = np.full(sum(len(o['w']) for o in some), np.nan)
        seen[where[where >= 0]] = -said[where >= 0]
        return seen
    for i, (o, r) in enumerate(zip(rolls, rows)):
        n = len(o['doc']['ids']) - 1
        for got in (trainer([o], n), trainer([o], n + 20), np.split(trainer(rolls, 150), np.cumsum(sizes))[i]):
            np.testing.assert_allclose(got[o['w'] > 0], np.array(r.logp)[o['w'] > 0], rtol=1e-9, atol=1e-12)
    drawn = np.concatenate([(np.array(r.logq) - np.array(r.logp))[np.array(r.w) > 0] for r in rows])
    assert 0 < drawn.min() < drawn.max() < 0.05 if temperature == 1 else np.abs(drawn).max() > 0.2     # 1: grammar excludes some


@pytest.mark.parametrize('name', [t for t in TOOLS if t != 'point'])
def test_tools_answer_inside_of_rollouts_and_are_not_learned_from(name, monkeypatch):
    """
    rl.py's own rollouts of a policy that says the right calls and then the right answer: they are paid for; exactly what was drawn is
    learned from, neither what a tool said nor a crop's patches; and the trainer, which reads both as context, gives every drawn token the
    log-probability that the sampler gave it.
    """
    task, model = import_module(f'data.{name}.task'), build(ModelConfig(**CFG), solo_mesh(), 5)[0].double().eval()
    space = functions('rl.py', 'sync', 'rollout', 'ask').ask.__globals__
    space.update(codec=codec, job=task, sampler=model, shared=True, opt=SimpleNamespace(units=[]), rank=0, world=1, seed=3, sample_rows=8,
                 max_new=160, temperature=1.0, block_size=384, tools=True)
    problems, plan, now = (task.problem(i, list(task.LEVELS)[1], 'held') for i in range(9)), {}, []
    problems = list({p['question']: p for p in problems}.values())[:3]                      # what is said depends on the question alone
    of = lambda text, *marks: [i for t in re.split('(<[a-z/]+>)', text) for i in ([codec.sp[t[1:-1]]] if t[:1] == '<' else codec.text(t))]
    for p in problems:
        calls, right = {'pytool': lambda: ([task.call(p)], p['product']), 'peek': lambda: ([task.call(p['place'])], p['digit']),
                        'lookup': lambda: (task.calls(p), p['number']),
                        'spawn': lambda: ([task.call(p)], ','.join(map(str, p['values'])))}[name]()
        plan[p['question']] = of(''.join(f'<tool>{c}</tool>' for c in calls) + f'{right}<eot>')
        if name == 'spawn':
            plan |= {q: of(f'<think>7</think>{v}<eot>') for q, v in zip(p['question'].split(' '), p['values'])}

    def choose(logits, *_):
        ids = [plan[codec.untext(r.prompt['ids']).split('<user>')[1].split('<assistant>')[0]][sum(r.w)] for r in now]
        logp = torch.log_softmax(logits.double(), -1)[range(len(ids)), ids]
        return torch.tensor(ids), logp, logp
    old = Engine._choose
    monkeypatch.setattr(Engine, '_choose', lambda self, rows: (now.__setitem__(slice(None), rows), old(self, rows))[1])
    monkeypatch.setattr('sample.choose', choose)
    rolls = sum(space['ask'](problems, 2, 1), [])
    for o in rolls:
        said = codec.untext(o['doc']['ids'][o['first']:].tolist())
        if not (name == 'pytool' and 'no sandbox' in said):
            assert said.count('<out>') == said.count('<tool>') > 0 == said.count('error'), said
        assert (o['r'], o['second'], o['done']) == (1, 1, True), said
        inside = np.cumsum((o['doc']['ids'] == codec.sp['out']).astype(int)) - np.r_[0, np.cumsum(o['doc']['ids'] == codec.sp['/out'])[:-1]]
        assert ((o['doc']['w'] > 0) == (inside == 0))[o['first']:].all() and not o['doc']['w'][:o['first']].any()
        assert o['n'] == len(plan[o['problem']['question']]) and task.steps(o['problem'], o['thought']) == (said.count('<tool>'),) * 2
    if name == 'peek':
        assert all(len(o['doc']['patches']) == 1 + 1 for o in rolls)           # the coarse picture, and the crop
    w, logp = (np.concatenate([o[k] for o in rolls]) for k in ('w', 'logp'))
    seen = np.full(len(w), np.nan)
    for b, where in pack(rolls, 384, 2, solo_mesh(), codec):
        b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
        said = forward_only([model], b, solo_mesh(), (2, 384, 32), torch.float64, 'cpu')['txt_each'].numpy()
        seen[where[where >= 0]] = -said[where >= 0]
    assert (np.isfinite(seen) == (w > 0)).all()
    np.testing.assert_allclose(seen[w > 0], logp[w > 0], rtol=1e-9 if name != 'peek' else 1e-7, atol=1e-12)        # pixels are float32


# ---------------------------------------------------------------- guards

def test_alarms_name_what_is_wrong_and_only_that():
    fine = dict(entropy=0.4, repeat=0.1, truncated=0.0, disagree=0, canary=0, gap=0.02, twin=0.05)
    first = dict(entropy=0.5)
    assert alarms(fine, first) == []
    for key, value, word, way_out in (('entropy', 0.01, 'collapsed', '--kl'), ('repeat', 0.9, 'circles', '--lr'),
                                      ('truncated', 0.5, 'explode', '--max_new'), ('disagree', 2, 'verifiers', 'metrics.jsonl'),
                                      ('canary', 1, 'without a solution', 'verify()'), ('gap', 0.4, 'by heart', '--lr'),
                                      ('twin', 0.4, 'another order', '--lr')):
        said, = alarms(dict(fine, **{key: value}), first)
        assert word in said and way_out in said
    assert alarms(dict(fine, truncated=0.5), dict(first, truncated=0.4)) == []            # they were as long in the beginning
    circles = codec.text('3+7-5x' * 12)
    assert repeated(circles) > 0.8 and repeated(codec.text('3+7-5x3+7+9x3-1+3x')) < 0.3 and repeated([1, 2]) == 0
    assert alarms(dict(fine, repeat=repeated(circles)), first)


# ---------------------------------------------------------------- the script

SMALL = ('--eval_problems=8 --last_problems=8 --eval_samples=16 --prompts=4 --group=4 --rounds=2 --max_new=40 --sample_rows=16 '
         '--block_size=64 --micro_rows=2 --dtype=float64 --levels=2 --harder=3 --lr=1e-3').split()


@pytest.fixture(scope='module')
def warm(machine):  # noqa: F811
    """A warm start that has the format, and little more."""
    assert machine.run('data/signs/prepare.py', '--n_train=3000', '--n_val=40', '--levels=2:1').code == 0
    out = machine.path / 'warm'
    r = machine.run('train.py', 'config/sft_signs.py', *'--n_layer=2 --n_embd=32 --n_head=2 --block_size=64 --tokens_per_step=1024 '
                    '--warmup=10 --max_steps=250 --log_every=250 --eval_docs=8'.split(), f'--out_dir={out}')
    assert r.code == 0, r.err
    return out


def go(machine, warm, out, *flags, world=1, **kw):  # noqa: F811
    """rl.py on `world` processes -> the results of each."""
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = lambda r: {'RANK': str(r), 'WORLD_SIZE': str(world), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)} if world > 1 else {}
    flags = (*SMALL, f'--init_from={warm}', f'--out_dir={out}', '--min_skill=0', *flags)
    jobs = [machine.start('rl.py', *flags, env=env(r), **kw) for r in range(world)]
    return [machine.wait(j) for j in jobs]


def records(out):
    """metrics.jsonl without the times."""
    return [{k: v for k, v in json.loads(line).items() if not k.endswith('_ms')} for line in open(Path(out) / 'metrics.jsonl')]


def tensors(out):
    ck = Checkpoint(checkpoints(out)[0])
    return ck.meta, {n: ck.full(n) for n in ck.names}


@pytest.fixture(scope='module')
def whole(machine, warm):  # noqa: F811
    """4 steps at once, with the reference and two updates per batch of rollouts."""
    r, = go(machine, warm, machine.path / 'rl', '--max_steps=4', *MORE)
    assert r.code == 0, r.err
    return machine.path / 'rl', r.out


def test_rollouts_have_their_roles_in_turn_and_are_paid_together(machine, warm, tmp_path):  # noqa: F811
    """A task whose every second rollout is right, but who pays all alike: nothing is learned. Without roles there are none."""
    (machine.path / 'data/paid').mkdir()
    (machine.path / 'data/paid/task.py').write_text(f"""from itertools import count
from data.signs import task as signs
from data.signs.task import LEVELS, steps
problem = lambda *a: dict(signs.problem(*a), roles=[['agent', 'r0'], ['r3']])
canary, first, second = problem, count(), count()
verify, judge = lambda p, answer: next(first) % 2.0, lambda p, answer: next(second) % 2.0
def credit(groups, ask):
    other, = ask([dict(groups[0][0]['problem'], roles=[()])], 3)
    with open({str(tmp_path / 'seen')!r}, 'a') as f:
        for g in [*groups, other]:
            print(*(int(o['doc']['ids'][o['first'] - 1]) for o in g), file=f)
            for o in g:
                o['pay'] = 0.5
""")
    r, = go(machine, warm, tmp_path / 'out', '--task=paid', '--max_steps=1', '--eval_every=0', '--rounds=1', '--budget=true', '--max_new=8')
    shutil.rmtree(machine.path / 'data/paid')
    assert r.code == 0, r.err
    sp, (step,) = codec.sp, [x for x in records(tmp_path / 'out') if 'learned' in x]
    roles = [sp['r0'], sp['r3']] * 2
    assert [[int(x) for x in line.split()] for line in open(tmp_path / 'seen')] == [roles] * 4 + [[sp['assistant']] * 3]
    assert step['learned'] == 0 and step['groups'] == 0 and step['dropped'] == 1 and 0 < step['pass1'] <= .5


MORE = '--kl=0.01 --epochs=2 --rescore=true --lam=0.3 --lam_from=0.1 --lam_ramp=2 --eval_every=1 --eval_growth=2'.split()


def test_the_log_says_what_was_asked_for(whole):
    out, text = whole
    rows = records(out)
    steps = [r for r in rows if 'reward' not in r and 'pass1' in r]
    assert [r['step'] for r in steps] == [1, 2, 3, 4] and [r['step'] for r in rows if 'val' in r] == [0, 1, 2, 4]
    assert steps[0]['off'] < 1e-9
    assert steps[0]['kl'] == 0 != steps[-1]['kl']                                   # the policy leaves the warm start
    assert steps[-1]['lam'] > 0 == steps[0]['lam'] and all(r['gnorm'] > 0 for r in steps if r['groups'])
    assert re.search(r'step 0004/0004 \| reward [\d.]+ \| len [\d.]+ \| entropy [\d.]+ \| skill', text)
    assert text.count('harder | pass@1 ') == 4
    every = [r for r in steps if r['dropped'] == 0]
    assert every and all(r['learned'] == r['tokens'] for r in every)                # all that was drawn, <eot> too


def test_stopped_and_resumed_is_bit_equal(machine, warm, whole, tmp_path):  # noqa: F811
    for at, code in ((1, 143), (5, 143), (99, 0)):            # counted in updates: in the middle of steps 1 and 3
        r, = go(machine, warm, tmp_path, '--max_steps=4', *MORE, signal=dict(where='grad', step=at, sig=TERM))
        assert r.code == code, r.out + r.err
    (meta, a), (want, b) = tensors(tmp_path), tensors(whole[0])
    assert {k: v for k, v in meta.items() if k != 'config'} == {k: v for k, v in want.items() if k != 'config'}
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert records(tmp_path) == records(whole[0])


def test_levels_may_be_added_when_a_run_goes_on(machine, warm, tmp_path):  # noqa: F811
    for flags in (['--max_steps=1'], ['--max_steps=2', '--more=3', '--more_at=1']):
        r, = go(machine, warm, tmp_path, *MORE, *flags)
        assert r.code == 0, r.err
    assert set([r for r in records(tmp_path) if 'rates' in r][-1]['rates']) > {'3'}


@pytest.mark.parametrize('flags', ['--dp=2 --tp=2', '--pp=2', '--dp=2 --zero=3'])
def test_ranks_give_what_one_process_gives(machine, warm, whole, tmp_path, flags):  # noqa: F811
    """The same rollouts, rewards, updates and weights."""
    world = math.prod(int(n) for n in re.findall('--[dtp]p=([0-9])', flags))
    rs = go(machine, warm, tmp_path, '--max_steps=2', *MORE, *flags.split(), world=world)
    assert [r.code for r in rs] == [0] * world, [r.err for r in rs]
    for a, b in zip([r for r in records(tmp_path) if 'pass1' in r], [r for r in records(whole[0]) if 'pass1' in r]):
        assert a.keys() == b.keys()
        for k in a:
            assert a[k] == (pytest.approx(b[k], rel=1e-7, abs=1e-10) if isinstance(b[k], float) else b[k]), k


@pytest.fixture(scope='module')
def alone(machine, warm):  # noqa: F811
    r, = go(machine, warm, machine.path / 'alone', *ONE)
    assert r.code == 0, r.err
    return machine.path / 'alone'


ONE = ['--max_steps=1', '--dtype=float32', '--clip=0', '--beta1=0.9']


@pytest.mark.parametrize('flags', ['--dp=2 --tp=2', '--dp=2', '--tp=2', '--micro_rows=1', '--micro_rows=8'])
def test_ranks_and_microbatches_give_the_gradients_of_one_process(machine, warm, alone, tmp_path, flags):  # noqa: F811
    """Of the same rollouts, in float32, to 1e-5 of each parameter's norm: AdamW's first moment is 0.1 times the first gradient."""
    world = math.prod(int(n) for n in re.findall('p=([0-9])', flags))
    rs = go(machine, warm, tmp_path, *ONE, *flags.split(), world=world)
    assert [r.code for r in rs] == [0] * world, [r.err for r in rs]
    assert [r['length'] for r in records(tmp_path) if 'groups' in r] == [r['length'] for r in records(alone) if 'groups' in r]
    (_, got), (_, want) = tensors(tmp_path), tensors(alone)
    names = [n for n in want if n.startswith('exp_avg/')]
    assert len(names) > 10 and got.keys() == want.keys()
    for n in names:
        assert want[n].norm() > 0 and (got[n] - want[n]).norm() <= 1e-5 * want[n].norm(), n


def test_only_short_answers_pay_so_it_learns_to_stop(machine, warm, tmp_path):  # noqa: F811
    """A task for which every answer is right: only length counts, and <eot> must be among what is learned from."""
    path = machine.path / 'data/short'
    path.mkdir()
    (path / 'task.py').write_text((ROOT / 'data/signs/task.py').read_text() + '\nverify = judge = lambda p, a: 1.0\n')
    r, = go(machine, warm, tmp_path, *'--task=short --max_steps=12 --lam=0.9 --lam_from=0 --lam_ramp=1 --p_lo=0 --p_hi=0.1 --lr=3e-3 '
            '--prompts=8 --harder='.split())
    rows = [r for r in records(tmp_path) if 'pass1' in r]
    assert r.code == 0 and rows[0]['dropped'] > 0.8, r.err
    assert rows[-1]['length'] < 0.75 * rows[0]['length'], [r['length'] for r in rows]
    assert 'for problems without a solution' in r.out         # its canaries were paid for: an alarm


def test_what_is_wrong_is_one_line(machine, warm, tmp_path):  # noqa: F811
    run = lambda *flags: go(machine, warm, tmp_path / 'x', '--max_steps=2', *flags)[0]
    one_line(run('--max_new=4'), 'do not end within max_new=4', 'raise it')
    one_line(run('--max_off=0'), 'step 1', 'sampler and trainer differ', '--dtype=float32')
    one_line(run('--min_skill=1.01'), 'steps in the warm start', '101%', 'config/sft_signs.py', '--min_skill')
    one_line(run('--task=scenes'), 'task=scenes', 'not one for RL', 'lacks LEVELS')
    one_line(run('--task=nosuch'), 'task=nosuch')
    one_line(run('--levels=99'), 'levels=99')
    one_line(run('--loss=ppo'), 'loss=ppo', 'gspo')
    one_line(run(f'--init_from={tmp_path}/none'), 'init_from', 'sft_signs')
    one_line(run('--group=1'), 'group=1')
    one_line(run('--clip=-1'), 'clip=-1')
    one_line(run('--len_norm=-3'), 'len_norm=-3')
    one_line(run('--tis=0'), 'tis=0.0')
    one_line(run('--out_dir='), 'out_dir')
    one_line(run('--beta2=1'), 'beta2=1', 'less than 1')
    one_line(run('--pp_schedule=nosuch'), 'nosuch', '1f1b')
    one_line(run('--block_size=32'), 'block_size=32', 'max_new=40')
    one_line(go(machine, warm, warm, '--max_steps=2')[0], 'another run')
