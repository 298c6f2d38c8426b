"""The command line (configurator.py): what is accepted, what is refused and how, what is echoed, --help."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configurator import configure

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = '''"""A script of the test.

$ python train.py config/x.py
"""
import json
import sys
from math import pi  # an imported number is no key
sys.path.insert(0, ROOT)
from configurator import configure
sys.stdout.reconfigure()  # not the call that is looked for
# -----------------------------------------------------------------------------
# the model
n_layer = 4; n_head = 2  # depth and heads
# width of the
# residual stream
width = 64

width = width + 0  # again
# the training
lr = 6e-4  # peak rate, of 'muon' \u00e9
lr_min = 6e-5
steps = (1_000 +
         0)  # optimizer steps
name = 'ééé # b'  # of the run
compile = True
if n_layer:
    device = 'cpu'  # or cuda
for i in range(2):
    last = i
PATCH = 8
_private = 1
nothing = None
def function():
    inner = pi = 1  # no keys
# -----------------------------------------------------------------------------
config = configure(globals())
after = pi = 1  # no keys
print('JSON', json.dumps({'config': config, 'globals': {k: globals()[k] for k in config}}))
'''
DEFAULTS = dict(n_layer=4, n_head=2, width=64, lr=6e-4, lr_min=6e-5, steps=1000, name='ééé # b', compile=True,
                device='cpu')

class Box:
    """A folder with train.py (SCRIPT) and the given config files; run and call give the configuration or the error."""

    def __init__(self, path):
        self.path = path
        (path / 'config').mkdir()
        (path / 'train.py').write_text(SCRIPT.replace('ROOT', repr(str(ROOT))), encoding='utf-8')

    def file(self, name, text):
        (self.path / 'config' / name).write_text(text)
        return f'config/{name}'

    def run(self, *args, cwd=None, **env):
        env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'PYTHONPATH')} | env
        return subprocess.run([sys.executable, str(self.path / 'train.py'), *args], cwd=cwd or self.path, env=env,
                              capture_output=True, text=True, encoding='utf-8', timeout=60)

    def call(self, *args):
        """configure in this process -> (returned dict, the globals as they were left)."""
        space = dict(DEFAULTS, pi=3.14, i=1, last=1, PATCH=8, _private=1, nothing=None,
                     __file__=str(self.path / 'train.py'))
        return configure(space, argv=list(args)), space

@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    return Box(tmp_path)

def refused(box, capsys, *args):
    """The one line of the refusal, after checking status 2 and that nothing went to stdout."""
    with pytest.raises(SystemExit) as e:
        box.call(*args)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == '' and err.count('\n') == 1 and err.endswith('\n'), err
    assert err.startswith('train.py: ') and 'Traceback' not in err
    return err

def test_no_arguments_leave_the_defaults(box, capsys):
    config, space = box.call()
    assert config == DEFAULTS and capsys.readouterr().out == ''
    assert [type(v) for v in config.values()] == [type(v) for v in DEFAULTS.values()]

def test_whole_run_by_subprocess(box):
    box.file('x.py', "lr = 1e-2\nlr_min = lr / 10\nname = 'x'\n")
    done = box.run('config/x.py', '--name=y=z', '--steps=20')
    assert done.returncode == 0 and done.stderr == '', done.stderr
    *echo, last = done.stdout.splitlines()
    assert echo == ['overriding lr = 0.01 (default 0.0006)', 'overriding lr_min = 0.001 (default 6e-05)',
                    'overriding steps = 20 (default 1000)', "overriding name = 'y=z' (default 'ééé # b')"]
    state = eval(last.removeprefix('JSON '), {'true': True, 'false': False})
    assert state['config'] == state['globals'] == DEFAULTS | dict(lr=.01, lr_min=.001, steps=20, name='y=z')

@pytest.mark.parametrize('flag, key, value', [
    ('--n_layer=12', 'n_layer', 12), ('--n_layer=-3', 'n_layer', -3), ('--n_layer=64_000', 'n_layer', 64000),
    ('--n_layer=1e5', 'n_layer', 100000), ('--n_layer=2.0', 'n_layer', 2),
    ('--n_layer=9007199254740993', 'n_layer', 9007199254740993),  # beyond the integers of a double
    ('--lr=1', 'lr', 1.0), ('--lr=-1e-3', 'lr', -1e-3), ('--lr=1_0.5', 'lr', 10.5), ('--lr=inf', 'lr', float('inf')),
    ('--compile=false', 'compile', False), ('--compile=False', 'compile', False), ('--compile=0', 'compile', False),
    ('--compile=TRUE', 'compile', True), ('--compile=1', 'compile', True),
    ('--name=a=b', 'name', 'a=b'), ('--name=', 'name', ''), ('--name=None', 'name', 'None'), ('--name=7', 'name', '7'),
    ('--name=two words', 'name', 'two words'), ("--name='q'", 'name', "'q'"), ('--name=--lr=3', 'name', '--lr=3'),
    ('--name=x.py', 'name', 'x.py'),
])
def test_flags(box, flag, key, value):
    config, space = box.call(flag)
    assert config[key] == space[key] == value and type(config[key]) is type(space[key]) is type(value)
    assert config == DEFAULTS | {key: value}

@pytest.mark.parametrize('flag, wants', [
    ('--n_layer=1.5', 'an int'), ('--n_layer=true', 'an int'), ('--n_layer=True', 'an int'), ('--n_layer=', 'an int'),
    ('--n_layer=inf', 'an int'), ('--n_layer=nan', 'an int'), ('--n_layer=1e400', 'an int'),
    ('--n_layer=--5', 'an int'), ('--n_layer=None', 'an int'), ('--n_layer=4\n5', 'an int'),
    ('--n_layer=' + '9' * 5000, 'an int'),
    ('--lr=fast', 'a float'), ('--lr=', 'a float'), ('--lr=nan', 'a float'), ('--lr=True', 'a float'),
    ('--compile=yes', 'a bool (true or false)'), ('--compile=2', 'a bool'), ('--compile=', 'a bool'),
    ('--compile=None', 'a bool'),
])
def test_bad_values_in_flags(box, capsys, flag, wants):
    err = refused(box, capsys, flag)
    key = flag[2:].split('=')[0]
    assert ' '.join(flag.split()) in err and wants in err and f'--{key}={DEFAULTS[key]}' in err  # given, type, way out

@pytest.mark.parametrize('text, wants', [
    ('n_layer = 1.5', 'an int'), ('n_layer = True', 'an int'), ("n_layer = '4'", 'an int'),
    ('n_layer = None', 'an int'), ("lr = '1e-3'", 'a float'), ('lr = False', 'a float'), ('lr = [1]', 'a float'),
    ('lr = 10 ** 400', 'a float'),
    ('compile = 1', 'a bool'), ("compile = 'false'", 'a bool'), ('name = 3', 'a string'), ('name = None', 'a string'),
    ('def name(): pass', 'a string'), ('import math as lr', 'a float'),
])
def test_bad_values_in_files(box, capsys, text, wants):
    err = refused(box, capsys, box.file('bad.py', text + '\n'))
    assert 'config/bad.py' in err and wants in err and 'default' in err
    key = next(k for k in DEFAULTS if f' {k} takes' in err)
    assert f'{key} = {DEFAULTS[key]!r}' in err  # the way out, as one writes it in a file

def test_file_values_keep_the_type(box):
    config, _ = box.call(box.file('x.py', "lr = 1\nn_layer = 1e3\ncompile = False\nname = 'z'\n"))
    assert config == DEFAULTS | dict(lr=1.0, n_layer=1000, compile=False, name='z')
    assert type(config['lr']) is float and type(config['n_layer']) is int

@pytest.mark.parametrize('flag, near', [('--n_layr=3', 'n_layer'), ('--n-layer=3', 'n_layer'), ('--stepz=1', 'steps'),
                                        ('--zzz=1', None), ('--=1', None)])
def test_unknown_keys_in_flags(box, capsys, flag, near):
    err = refused(box, capsys, flag)
    assert f'unknown key {flag[2:].split("=")[0]!r} in {flag}' in err and '--help' in err
    named = err.split('nearest known key is ')[1].split()[0]
    assert named == near if near else named in DEFAULTS  # there is always a nearest one

def test_unknown_keys_in_files(box, capsys):
    err = refused(box, capsys, box.file('x.py', 'lr = 1e-3\nlearning_rate = 3\nstep = 4\n'))
    assert 'learning_rate' in err and 'config/x.py' in err
    err = refused(box, capsys, box.file('x.py', 'stepz = 4\n'))
    assert "unknown key 'stepz'" in err and 'nearest known key is steps' in err and 'stepz = 4' in err

@pytest.mark.parametrize('key', ['pi', 'i', 'last', 'PATCH', '_private', 'nothing', 'after', 'inner', 'config',
                                 '__file__'])
def test_what_is_no_key(box, capsys, key):
    assert f'unknown key {key!r}' in refused(box, capsys, f'--{key}=1')
    if key[0] != '_':
        assert f'unknown key {key!r}' in refused(box, capsys, box.file('x.py', f'{key} = 1\n'))

def test_files_before_flags_in_any_order(box):
    x = box.file('x.py', 'lr = 0.5\nwidth = 8\n')
    for args in ([x, '--lr=0.25'], ['--lr=0.25', x]):
        assert box.call(*args)[0] == DEFAULTS | dict(lr=.25, width=8)

def test_files_in_their_order_and_last_flag_wins(box):
    x, y = box.file('x.py', 'lr = 0.5\nwidth = 8\n'), box.file('y.py', 'lr = 0.25\nlr_min = lr / 5\nn_head = width\n')
    assert box.call(x, y)[0] == DEFAULTS | dict(lr=.25, lr_min=.05, width=8, n_head=8)  # y sees what x has set
    assert box.call(y, x)[0] == DEFAULTS | dict(lr=.5, lr_min=.05, width=8, n_head=64)
    assert box.call('--width=1', '--width=2')[0]['width'] == 2

def test_file_sees_defaults_not_flags_nor_the_script(box, capsys):
    x = box.file('x.py', 'lr_min = lr / 10\n')
    assert box.call('--lr=1', x)[0] == DEFAULTS | dict(lr=1.0, lr_min=6e-4 / 10)
    capsys.readouterr()
    assert 'NameError' in refused(box, capsys, box.file('y.py', 'lr = pi\n'))  # only keys are visible

def test_file_helpers_are_ignored(box):
    x = box.file('x.py', 'import math\nfrom os.path import join\nimport os.path as p\nclass C: pass\n'
                         'def f(): return 5\n_tmp = 3\nn_layer = f() + _tmp + int(math.sqrt(4))\n')
    config, space = box.call(x)
    assert config == DEFAULTS | dict(n_layer=10)
    assert not {'math', 'join', 'p', 'C', 'f', '_tmp', '__builtins__'} & set(space) and space['_private'] == 1

def test_nothing_is_applied_when_something_is_refused(box, capsys):
    space = dict(DEFAULTS, __file__=str(box.path / 'train.py'))
    before = dict(space)
    with pytest.raises(SystemExit):
        configure(space, argv=[box.file('x.py', 'lr = 1.0\n'), '--width=8', '--compile=maybe'])
    assert space == before and capsys.readouterr().out == ''

@pytest.mark.parametrize('text, line, says', [
    ('lr = 1\nwidth = = 3\n', 2, 'SyntaxError'), ('lr = 1\n\nwidth = depth\n', 3, "name 'depth' is not defined"),
    ('def f():\n    return 1 / 0\n\nlr = f()\n', 2, 'ZeroDivisionError'),
    ('import nosuchmodule_x\n', 1, 'nosuchmodule_x'), ("lr = 1\nraise ValueError('two\\nlines')\n", 2, 'two lines'),
    ('import json\nlr = json.loads("")\n', 2, 'JSON'),
    ('lr = (1,\n', 1, 'SyntaxError'), ('lr = 1\n\tlr = 2\n', 2, 'IndentationError'),
])
def test_broken_files(box, capsys, text, line, says):
    err = refused(box, capsys, box.file('x.py', text))
    assert f'config/x.py, line {line}: ' in err and says in err

def test_files_that_are_none(box, capsys):
    err = refused(box, capsys, 'config/nope.py')
    assert 'config/nope.py not found' in err and str(box.path) in err and 'path' in err
    (box.path / 'folder.py').mkdir()
    assert 'folder.py not found' in refused(box, capsys, 'folder.py')
    for word in ('config/x.yaml', 'lr=3', '0.1', 'lr'):
        err = refused(box, capsys, word)
        assert repr(word) in err and '--key=value' in err
    (box.path / 'config' / 'binary.py').write_bytes(b'lr = 1\n\xff\xfe\x00')
    assert 'config/binary.py' in refused(box, capsys, 'config/binary.py')

@pytest.mark.parametrize('flag, way', [('--compile', '--compile=value'), ('-compile=1', '--compile=value'),
                                       ('--', '--key=value'), ('-', '--key=value')])
def test_flags_without_value(box, capsys, flag, way):
    err = refused(box, capsys, flag)
    assert repr(flag) in err and way in err

def test_errors_by_subprocess_have_no_traceback(box):
    x, y = box.file('x.py', 'lr = = 1\n'), box.file('y.py', 'foo = 1\n')
    for args in (['--lr=x'], ['--lrr=1'], ['nope.py'], [x], [y]):
        done = box.run(*args)
        assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1, (args, done)

def test_config_by_the_script_when_run_from_elsewhere(box, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    box.file('x.py', 'width = 11\n')
    done = box.run('config/x.py', cwd=elsewhere)
    assert done.returncode == 0 and 'overriding width = 11 ' in done.stdout, done.stderr
    (elsewhere / 'config').mkdir()
    (elsewhere / 'config' / 'x.py').write_text('width = 22\n')  # the one from here goes first
    assert 'overriding width = 22 ' in box.run('config/x.py', cwd=elsewhere).stdout
    assert 'overriding width = 11 ' in box.run(str(box.path / 'config' / 'x.py'), cwd=elsewhere).stdout
    err = box.run('config/y.py', cwd=elsewhere).stderr
    assert str(elsewhere) in err and str(box.path) in err
    relative = os.path.relpath(box.path / 'train.py', elsewhere)
    done = subprocess.run([sys.executable, relative, '--width=5'], cwd=elsewhere, capture_output=True, text=True)
    assert 'overriding width = 5 ' in done.stdout, done.stderr

def test_prepare_script_with_a_guard(tmp_path):
    """As in data/NAME/prepare.py: configure is called below functions, under the main guard, two folders down."""
    (tmp_path / 'data' / 'toy').mkdir(parents=True)
    prepare = tmp_path / 'data' / 'toy' / 'prepare.py'
    prepare.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom configurator import configure\n"
                       "n_docs = 10  # documents\nout = ''  # folder\nCOLOURS = 3\n\ndef make(n=2):\n    m = n\n"
                       "    return m\n\nif __name__ == '__main__':\n    configure(globals())\n    n_done = 3\n"
                       "    print(n_docs, [out])\n")

    def run(*args):
        return subprocess.run([sys.executable, str(prepare), *args], capture_output=True, text=True, cwd=tmp_path)

    assert run('--n_docs=3', '--out=q').stdout.splitlines()[-1] == "3 ['q']"
    assert run().stdout == "10 ['']\n"
    assert run('--COLOURS=1').returncode == run('--m=1').returncode == run('--n_done=1').returncode == 2
    helped = run('--help').stdout
    assert '--n_docs=10' in helped and '# documents' in helped and 'COLOURS' not in helped and 'n_done' not in helped

def test_only_rank_0_speaks_but_all_are_set(box):
    for rank, speaks in (('0', True), ('', True), ('1', False), ('7', False)):
        done = box.run('--width=5', RANK=rank)
        assert ('overriding' in done.stdout) == speaks and '"width": 5' in done.stdout, (rank, done)
        done = box.run('--help', RANK=rank)
        assert done.returncode == 0 and bool(done.stdout) == speaks, (rank, done)

def test_echo_only_of_what_differs(box, capsys):
    box.call('--width=64', '--lr=6e-4', '--name=ééé # b', box.file('x.py', 'steps = 1000\n'))
    assert capsys.readouterr().out == ''
    box.call('--width=65', box.file('x.py', 'width = 66\n'))
    assert capsys.readouterr().out == 'overriding width = 65 (default 64)\n'

def test_help(box):
    done = box.run('--help')
    assert done.returncode == 0 and done.stderr == '' and 'JSON' not in done.stdout
    lines = [' '.join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == 'usage: python train.py [config/x.py ...] [--key=value ...]'
    assert lines[1:4] == ['A script of the test.', '', '$ python train.py config/x.py']
    assert [line for line in lines[4:] if line] == [
        '# the model', '--n_layer=4 # depth and heads', '--n_head=2 # depth and heads',
        '# width of the', '# residual stream', '--width=64',
        '# the training', "--lr=0.0006 # peak rate, of 'muon' \u00e9", '--lr_min=6e-05',
        '--steps=1000 # optimizer steps', '--name=ééé # b # of the run', '--compile=True', '--device=cpu # or cuda']

def test_help_goes_before_everything(box):
    """--help answers whatever else stands on the line, and changes nothing."""
    for args in (['--nonsense=1', '--help'], ['-h'], ['--help', 'nope.py'], ['--lr=x', '-h']):
        done = box.run(*args)
        assert done.returncode == 0 and done.stdout.startswith('usage: ') and '--lr=0.0006' in done.stdout, (args, done)

def test_argv_defaults_to_the_command_line(box, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', '--width=9'])
    space = dict(DEFAULTS, __file__=str(box.path / 'train.py'))
    assert configure(space)['width'] == space['width'] == 9

def test_the_returned_dict_is_a_copy_fit_for_a_checkpoint(box):
    import json
    config, space = box.call('--lr=0.1', '--compile=false')
    assert json.loads(json.dumps(config)) == config == DEFAULTS | dict(lr=.1, compile=False)
    space['lr'] = 3.
    assert config['lr'] == .1

def test_a_script_that_calls_it_by_another_name(tmp_path):
    (tmp_path / 'fork.py').write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport configurator as c\nwidth = 2  # of it\n"
                                      "getattr(c, 'config' + 'ure')(globals())\nprint(width)\n")
    r = subprocess.run([sys.executable, 'fork.py', '--width=3'], cwd=tmp_path, capture_output=True, text=True)
    assert (r.returncode, r.stdout.split('\n')[-2], r.stderr) == (0, '3', '')


def test_budget():
    lines = (ROOT / 'configurator.py').read_text().splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 120
