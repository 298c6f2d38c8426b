"""
The command line of nanoMuse. A script assigns its defaults as commented globals, calls configure once and reads on:

    lr = 6e-4  # peak learning rate
    config = configure(globals())

$ python train.py config/scenes.py config/small.py --lr=1e-3 --compile=false     # or --help: every key and its default

- A key is a module-level int, float, bool or str that the script assigns above the call; CONSTANTS and _names are not.
- Files first, in their order, then flags, wherever they stand on the line. A file is Python that sees the values so far
  (`lr_min = lr / 10` works) but not the flags; its modules, functions, classes and _names are ignored.
- Values keep the type of the default: ints become floats, 1e5 and 64_000 are ints, bools are true/false/1/0, text needs
  no quotes. Whatever does not fit is one line on stderr and exit status 2, before anything has been changed.
"""
import ast
import difflib
import os
import sys
from itertools import takewhile
from pathlib import Path

KINDS = {int: 'an int', float: 'a float', bool: 'a bool (true or false)', str: 'a string'}

def configure(space, argv=None):
    """space: the script's globals(), updated; argv: list of str, default sys.argv[1:] -> {key: final value}."""
    argv, script = sys.argv[1:] if argv is None else argv, Path(space['__file__']).resolve()
    master = int(os.environ.get('RANK') or 0) == 0  # under torchrun one rank does the talking
    values, help_lines = read_script(script.read_text(encoding='utf-8'), space)

    def fail(message):
        print(f'{script.name}: ' + ' '.join(message.split()), file=sys.stderr, flush=True)
        sys.exit(2)

    def assign(key, value, shown, is_text):
        if key not in values:
            near = difflib.get_close_matches(key, values, 1, 0) or ['none, there are no keys']
            fail(f'unknown key {key!r} in {shown}: the nearest known key is {near[0]} (--help lists them all)')
        try:
            values[key] = cast(value, type(space[key]), is_text)
        except (ValueError, OverflowError):
            example = f'--{key}={space[key]}' if is_text else f'{key} = {space[key]!r}'
            fail(f'bad value in {shown}: {key} takes {KINDS[type(space[key])]}, for example its default, {example}')

    if '--help' in argv or '-h' in argv:
        usage = [f'usage: python {script.name} [config/x.py ...] [--key=value ...]', space.get('__doc__') or '']
        sys.exit(print(*usage, *help_lines, sep='\n', flush=True) if master else None)  # with status 0
    for arg in [a for a in argv if not a.startswith('-')]:
        if not arg.endswith('.py'):
            fail(f'{arg!r} is neither a config file (.py) nor a flag: write --key=value, with = and without spaces')
        path = next((p for p in (Path(arg), script.parent / arg) if p.is_file()), None)  # from here, else by the script
        if path is None:
            fail(f'config file {arg} not found from {Path.cwd()} nor from {script.parent}: correct its path')
        names = {**values, '__file__': str(path), '__name__': '__config__'}
        try:
            exec(compile(path.read_bytes(), str(path), 'exec'), names)
        except Exception as e:  # the file is the user's text: say where it broke, not how we came there
            tb, line = e.__traceback__, getattr(e, 'lineno', None)
            while tb:
                line, tb = tb.tb_lineno if tb.tb_frame.f_code.co_filename == str(path) else line, tb.tb_next
            fail(f'config file {arg}, line {line}: {type(e).__name__}: {getattr(e, "msg", e)}: correct it there')
        for key, value in names.items():
            if key in values or not (key[0] == '_' or callable(value) or type(value) is type(sys)):
                assign(key, value, f'{arg}: {key} = {value!r}', is_text=False)
    for arg in [a for a in argv if a.startswith('-')]:
        key, equals, value = (arg + '=true' * (values.get(arg[2:]) is False)).lstrip('-').partition('=')  # a switch
        if not (arg.startswith('--') and equals):
            fail(f'{arg!r} is no flag with a value: write --{key or "key"}=value, without spaces')
        assign(key, value, arg, is_text=True)
    for key in [k for k in values if master and values[k] != space[k]]:
        print(f'overriding {key} = {values[key]!r} (default {space[key]!r})', flush=True)
    space.update(values)
    return values

def cast(value, kind, is_text):
    """value: a flag's text (is_text) or a file's object -> the same as kind (int, float, bool, str), or ValueError."""
    if is_text and kind is bool:
        value = {'true': True, '1': True, 'false': False, '0': False}.get(value.lower())
    elif is_text and kind is not str:
        value = int(value) if value.strip('+-').replace('_', '').isdecimal() else float(value)
    if kind is float and type(value) is int or kind is int and type(value) is float and value.is_integer():
        value = kind(value)
    if type(value) is not kind or value != value:  # the very type: True is no int; and nan is never meant
        raise ValueError(value)
    return value

def read_script(source, space):
    """source: the script's text -> ({key: default}, lines of help: every key with the comments above and beside it)."""
    tree, lines, values, text, done = ast.parse(source), source.split('\n'), {}, [], 0
    calls = (n.lineno for n in ast.walk(tree) if 'configure' in (getattr(n, 'id', 0), getattr(n, 'attr', 0)))
    call = min(calls, default=len(lines) + 1)  # under another name: whatever has been assigned by now
    top = [s for s in tree.body if not isinstance(s, (ast.FunctionDef, ast.ClassDef, ast.For))]
    for a in [a for s in top for a in ast.walk(s) if isinstance(a, (ast.Assign, ast.AnnAssign)) and a.lineno < call]:
        names = [n.id for n in ast.walk(a) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        names = [k for k in names if type(space.get(k)) in KINDS and not (k in values or k[0] == '_' or k.isupper())]
        above = [*takewhile(lambda s: s.strip()[:1] in ('', '#'), lines[done:a.lineno - 1][::-1])][::-1]
        beside = lines[a.end_lineno - 1].encode()[a.end_col_offset:].decode().partition('#')[2]  # columns count bytes
        text += [s.strip() for s in above if names and (s.strip('# -=') or not s)]  # headings too, but not mere rules
        text += [(f'  --{k}={space[k]}'.ljust(34) + '  #' * bool(beside) + beside).rstrip() for k in names]
        values, done = {**values, **{k: space[k] for k in names}}, a.end_lineno
    return values, text
