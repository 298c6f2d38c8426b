"""
The tools that a model may call.

In the token stream a call is <tool>name{json}</tool>; the environment answers <out>...</out>, of weight 0. call('name{json}', ctx) makes
what stands between the latter and never raises: a list of segments (data/codec.py), texts of at most MAX_OUT characters, and pictures.
Whatever is wrong comes back to the model as one line, 'error: ...'. Text stays text: codec.text() makes no special token of it, however it
looks, and control characters (which could drive a terminal) become U+FFFD.

A tool is a function tool(ctx, ...) with type hints, which arguments are checked against, and a docstring: describe() shows them to a model.
ctx is a dict; a tool for which something is missing there answers with an error:
    workspace, documents    folders: files to view and change; texts to search (read-only, indexed at the first search): data/files.py
    mbox, ics               files: mail (read-only) and a calendar
    images, n_loc           list of uint8 (H, W, 3), original pixels; bins of a coordinate (Codec.n_loc; 64)
    max_patches             of a picture that look returns (64)
    seconds                 of a run of python (2)
    ground, draw, spawn     functions of agents.py, which asks the model: ground(query, image index) -> str, draw(prompt) -> uint8
                            (8h, 8w, 3), spawn([task]) -> [report]
    depth, tokens           how much deeper, and how many tokens, sub-agents may still go: none at 0
"""
import ast, inspect, json, mailbox, math, operator, os, re, time, typing
from collections import Counter
from datetime import datetime, timedelta, timezone
from email import header, message_from_bytes
from pathlib import Path
from typing import Literal
import numpy as np
from PIL import Image
from data.files import MAX_FOLDER, artifact, find, insert, need, open_, read_text, replace, search, view, write_text
from data.media import BadInput, check, load_image
from data.sandbox import run_python

MAX_CALL, MAX_OUT = 100_000, 8_000                    # characters

# ---------------------------------------------------------------- a call

def call(text, ctx):
    """'name{json}' -> list of segments for between <out> and </out>. Every error is text, too."""
    name, line = '', lambda e: ' '.join(f'error: {e}'.split())[:400]
    try:
        check(len(text) <= MAX_CALL, f'a call of {len(text)} characters: at most {MAX_CALL}')
        name, brace, rest = (s.strip() for s in text.partition('{'))
        check(brace, 'a call is name{json}, as calculate{"expression": "6*7"}')
        check(name in TOOLS, f'no tool {name[:40]!r}, but {", ".join(TOOLS)}')
        args = json.loads(brace + rest, object_pairs_hook=once)
        out = TOOLS[name](ctx, **arguments(name, args))
    except json.JSONDecodeError as e:
        out = line(f'{name}: no JSON object of arguments: {e.msg} at character {e.pos + 1} of it')
    except BadInput as e:
        out = line(e)
    except Exception as e:                            # whatever it was: the model is told, and the program goes on
        out = line(f'{name[:40]}: {type(e).__name__}: {e}')
    return [(kind, clean(v), *more) if kind == 'text' else (kind, v, *more)
            for kind, v, *more in ([('text', out, 0)] if isinstance(out, str) else out)]

def clean(s):
    s = re.sub(r'[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]', '\ufffd', s.replace('\r\n', '\n'))
    return s if len(s) <= MAX_OUT else f'{s[:MAX_OUT]}\n[cut: {len(s) - MAX_OUT} characters more]'

def once(pairs):
    twice = [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]
    check(not twice, f'an argument is given twice: {str(twice)[:60]}')
    return dict(pairs)

def arguments(name, args):
    """JSON object -> arguments that fit the tool's hints, or BadInput."""
    hints, params = typing.get_type_hints(TOOLS[name]), list(inspect.signature(TOOLS[name]).parameters.values())[1:]
    for k in args:
        check(k in [p.name for p in params], f'{name} has no argument {k[:40]!r}: it is {usage(name)}')
    for p in params:
        check(p.name in args or p.default is not p.empty, f'{name} needs {p.name}: it is {usage(name)}')
    return {k: fit(v, hints[k], f'{name}: {k}') for k, v in args.items()}

def fit(v, hint, what):
    show, kinds = f'{what}={str(v)[:40]!r}', typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        check(v in kinds, f'{show} is none of: {", ".join(kinds)}')
    elif typing.get_origin(hint) is list:
        check(isinstance(v, list) and len(v) <= 64, f'{show} is no list (of at most 64)')
        return [fit(x, kinds[0], what) for x in v]
    elif hint is int:
        check(type(v) is int and abs(v) <= 10 ** 9, f'{show} is no whole number up to a billion')
    else:
        check(type(v) is str and '\0' not in v, f'{show} is no text (or has a NUL in it)')
        return v.encode('utf-8', 'replace').decode()  # lone surrogates: '?'
    return v

def usage(name):
    """As a model would write the call: 'find{"path": str, "text": str}'."""
    def hint(h):
        return '|'.join(typing.get_args(h)) if typing.get_origin(h) is Literal else h.__name__ if type(h) is type else str(h)
    params = list(inspect.signature(TOOLS[name]).parameters.values())[1:]
    shown = (f'"{p.name}": {hint(p.annotation)}' + ('' if p.default is p.empty else f' = {json.dumps(p.default)}') for p in params)
    return f'{name}{{{", ".join(shown)}}}'

def describe(names=None):
    """For a system prompt: a line for each tool (all, or those named), its call and what it does."""
    return '\n'.join(f'{usage(n)}  {inspect.getdoc(TOOLS[n])}' for n in names or TOOLS)

# ---------------------------------------------------------------- computing

def python(ctx, code: str):
    """Run Python (standard library, no network, no files but in /tmp); what it prints comes back."""
    r = run_python(code, ctx.get('seconds', 2.0))
    check(r['status'] != 'refused', f'python: {r["text"]}; for arithmetic there is calculate')
    return r['text'] or '(no output)'

def calculate(ctx, expression: str):
    """Arithmetic: + - * / // % **, brackets, sqrt log exp sin cos tan floor ceil abs round min max gcd factorial, pi, e."""
    check(len(expression) <= 500, f'an expression of {len(expression)} characters: at most 500')
    check(re.fullmatch(r'[\w\s.,()+*/%-]+', expression), f'calculate: {expression[:40]!r} is no arithmetic')
    try:
        return repr(evaluate(ast.parse(expression.strip(), mode='eval').body))
    except BadInput:
        raise
    except (ArithmeticError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as e:
        raise BadInput(f'calculate: {getattr(e, "msg", e)}') from None

BITS = 4096                                           # of a whole number: nothing that is allowed takes long
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Mod: operator.mod,
             ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS = {f.__name__: f for f in (math.sqrt, math.log, math.exp, math.sin, math.cos, math.tan, math.floor, math.ceil, math.gcd,
                                     math.factorial, abs, round, min, max)}

def evaluate(node):
    """A node of the parsed tree -> int or float."""
    if isinstance(node, ast.Constant):
        v = node.value
    elif isinstance(node, ast.Name) and node.id in ('pi', 'e'):
        v = getattr(math, node.id)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        v = OPERATORS[type(node.op)](evaluate(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        a, b = evaluate(node.left), evaluate(node.right)
        check(not isinstance(node.op, ast.Pow) or float in (type(a), type(b)) or abs(b) * (a.bit_length() - 1) <= BITS,
              'calculate: that power is too large')
        v = OPERATORS[type(node.op)](a, b)
    elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') in FUNCTIONS and not node.keywords:
        name, args = node.func.id, [evaluate(a) for a in node.args]
        check(name != 'factorial' or all(abs(a) <= 500 for a in args), 'calculate: factorial of 0 to 500 only')
        check(name != 'round' or all(abs(a) <= 300 for a in args[1:]), 'calculate: round to at most 300 digits')
        v = FUNCTIONS[name](*args)
    else:
        raise BadInput(f'calculate: {ast.unparse(node)[:40]!r} is no arithmetic')
    check(type(v) is int and v.bit_length() <= BITS or type(v) is float and math.isfinite(v),
          'calculate: a value that is no number, or too large')
    return v

# ---------------------------------------------------------------- mail and calendar

def mail(ctx, action: Literal['list', 'search', 'read'], query: str = '', number: int = 0):
    """Mail: list the latest, search for a text, read one by its number."""
    path = need(ctx, 'mbox')
    check(os.path.isfile(path) and os.path.getsize(path) <= MAX_FOLDER, f'the mailbox is missing, or over {MAX_FOLDER} bytes')
    box, out = mailbox.mbox(path, create=False), []
    try:
        keys = box.keys()
        if action == 'read':
            check(0 <= number < len(keys), f'message {number}: there are {len(keys)}, from 0')
            head, text = letter(box.get_bytes(keys[number]))
            return '\n'.join(f'{k}: {v}' for k, v in head.items()) + f'\n\n{text}'
        for i in range(len(keys))[:-2000:-1]:
            head, text = letter(box.get_bytes(keys[i]))
            row = f'{i}  {head["Date"]}  {head["From"]}  {head["Subject"]}'
            if action == 'list' or query.lower() in f'{row}\n{text}'.lower():
                out.append(row)
            if len(out) == 20:
                break
        return '\n'.join(out) or 'no message'
    finally:
        box.close()

def letter(raw):
    """A message as bytes -> ({header: text}, text). Others wrote it: whatever is wrong with it, something comes back, and soon."""
    names = ('From', 'To', 'Date', 'Subject')
    try:
        # the first 64 KB, and 400 bytes of a Content-... header: the standard library takes quadratic time on long ones
        m = message_from_bytes(re.sub(rb'(?im)^(content-[\w-]*:(?:[^\n]|\n[ \t]){0,400})(?:[^\n]|\n[ \t])*', rb'\1', raw[:1 << 16]))
        part = next((p for kind in ('text/plain', 'text/html') for p in m.walk() if p.get_content_type() == kind), m)
        data = part.get_payload(decode=True) or b''
        try:
            text = data.decode(part.get_content_charset() or 'utf-8', 'replace')
        except LookupError:                           # an unknown character set
            text = data.decode('latin-1')
        text = re.sub('<[^<>]*>', '', text) if part.get_content_type() == 'text/html' else text
        return {k: heading(str(m.get(k) or '')[:500]) for k in names}, text
    except Exception:                                 # parts in parts in parts ..., and what else there is
        return dict.fromkeys(names, '(damaged)'), ''

def heading(raw):
    try:
        raw = str(header.make_header(header.decode_header(raw)))
    except Exception:                                 # damaged ones raise nearly anything; they are shown as they are
        pass
    return ' '.join(raw.split())[:200]

def calendar(ctx, action: Literal['list', 'add'], start: str = '', title: str = '', minutes: int = 60):
    """Calendar: list the events (from start on, as 2031-05-24), or add one (start as 2031-05-24T15:30, title, minutes)."""
    path = Path(need(ctx, 'ics')).resolve()
    empty = 'BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//nanoMuse//EN\r\nEND:VCALENDAR\r\n'
    text = read_text(path.parent, path.name, 'replace' if action == 'list' else 'strict') if path.exists() else empty
    if action == 'add':
        check(0 < minutes <= 100_000 and title.split() and len(title) <= 200, 'a title of up to 200 characters, and minutes above 0')
        try:
            at = datetime.fromisoformat(start)
            begin, end = (t.astimezone(timezone.utc) if t.tzinfo else t for t in (at, at + timedelta(minutes=minutes)))
        except (ValueError, OverflowError):
            raise BadInput(f'start={start[:40]!r}: something like 2031-05-24T15:30 is needed') from None
        head, last, tail = text.rpartition('END:VCALENDAR')
        check(last, 'the calendar file is damaged: it has no END:VCALENDAR')
        stamp = lambda t: f'{t:%Y%m%dT%H%M%S}{"Z" * bool(t.tzinfo)}'
        safe = re.sub(r'([\\;,])', r'\\\1', ' '.join(title.split()))
        new = ['BEGIN:VEVENT', f'UID:{time.time_ns()}@nanomuse', f'DTSTAMP:{stamp(datetime.now(timezone.utc))}', f'DTSTART:{stamp(begin)}',
               f'DTEND:{stamp(end)}', f'SUMMARY:{safe}', 'END:VEVENT']
        fold = lambda s: '\r\n '.join(re.findall(f'.{{1,{70 if s.isascii() else 18}}}', s))          # lines of at most 75 bytes (RFC 5545)
        write_text(path.parent, path.name, head + '\r\n'.join(map(fold, new)) + '\r\n' + last + tail)
        return f'added: {at:%Y-%m-%d %H:%M}  {title}'
    out = []
    for event in re.sub(r'\r?\n[ \t]', '', text).replace('\r', '').split('\nBEGIN:VEVENT')[1:]:
        event = dict(re.findall(r'^(DTSTART|SUMMARY|LOCATION)(?:[^:"\n]|"[^"\n]*")*:(.{0,300})', event.partition('\nEND:VEVENT')[0], re.M))
        m = re.match(r'(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d))?', event.get('DTSTART', ''))
        when = f'{m[1]}-{m[2]}-{m[3]}' + (f' {m[4]}:{m[5]}' if m[4] else '') if m else '(no date)'
        if when >= start.replace('T', ' '):
            out.append('  '.join([when] + [re.sub(r'\\(.)', r'\1', event[k]) for k in ('SUMMARY', 'LOCATION') if k in event]))
    return '\n'.join(sorted(out)[:50]) or 'no event'

# ---------------------------------------------------------------- pictures and agents

def look(ctx, box: list[int], image: int = 0):
    """Look closer at a box of a picture, [x0, y0, x1, y1] in loc numbers: it comes back as a picture."""
    check(0 <= image < len(need(ctx, 'images')), f'picture {image}: there are {len(ctx["images"])}')
    return crop(ctx['images'][image], box, ctx.get('n_loc', 64), ctx.get('max_patches', 64))

def crop(a, box, n_loc, max_patches=64):
    """uint8 (H, W, 3), four bins (both ends included) -> [('image', uint8 (8h, 8w, 3), 0, (x0, y0, x1, y1) in fractions of the whole)]."""
    check(len(box) == 4, f'box {str(box)[:60]} is not x0, y0, x1, y1')
    (x0, y0, x1, y1), (H, W) = box, a.shape[:2]
    check(0 <= x0 <= x1 < n_loc and 0 <= y0 <= y1 < n_loc, f'box {box}: x0 <= x1 and y0 <= y1 are needed, from 0 to {n_loc - 1}')
    x0, y0, x1, y1 = x0 * W // n_loc, y0 * H // n_loc, -(-(x1 + 1) * W // n_loc), -(-(y1 + 1) * H // n_loc)      # pixels
    part = load_image(Image.fromarray(np.ascontiguousarray(a[y0:y1, x0:x1])), max_patches, n_loc - 1)
    return [('image', part, 0, (x0 / W, y0 / H, x1 / W, y1 / H))]

def ground(ctx, query: str, image: int = 0):
    """Find what a text names in a picture: points, boxes or a count."""
    check(0 <= image < len(need(ctx, 'images')), f'picture {image}: there are {len(ctx["images"])}')
    return need(ctx, 'ground')(query, image)

def draw(ctx, prompt: str):
    """Draw a picture."""
    return [('image', need(ctx, 'draw')(prompt), 0)]

def spawn(ctx, tasks: list[str]):
    """Give tasks to agents that work at the same time; their reports come back."""
    check(0 < len(tasks) <= 16, f'{len(tasks)} tasks: 1 to 16')
    check(ctx.get('depth', 0) > 0 and ctx.get('tokens', 0) > 0, 'no more agents: the depth or the token budget is used up')
    return '\n'.join(f'{i}. {r}' for i, r in enumerate(need(ctx, 'spawn')(tasks), 1))

TOOLS = dict(python=python, calculate=calculate, search=search, open=open_, find=find, view=view, insert=insert, replace=replace,
             artifact=artifact, mail=mail, calendar=calendar, look=look, ground=ground, draw=draw, spawn=spawn)
