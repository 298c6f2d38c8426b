"""
A representative part of tests/reshard.py and tests/chaos.py: layouts with dp, tp, pp, sp, ep, ZeRO 0, 1, 3 into one another; two deaths, a
stop, an error of the disk and a damaged checkpoint on two and four processes. The scripts, without arguments, run more of it.
"""
import json
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

def last_line(script, *flags):
    """Runs a script of tests/ -> the JSON of its last line; what it says is shown if it fails."""
    r = subprocess.run([sys.executable, str(TESTS / script), *flags], capture_output=True, text=True, timeout=1800)
    lines = r.stdout.splitlines()
    assert lines and lines[-1].startswith('{'), r.stderr[-2000:]
    got = json.loads(lines[-1])
    assert r.returncode == (0 if got['ok'] else 1)       # the status agrees with what it says
    assert got['ok'], '\n'.join(line for line in lines if 'LOST' in line or 'FAILED' in line or ' to ' in line)[-3000:] + r.stderr[-500:]
    return got

def test_any_layout_loads_the_checkpoint_of_any_other():
    """Masters, moments, balancing bias and counters bit-equal, the next losses too; dense with AdamW, MoE with Muon."""
    got = last_line('reshard.py', '--part=few')
    assert got['pairs'] == 13 and got['worst']['float32'] <= 1e-6 and got['worst']['float64'] <= 1e-10

def test_runs_that_are_hurt_end_as_if_nothing_had_happened():
    """Each ends with the bits of the run that nobody hurt, from the newest whole checkpoint on."""
    got = last_line('chaos.py', '--part=few')
    assert got['injected'] == got['survived'] >= 5

