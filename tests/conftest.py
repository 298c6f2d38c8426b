"""Shared by all tests: the repository root on sys.path; one thread, so that results repeat and tests do not compete."""
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

def pytest_addoption(parser):
    parser.addoption('--threads', type=int, default=1, help='torch threads, in child processes too (default 1)')

def pytest_configure(config):
    threads = config.getoption('--threads')
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = str(threads)  # the scripts that tests start follow
    signal.signal(signal.SIGINT, signal.default_int_handler)       # a shell's background job ignores it, and so would those scripts
