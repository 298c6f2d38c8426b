"""
Layouts: which can work, and the commands of parallel.py. plan: every layout of a model on a cluster, the best ones listed, and why the
others fall out.

    python parallel.py plan --model=config/dense_7b.py --gpus=8 --gpu=h100
    python parallel.py plan --model=config/moe_30b.py --gpus=512 --gpu=b200 --top=5 --png=plan.png
    python parallel.py plan --model=config/dense_405b.py --gpus=1024 --flops=500e12 --memory=64e9 --link=100e9 --net=25e9 --node=4
    python parallel.py plan --model=config/dense_405b.py --gpus=1024 --simulate=true --spread=0.02       the best layout, event by event

Keys of train.py may follow, as for train.py; a key of the layout given there (--tp=8) holds for all layouts. The layout that the file
itself sets gets a line of its own. The formulas: data/plan.py. schedule: one pipeline schedule as a chart, beside theory.

    python parallel.py schedule --name=zbh1 --pp=4 --m=8 --v=1
"""
import ast, math, re
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from itertools import product
from pathlib import Path
from configurator import cast, configure
from data.codec import SPECIALS, TIKTOKEN
from data.plan import GPUS, H100, ROOM, bubble_theory, cost, count_params, fullest
from model import ModelConfig
from parallel import add_messages, schedule, simulate, split_layers


def check_layout(world, *, dp=0, tp=1, pp=1, cp=1, ep=1, v=1, sp=False, cp_mode='ring', n_layer, n_head, n_kv_head, ff, n_expert=0,
                 shared_ff=0, flow_width=0, T, rows, zero=0, zero_shard=0):
    """Raises ValueError, one line with sizes that work, if this layout cannot run this model; returns dp (0: what is left of the world)."""
    def divisors(n, most=world):
        return ', '.join(str(i) for i in range(1, most + 1) if n % i == 0)
    if min(tp, pp, cp, ep) < 1 or dp < 0:
        raise ValueError(f'dp={dp} tp={tp} pp={pp} cp={cp} ep={ep}: sizes are at least 1 (dp=0: what is left)')
    if world % (tp * pp * cp) or dp * tp * pp * cp not in (0, world):
        raise ValueError(f'dp={dp} * tp={tp} * pp={pp} * cp={cp} is not the number of processes, {world}: let the product be {world}, '
                         'or leave dp=0')
    dp = world // (tp * pp * cp)
    for bad, say in (
            (n_head % tp, f'tp={tp} does not divide n_head={n_head}: use tp of {divisors(n_head)}'),
            (n_kv_head % tp and tp % n_kv_head,
             f'tp={tp} and n_kv_head={n_kv_head}: one must divide the other: use tp of {divisors(n_kv_head)}'),
            (ff % tp or (n_expert and shared_ff % tp) or flow_width % tp,
             f'tp={tp} does not divide ff={ff}, shared_ff={shared_ff} and flow_width={flow_width}: use tp of '
             + ', '.join(str(i) for i in range(1, world + 1) if ff % i == 0 and flow_width % i == 0 and not (n_expert and shared_ff % i))),
            (pp * v > n_layer, f'pp={pp} (times {v} chunks) exceeds n_layer={n_layer}: use pp up to {n_layer // v}'),
            (v > 1 and pp == 1, f'pp_chunks={v} without a pipeline: use pp=2 or more, or pp_chunks=1'),
            (ep > 1 and not n_expert, f'ep={ep} without experts: set n_expert, or ep=1'),
            (n_expert and n_expert % ep, f'ep={ep} does not divide n_expert={n_expert}: use ep of {divisors(n_expert)}'),
            ((dp * cp * tp) % ep, f'ep={ep} does not divide dp*cp*tp={dp * cp * tp}: use ep of {divisors(dp * cp * tp)}'),
            (cp > 1 and T % (2 * cp),
             f'block_size={T} does not divide by 2*cp={2 * cp}: use a multiple, such as {-(-T // (2 * cp)) * 2 * cp}'),
            ((sp or n_expert) and T // cp % tp,
             f'block_size/cp={T // cp} does not divide by tp={tp}: use block_size of {-(-T // (2 * cp * tp)) * 2 * cp * tp}'),
            (zero not in (0, 1, 2, 3), f'zero={zero}: use 0, 1, 2 or 3'),
            (zero_shard and (not zero or zero_shard < 0 or dp * cp % zero_shard),
             f'zero_shard={zero_shard}: it needs zero=1, 2 or 3 and must divide dp*cp={dp * cp}: use {divisors(dp * cp)}, or 0 for all'),
            (rows % dp, f'{rows} rows per step do not divide by dp={dp}: use a tokens_per_step of {-(-rows // dp) * dp * T}'),
            (cp_mode not in ('ring', 'allgather', 'ulysses'), f'cp_mode={cp_mode}: use ring, allgather or ulysses'),
            (cp_mode == 'ulysses' and (n_head // tp % cp or max(1, n_kv_head // tp) % cp),
             f'cp_mode=ulysses needs cp={cp} to divide the heads of a rank '
             f'({n_head // tp} and {max(1, n_kv_head // tp)} kv): use cp_mode=ring')):
        if bad:
            raise ValueError(say)
    return dp


def fitting(rows, most):
    """The largest microbatch of up to `most` rows that divides them."""
    return max(m for m in range(1, most + 1) if rows % m == 0)


def check_fp8(fp8, cfg, tp, positions):
    """Raises ValueError if a side of a product of the blocks on a rank, with so many positions of a microbatch, is not a multiple of 16."""
    sides = dict(n_embd=cfg.n_embd, heads=cfg.n_embd // tp, keys=2 * max(1, cfg.n_kv_head // tp) * cfg.hd, ff=cfg.ff // tp,
                 shared_ff=cfg.shared_ff // tp, positions=positions)
    if fp8 and (odd := [f'{k} {n}' for k, n in sides.items() if n % 16]):
        raise ValueError(f'fp8={fp8}: products in 8 bits need sides that are multiples of 16; on a rank here: {", ".join(odd)}')


# ---------------------------------------------------------------- the search

def sizes(cfg):
    """What check_layout wants to know of a model."""
    return dict({k: getattr(cfg, k) for k in ('n_layer', 'n_head', 'n_kv_head', 'ff', 'n_expert', 'shared_ff')},
                flow_width=cfg.flow_width * (cfg.image or cfg.audio))


def layouts(cfg, T, rows, world, most, fixed, fell):
    """
    Every layout of `world` GPUs for a step of `rows` rows of T positions that check_layout lets pass. fixed: {key: value} that all
    must have. fell, {reason without its numbers: [count, an example]}, is added to. most: the largest tp. gpipe is not tried: it idles as
    long as 1f1b and holds more.
    """
    want = lambda key, values: [fixed[key]] if key in fixed else values

    def out(text):
        fell.setdefault(re.sub(r'[\d.]+', '', text), [0, text])[0] += 1
    divide = [i for i in range(1, world + 1) if world % i == 0]
    experts = [i for i in divide if cfg.n_expert % i == 0] if cfg.n_expert else [1]
    for tp, pp, cp, ep in product(want('tp', [i for i in divide if i <= most]), want('pp', [i for i in divide if i <= cfg.n_layer]),
                                  want('cp', [i for i in divide if i <= max(1, T // 4096)]), want('ep', experts)):
        try:
            dp = check_layout(world, tp=tp, pp=pp, cp=cp, ep=ep, sp=tp > 1, T=T, rows=rows, **sizes(cfg))
        except ValueError as e:
            out(str(e))
            continue
        if fixed.get('dp') not in (None, 0, dp):
            continue
        for zero, again, micro, v in product(want('zero', [0, 1, 2, 3] if dp * cp > 1 else [0]), want('recompute', [0, 0.5, 1]),
                                             want('rows', [i for i in (1, 2, 4, 8, 16) if i <= rows // dp]),
                                             want('v', sorted({1, 2, 4, cfg.n_layer // pp}) if pp > 1 else [1])):
            if rows // dp % micro:
                out(f'{micro} rows of a microbatch do not divide the {rows // dp} of a rank: take a divisor')
                continue
            m = rows // dp // micro
            for name in want('schedule', ['1f1b', 'zbh1'] if v == 1 else ['interleaved']) if pp > 1 else ['']:
                if pp * v > cfg.n_layer:
                    out(f'pp={pp} times {v} chunks exceeds n_layer={cfg.n_layer}: use up to {cfg.n_layer // pp} chunks')
                elif name == 'interleaved' and (m % pp or v == 1):
                    out(f'interleaved with {m} microbatches, pp={pp}: their number must be a multiple, such as {m - m % pp + pp}')
                else:
                    yield dict(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, zero=zero, recompute=again, rows=micro, m=m, schedule=name, v=v,
                               fp8=fixed.get('fp8', False))


def search(cfg, c, T, rows, world, fixed=()):
    """
    -> (results of cost(), fastest first, the best of each dp, tp, pp, cp, ep; {reason: [how often, an example]} of what fell out; how many
    layouts were looked at).
    """
    fell, best, number, least = {}, {}, 0, math.inf
    for l in layouts(cfg, T, rows, world, 2 * c['node'], dict(fixed), fell):
        number += 1
        full = fullest(cfg, l, T)
        need = sum(full.values())
        if need > ROOM * c['memory']:
            least = min(least, need)
            fell.setdefault('memory', [0, ''])[0] += 1
            continue
        r, mesh = cost(cfg, l, c, T, full=full), tuple(l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep'))
        if mesh not in best or (r['seconds'], need) < (best[mesh]['seconds'], sum(best[mesh]['memory'].values())):
            best[mesh] = r
    if 'memory' in fell:
        room = ROOM * c['memory'] / 1e9
        fell['memory'][1] = f'more than {room:.1f} GB, {ROOM:.0%} of a GPU: the smallest of them needs {least / 1e9:.1f} GB'
    return sorted(best.values(), key=lambda r: r['seconds']), fell, number + sum(n for k, (n, _) in fell.items() if k != 'memory')


# ---------------------------------------------------------------- what is shown

KINDS = ('parameters', 'gradients', 'masters', 'moments', 'activations', 'working')
TIMES = ('products', 'attention', 'elementwise', 'tp', 'cp', 'ep', 'zero', 'bubble', 'optimizer')
COLOURS = ('#4269d0', '#6cc5b0', '#97bbf5', '#ff725c', '#efb118', '#a463f2', '#ff8ab7', '#9c9c9c', '#3ca951')


def label(l):
    words = [f'{k}{l[k]}' for k in ('dp', 'tp', 'pp', 'cp', 'ep') if l[k] > 1] or ['one GPU']
    words += [l['schedule'] + (f' x{l["v"]}' if l['v'] > 1 else '')] * (l['pp'] > 1) + [f'zero{l["zero"]}'] * (l['zero'] > 0)
    words += ['recompute' + f'{l["recompute"]:g}' * (l['recompute'] < 1)] * bool(l['recompute'])
    return ' '.join(words + [f'rows{l["rows"]}'] + ['fp8'] * bool(l.get('fp8')))


def table(results):
    groups = ('tp', 'cp', 'ep', 'dp', 'pp')
    heads = ('weight', 'grad', 'master', 'moment', 'activ', 'work', 'all')
    print(f'{"":54s} {"GB of a GPU":^48s}  {"GB sent per step and GPU":^39s}')
    print(f'{"layout":54s} ' + ' '.join(f'{k:>6s}' for k in heads) + '  ' + ' '.join(f'{k:>7s}' for k in groups)
          + f'  {"idle":>5s} {"step s":>7s} {"tok/s":>7s} {"MFU":>5s}')
    for r in results:
        full = [r['memory'][k] for k in KINDS]
        print(f'{label(r["layout"]):54s} ' + ' '.join(f'{x / 1e9:6.1f}' for x in (*full, sum(full))) + '  '
              + ' '.join(f'{r["sent"][k] / 1e9:7.1f}' for k in groups)
              + f'  {r["idle"]:5.1%} {r["seconds"]:7.3f} {r["tokens"]:7,.0f} {r["mfu"]:5.1%}')


def draw(results, c, title, path):
    """Two bars per layout as a PNG: where a step's seconds go, and what fills the memory of a GPU (the line: what may be planned for)."""
    from PIL import Image, ImageDraw, ImageFont
    font, step = ImageFont.load_default(15), 44
    img = Image.new('RGB', (1500, 130 + step * len(results)), 'white')
    pen, text = ImageDraw.Draw(img), '#222222'
    pen.text((20, 12), title, text, ImageFont.load_default(20))
    for x0, wide, unit, key, names, one, top in ((400, 470, 's', 'by', TIMES, 1, max(r['seconds'] for r in results)),
                                                 (1040, 370, 'GB', 'memory', KINDS, 1e9, c['memory'] / 1e9)):
        x = x0
        for name, colour in zip(names, COLOURS):
            pen.rectangle((x, 54, x + 12, 66), colour)
            pen.text((x + 15, 50), name, text, ImageFont.load_default(12))
            x += 21 + int(pen.textlength(name, ImageFont.load_default(12)))
        for i, r in enumerate(results):
            x, y = float(x0), 84 + step * i
            for name, colour in zip(names, COLOURS):
                w = r[key].get(name, 0) / one / top * wide
                pen.rectangle((x, y, max(x, x + w - 1), y + 26), colour) if w >= 1 else None
                x += w
            pen.text((x + 5, y + 4), f'{sum(r[key].values()) / one:.3g} {unit}' + f'  MFU {r["mfu"]:.0%}' * (unit == 's'), text, font)
            pen.text((20, y + 4), label(r['layout']), text, ImageFont.load_default(13)) if unit == 's' else None
    line = 1040 + ROOM * 370
    pen.line((line, 78, line, 84 + step * len(results)), '#cc0000', 2)
    img.save(path)


def read_config(args):
    """Config files and flags as train.py takes them -> ({key: value}, ModelConfig, positions of a row, rows of a step)."""
    root = Path(__file__).resolve().parents[1]
    space = {'__file__': str(root / 'train.py')}
    for a in ast.parse((root / 'train.py').read_text()).body:      # train.py's keys and defaults; configure() takes those above its call
        if isinstance(a, ast.Assign) and isinstance(a.value, ast.Constant):
            space[a.targets[0].id] = a.value.value
    with redirect_stdout(StringIO()):                              # it would say what it overrides
        configure(space, args)
    text = TIKTOKEN.get(space['tokenizer']) or 256 + int('0' + space['tokenizer'].partition(':')[2])
    given = {f.name: space[f.name] for f in fields(ModelConfig) if f.name != 'vocab_size'}
    cfg = ModelConfig(vocab_size=text + len(SPECIALS) + space['n_loc'], **given)
    return space, cfg, space['block_size'], space['tokens_per_step'] // space['block_size']


NAMES = dict(dp='dp', tp='tp', pp='pp', cp='cp', ep='ep', zero='zero', recompute='recompute', rows='micro_rows', schedule='pp_schedule',
             v='pp_chunks')                                        # a layout's keys and train.py's


def own_layout(space, cfg, gpus):
    """The layout that the keys of train.py set, on so many GPUs; ValueError as train.py would say it."""
    l = {**{name: space[key] for name, key in NAMES.items()}, 'fp8': bool(space.get('fp8', False))}
    rows = space['tokens_per_step'] // space['block_size']
    l['dp'] = check_layout(gpus, **{k: l[k] for k in ('dp', 'tp', 'pp', 'cp', 'ep', 'v', 'zero')}, sp=l['tp'] > 1, T=space['block_size'],
                           rows=rows, **sizes(cfg))
    l['rows'] = min(l['rows'], rows // l['dp'])
    if rows // l['dp'] % l['rows']:
        raise ValueError(f'micro_rows={l["rows"]} does not divide the {rows // l["dp"]} rows of a rank')
    return {**l, 'm': rows // l['dp'] // l['rows'], 'schedule': l['schedule'] * (l['pp'] > 1)}


def plan_command(argv):
    """See the top of this file."""
    k = dict(model='', gpus=8, gpu='h100', top=8, png='', simulate=False, spread=0.0, **{x: 0.0 for x in H100})
    own, rest = {}, []
    try:
        for arg in argv:
            key, equals, value = arg.removeprefix('--').partition('=')
            if key not in k or not arg.startswith('--') or not equals:
                rest.append(arg)
                continue
            try:
                own[key] = cast(value, type(k[key]), True)
            except (ValueError, OverflowError):
                raise ValueError(f'{arg}: {key} is like {k[key]!r}') from None
        k.update(own)
        if k['gpu'] not in GPUS or k['gpus'] < 1 or not 1 <= k['top'] <= 100:
            raise ValueError(f'--gpu={k["gpu"]} --gpus={k["gpus"]} --top={k["top"]}: use a gpu of {", ".join(GPUS)}, gpus of 1 and more, '
                             'top of 1 to 100')
        if any(k[x] <= 0 for x in H100 if x in own):
            raise ValueError(f'a cluster by numbers: {", ".join(H100)} are above 0')
        c = {**GPUS[k['gpu']], **{x: k[x] for x in H100 if x in own}}
        c['node'] = max(1, int(c['node']))
        space, cfg, T, rows = read_config(([k['model']] if k['model'] else []) + rest)
        told = {arg[2:].partition('=')[0] for arg in rest if arg.startswith('--')}
        fixed = {**{name: space[key] for name, key in NAMES.items() if key in told}, 'fp8': bool(space.get('fp8', False))}
        p = count_params(cfg)
        gpu = k['gpu'] if not set(own) & set(H100) else 'GPUs by numbers'
        print(f'{p["total"] / 1e9:.2f} B parameters ({p["active"] / 1e9:.2f} B active), {rows} rows of {T} per step, '
              f'{k["gpus"]} x {gpu}: {c["flops"] / 1e12:.0f} TFLOP/s, {c["memory"] / 1e9:.0f} GB,\n'
              f'{c["link"] / 1e9:.0f} GB/s in a node of {c["node"]}, '
              f'{c["net"] / 1e9:.0f} GB/s across')
        results, fell, number = search(cfg, c, T, rows, k['gpus'], fixed)
        if not results:
            why = '; '.join(f'{n} times: {text}' for n, text in sorted(fell.values(), reverse=True)[:4])
            raise ValueError(f'none of {number} layouts can run: {why}')
    except ValueError as e:
        raise SystemExit(f'plan {" ".join(argv)}: {e}')
    try:
        mine, why = [cost(cfg, own_layout(space, cfg, k['gpus']), c, T)], '^'
    except ValueError as e:
        mine, why = [], f'cannot run: {e}'
    table(results[:k['top']] + mine)
    print(f'{why} as set in {k["model"] or "train.py"}')
    print(f'{number:,} layouts looked at; the best of each dp, tp, pp, cp, ep is listed. What fell out, with an example:')
    for n, why in sorted(fell.values(), key=lambda x: -x[0]):
        print(f'{n:8,d}  {why}')
    r = results[0]
    usual = dict(tp=1, pp=1, cp=1, ep=1, v=1, zero=0, schedule='', recompute=0)
    flags = [f'--{key}={r["layout"][k]}' for k, key in NAMES.items() if r['layout'][k] != usual.get(k)]
    print('flags of the best:', *flags, *['--sp=true'] * (r['layout']['tp'] > 1))
    share = {name: r['by'].get(name, 0) / r['seconds'] for name in TIMES}
    print('of the best step: ' + ', '.join(f'{name} {x:.1%}' for name, x in share.items() if x > .0005))
    if k['png']:
        draw(results[:k['top']], c, f'{k["model"] or "train.py"} on {k["gpus"]} x {gpu}', k['png'])
        print(f'chart: {k["png"]}')
    if k['simulate']:
        from data import cluster
        for spread in dict.fromkeys((0.0, k['spread'])):
            ran = cluster.simulate_cluster(cfg, r['layout'], c, T, spread=spread)
            print(f'simulated, {k["gpus"]} ranks, {ran["events"]:,} events, speeds spread by {spread:.0%}: {ran["seconds"]:.3f} s, formula '
                  f'{r["seconds"]:.3f} s, difference {ran["seconds"] / r["seconds"] - 1:+.1%}')
    return results


# ---------------------------------------------------------------- one schedule

def chart(ran):
    """simulate's result as text, a line per rank: F3, B3, W3 of microbatch 3 (v > 1: chunk a, b, ...), - on, . idle."""
    acts, lines = [act for row in ran['timeline'] for act in row], []
    unit, chunks = min(end - start for *_, start, end in acts), max(c for _, c, *_ in acts)
    width = len(f'F{max(mb for _, _, mb, *_ in acts)}') + (chunks > 0)
    for rank, row in enumerate(ran['timeline']):
        cells = [f'rank {rank:<2}']
        for kind, c, mb, start, end in row:
            a, b, name = int(start / unit + .5), int(end / unit + .5), f'{kind[0]}{mb}' + chr(97 + c) * (chunks > 0)
            cells += ['.' * width] * (a + 1 - len(cells)) + [name.ljust(width)] + ['-' * width] * (b - a - 1)
        lines.append(' '.join(cells))
    return '\n'.join(lines)


def schedule_command(argv):
    """See the top of this file: prints chart, idle time and theory, live activations.
    F, B, W, comm as in simulate; layers > 0: stages take time as their layers, with embed and head on top, do."""
    k = dict(name='1f1b', pp=4, m=8, v=1, F=1.0, B=1.0, W=1.0, comm=0.0, layers=0, embed=0.0, head=0.0)
    try:
        for arg in argv:
            key, _, value = arg.removeprefix('--').partition('=')
            if key not in k or f'--{key}={value}' != arg:
                raise ValueError(f'{arg} is not known, take ' + ' '.join(f'--{x}={y}' for x, y in k.items()))
            k[key] = type(k[key])(value)
        name, pp, m, v, *times, comm, layers, embed, head = k.values()
        if not all(.001 <= x <= 1000 for x in times) or not all(0 <= x <= 1000 for x in (comm, layers, embed, head)):
            raise ValueError('F, B, W must be .001 to 1000, comm, layers, embed, head 0 to 1000')
        lists, costs = add_messages(schedule(name, pp, m, v), m, v), [1] * pp * v
        if layers:
            costs = [stop - start for start, stop in split_layers(layers, pp * v, embed, head)]
            print('layers per stage:', *costs)
            costs[0] += embed
            costs[-1] += head
        ran = simulate(lists, m, v, *times, comm, lambda kind, stage, mb: costs[stage] / sum(costs) * len(costs))
    except ValueError as e:
        raise SystemExit(f'schedule {" ".join(argv)}: {e}')
    print(chart(ran) + f'\nmakespan {ran["makespan"]:.6g} | idle per rank ' + ' '.join(f'{x:.6g}' for x in ran['idle'])
          + f' ({sum(ran["idle"]) / pp / ran["makespan"]:.1%}), in theory {bubble_theory(name, pp, m, v, *times):.6g}'
          + ' | peak live activations per rank ' + ' '.join(map(str, ran['peak'])) + ' microbatch-chunks')
