"""
What sample.py shows while a model speaks: one stream of text, or the columns of many agents, drawn over themselves. say(..) is its print;
tty: on a terminal, with colours.
"""
import math, shutil, time
from data.tools import clean


def printer(codec, say, tty):
    """-> show(row): prints what is new in it, whole characters, no placeholders of pictures and sounds; thoughts and tools dimly."""
    seen, begun, held, dim = 0, False, [], ('think', 'tool', 'out')
    def show(row):
        nonlocal seen, begun
        for i, w in zip(row.ids[seen:], row.w[seen:]):
            seen, begun = seen + 1, begun or w > 0                 # not the reports that an orchestrator begins with
            held.extend([i] * (begun and i not in (codec.sp['img'], codec.sp['aud'], codec.sp['eot'])))
            text = codec.untext(held)
            if text[-1:] != '\ufffd' or len(held) > 3:
                held.clear()
                on, off = (tty and i in [codec.sp[k + d] for d in dim] for k in ('', '/'))
                say('\x1b[2m' * on + clean(text) + '\x1b[0m' * off, end='', flush=True)
    return show


def columns(codec, say, tty, show, height=6):
    """-> watch() for contemplate(): if tty what each agent says, drawn over itself; the answer as it comes."""
    drawn, blank = 0.0, codec.text(' ')[0]

    def column(k, row, w):
        text = codec.untext([blank if codec.n_text <= i < codec.loc0 else i for i in row.ids])
        text = ' '.join(clean(text).split())
        body = [text[i:i + w] for i in range(0, len(text), w)][-height:]
        return [f'{k}: {len(row.ids)}{" done" * bool(row.result)}', *body, *[''] * (height - len(body))]

    def watch(groups):
        nonlocal drawn
        g, now, width = groups[0], time.monotonic(), shutil.get_terminal_size().columns
        if tty and drawn < math.inf and (g.merge or now > drawn + .1):
            rows = g.agents[:max(1, width // 9)]
            w = width // len(rows) - 1
            lines = zip(*(column(k, r, w) for k, r in enumerate(rows, 1)))
            first, *rest = (' '.join(x[:w].ljust(w) for x in line).rstrip() for line in lines)
            say(f'\x1b[{height + 1}F\x1b[J' * (drawn > 0) + f'\x1b[1m{first}\x1b[0m', *rest, sep='\n', flush=True)
            drawn = math.inf if g.merge else now
        if g.merge:
            show(g.merge)
    return watch
