"""Pipeline schedules against theory and on hostile input; pure Python, no process is started."""
import random
from itertools import combinations, product

import pytest

from data.layouts import chart, schedule_command
from data.plan import bubble_theory
from parallel import STEP, add_messages, message, schedule, simulate, split_layers

NAMES = [('gpipe', 1), ('1f1b', 1), ('zbh1', 1), ('interleaved', 2), ('interleaved', 3), ('interleaved', 4)]
GRID = [(name, pp, m, v) for (name, v), pp in product(NAMES, range(1, 9))      # m < pp is in: 1, 2, 3 for larger pp
        for m in sorted({1, 2, 3, pp, pp + 1, 2 * pp, 24}) if name != 'interleaved' or m % pp == 0]

def made(name, pp, m, v=1):
    return add_messages(schedule(name, pp, m, v), m, v)

@pytest.mark.parametrize('name, v', NAMES)
def test_idle_time_equals_theory_at_unit_times(name, v):
    for n, pp, m, chunks in GRID:
        if (n, chunks) == (name, v):
            wired = made(name, pp, m, v)
            for serial in (False, True):                                # F = B = W = v: a chunk takes 1, all exact
                idle = simulate(wired, m, v, v, v, v, serial=serial)['idle']
                theory = {'zbh1': pp - 1 if m >= pp else 2 * (pp - 1) - (m - 1)}.get(name, 3 * (pp - 1))
                assert idle == [theory] * pp == [bubble_theory(name, pp, m, v, v, v, v)] * pp, (name, pp, m, v, serial)

@pytest.mark.parametrize('F, B, W', [(1, 2, 1), (2, 3, 2), (3, 2, 1), (2, 2, 1), (3, 5, 2)])
def test_idle_time_equals_theory_at_other_times(F, B, W):
    """(p-1)(F+B+W), over v for interleaved, (p-1)(F+B-W) for ZB-H1, where F = B = W cannot hide a mix-up."""
    for name, pp, m, v in GRID:
        if m >= pp:
            theory = (pp - 1) * (F + B - W if name == 'zbh1' else F + B + W)            # times are v-fold, so is theory
            ran = simulate(made(name, pp, m, v), m, v, F * v, B * v, W * v)
            assert ran['idle'] == [theory] * pp, (name, pp, m, v)
            assert ran['makespan'] == m * v * (F + B + W) + theory

def test_zbh1_theory_is_exact_where_w_is_smallest_and_a_bound_elsewhere():
    for F, B, W, pp, m in product((1, 2, 3), (1, 2, 3), (1, 2, 3), (2, 3, 4, 7), (1, 2, 3, 4, 8)):
        more = simulate(made('zbh1', pp, m), m, 1, F, B, W)['idle'][0] - bubble_theory('zbh1', pp, m, 1, F, B, W)
        assert more == 0 if W <= min(F, B) else more >= 0, (F, B, W, pp, m)

def test_peak_of_live_activations():
    for name, pp, m, v in GRID:
        peak = simulate(made(name, pp, m, v), m, v)['peak']
        f1b = [min(pp - rank, m) for rank in range(pp)]
        if name == 'gpipe':
            assert peak == [m] * pp
        if name == '1f1b':
            assert peak == f1b
        if name == 'zbh1':                                      # the largest is that of 1F1B; later ranks rise to it
            assert max(peak) == max(f1b) and peak == [min(pp, m)] * pp
        if name == 'interleaved':
            assert peak == [min(2 * (pp - 1 - rank) + (v - 1) * pp + 1, m * v) for rank in range(pp)]

def test_each_action_once_and_each_link_in_order():
    """Counted here by hand, not by the simulator."""
    for name, pp, m, v in GRID:
        wired, sent, received = made(name, pp, m, v), {}, {}
        for rank, todo in enumerate(wired):
            for kind in 'FBW':
                ran = [(c, mb) for k, c, mb in todo if k == kind or (k == 'BW' and kind in 'BW')]
                assert sorted(ran) == list(product(range(v), range(m)))
            assert [x for x in todo if x[0] not in STEP] == schedule(name, pp, m, v)[rank]
            for at, (kind, c, mb) in enumerate(todo):
                stage = c * pp + rank
                if kind == 'SEND_F':                                    # after its F; the peer is the next stage's rank
                    assert ('F', c, mb) in todo[:at] and stage < pp * v - 1
                    sent.setdefault((rank, (stage + 1) % pp), []).append(('F', stage, mb))
                if kind == 'SEND_B':
                    assert {('B', c, mb), ('BW', c, mb)} & set(todo[:at]) and stage > 0
                    sent.setdefault((rank, (stage - 1) % pp), []).append(('B', stage, mb))
                if kind == 'RECV_F':                                    # before its F
                    assert ('F', c, mb) in todo[at:] and stage > 0
                    received.setdefault(((stage - 1) % pp, rank), []).append(('F', stage - 1, mb))
                if kind == 'RECV_B':
                    assert {('B', c, mb), ('BW', c, mb)} & set(todo[at:]) and stage < pp * v - 1
                    received.setdefault(((stage + 1) % pp, rank), []).append(('B', stage + 1, mb))
        assert sent == received and sum(map(len, sent.values())) == (2 * m * (pp * v - 1) if pp > 1 else 0)

def test_a_pair_of_ranks_posts_in_one_order():
    """Both directions of a pair merge to one sequence, the same on either side: safe where they share one stream."""
    for name, pp, m, v in GRID:
        wired = made(name, pp, m, v)
        for a, b in combinations(range(pp), 2):
            posts = [[message(x, rank, pp) for x in wired[rank] if x[0] in STEP] for rank in (a, b)]
            first, second = [[x for x in row if {a, b} == set(x[:2])] for row in posts]
            assert first == second

def test_no_deadlock_and_sound_timing_at_random_times():
    rng = random.Random(1)
    for n in range(300):
        name, pp, m, v = rng.choice(GRID)
        times = {}
        scale = lambda *act: times.setdefault(act, rng.choice([.01, rng.random(), rng.expovariate(1), 30]))
        comm, wired = rng.choice([0, rng.random(), 5]), made(name, pp, m, v)
        fast = simulate(wired, m, v, scale=scale, comm=comm)
        slow = simulate(wired, m, v, scale=scale, comm=comm, serial=True)
        bare = simulate(schedule(name, pp, m, v), m, v, scale=scale, messages=False)
        assert bare['makespan'] <= fast['makespan'] + 1e-9 <= slow['makespan'] + 2e-9
        end = {(kind[0], c * pp + rank, mb): stop
               for rank, row in enumerate(fast['timeline']) for kind, c, mb, _, stop in row}
        for rank, row in enumerate(fast['timeline']):
            assert min(fast['idle']) > -1e-9 and all(x[4] <= y[3] for x, y in zip(row, row[1:]))
            for kind, c, mb, start, _ in row:                           # nothing starts before what it needs has come
                stage, far = c * pp + rank, comm * (pp > 1)
                assert kind == 'F' or start >= end['B' if kind == 'W' else 'F', stage, mb]
                assert kind != 'F' or stage == 0 or start >= end['F', stage - 1, mb] + far
                assert kind in 'FW' or stage == pp * v - 1 or start >= end['B', stage + 1, mb] + far

@pytest.mark.parametrize('name, pp, m, v', [('gpipe', 3, 4, 1), ('1f1b', 4, 5, 1), ('zbh1', 3, 5, 1),
                                            ('interleaved', 2, 4, 2), ('interleaved', 3, 3, 2)])
def test_mutated_lists_are_rejected(name, pp, m, v):
    wired = made(name, pp, m, v)
    def refused(rank, todo):
        lists = wired[:rank] + [todo] + wired[rank + 1:]
        for serial in (False, True):
            with pytest.raises(ValueError) as e:
                simulate(lists, m, v, serial=serial)
            assert '\n' not in str(e.value)
    for rank, todo in enumerate(wired):
        for i, act in enumerate(todo):
            refused(rank, todo[:i] + todo[i + 1:])                                  # dropped
            refused(rank, todo[:i] + [act] + todo[i:])                              # twice
            refused(rank, todo[:i] + [(act[0], act[1], m)] + todo[i + 1:])          # of a microbatch that is not there
        for i, j in combinations(range(len(todo)), 2):
            (x, _, _), (y, _, _) = todo[i], todo[j]
            peers = {message(act, rank, pp)[:2] for act in (todo[i], todo[j]) if act[0] in STEP}
            if x in STEP and y in STEP and x[0] == y[0] and len(peers) == 1:        # two posts of one kind, one link
                refused(rank, todo[:i] + [todo[j]] + todo[i + 1:j] + [todo[i]] + todo[j + 1:])
        for i, (kind, c, mb) in enumerate(todo):
            if kind[:4] == 'RECV':                                                  # posted after it was used
                users = [('F', c, mb)] if kind[-1] == 'F' else [('B', c, mb), ('BW', c, mb)]
                use = next(j for j, x in enumerate(todo) if x in users)
                refused(rank, todo[:i] + todo[i + 1:use + 1] + [todo[i]] + todo[use + 1:])
            if kind[:4] == 'SEND':                                                  # sent before it was made
                refused(rank, [todo[i]] + todo[:i] + todo[i + 1:])

def test_stuck_ranks_are_named():
    wired = made('1f1b', 2, 2)
    wired[0].sort(key=lambda act: act[0] != 'RECV_B')       # receives first: harmless where links are independent,
    simulate(wired, 2)
    with pytest.raises(ValueError, match=r"deadlock: rank 0 at .*, rank 1 at \('F', 0, 0\)"):   # not one at a time
        simulate(wired, 2, serial=True)
    wired[0].remove(('SEND_F', 0, 0))
    wired[0].append(('SEND_F', 0, 0))
    with pytest.raises(ValueError, match='link'):
        simulate(wired, 2)

def test_sizes_that_cannot_work():
    for args in [('gpip', 2, 2), ('1f1b', 0, 2), ('1f1b', 2, 0), ('zbh1', 2, 2, 2), ('gpipe', 2, 2, 0),
                 ('interleaved', 2, 2)]:
        with pytest.raises(ValueError):
            schedule(*args)
    with pytest.raises(ValueError, match='m=6, pp=4: m must be a multiple of pp, such as 8$'):
        schedule('interleaved', 4, 6, 2)
    with pytest.raises(ValueError, match='3 layers over 4 stages'):
        split_layers(3, 4)

def test_split_layers_is_the_best_split():
    def largest(ranges, embed, head):
        costs = [stop - start for start, stop in ranges]
        costs[0], costs[-1] = costs[0] + embed, costs[-1] + head
        return max(costs)
    for n, stages, embed, head in product(range(1, 10), range(1, 6), (0, .5, 2, 7), (0, 1.25, 3)):
        if n >= stages:
            ranges = split_layers(n, stages, embed, head)
            assert ranges[0][0] == 0 and ranges[-1][1] == n and len(ranges) == stages
            assert all(a < b for a, b in ranges) and all(x[1] == y[0] for x, y in zip(ranges, ranges[1:]))
            cuts = [(0, *x, n) for x in combinations(range(1, n), stages - 1)]
            assert largest(ranges, embed, head) == min(largest(list(zip(x, x[1:])), embed, head) for x in cuts)
    assert split_layers(10, 4) in ([(0, 3), (3, 6), (6, 8), (8, 10)], [(0, 2), (2, 4), (4, 7), (7, 10)])
    assert split_layers(8, 4, 1, 2)[-1] == (7, 8)                       # heads worth two layers: one layer beside them
    assert len(split_layers(96, 64, .5, 1.5)) == 64

def test_chart():
    assert chart(simulate(made('1f1b', 2, 2), 2)) == 'rank 0  F0 F1 .. .. B0 -- .. B1 --\nrank 1  .. F0 B0 -- F1 B1 --'
    assert chart(simulate(made('zbh1', 2, 2), 2)) == 'rank 0  F0 F1 .. B0 W0 B1 W1\nrank 1  .. F0 B0 F1 B1 W0 W1'
    assert chart(simulate(made('interleaved', 1, 1, 2), 1, 2)) == 'rank 0  F0a F0b B0b --- B0a ---'

def test_command(capsys):
    schedule_command(['--name=zbh1', '--pp=4', '--m=8'])
    out = capsys.readouterr().out
    assert 'idle per rank 3 3 3 3 (11.1%), in theory 3 |' in out and 'per rank 4 4 4 4 ' in out and out.count('\n') == 5
    schedule_command(['--layers=7', '--head=1', '--comm=.1'])
    assert 'layers per stage: 2 2 2 1\n' in capsys.readouterr().out
    schedule_command(['--pp=1', '--m=1', '--layers=3', '--embed=1'])
    assert 'makespan 3 |' in capsys.readouterr().out
    for argv in (['--foo=1'], ['pp=4'], ['--pp'], ['--pp=x'], ['--F=0'], ['--F=nan'], ['--B=inf'], ['--comm=-1'],
                 ['--v=2'], ['--name=interleaved', '--v=2', '--m=6'], ['--layers=2'], ['--pp=0']):
        with pytest.raises(SystemExit) as e:
            schedule_command(argv)
        assert str(e.value).startswith('schedule ') and '\n' not in str(e.value) and argv[-1] in str(e.value)
