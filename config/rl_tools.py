"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. In the warm start some of the answers
are guesses or come too early: RL learns to ask, and to ask until the end.

    python train.py config/sft_tools.py          first; its second line for spawn and point
    python rl.py config/rl_tools.py --task=pytool --max_steps=20 --out_dir=out-rl-pytool
    python rl.py config/rl_tools.py --task=lookup --levels=2+3 --harder=4 --out_dir=out-rl-lookup
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek

FIGURES
"""
init_from = 'out-sft-tools'
out_dir = 'out-rl-tools'
task = 'pytool'
levels = '3+4'
harder = '5'
block_size = 384
max_new = 160
budget = True
prompts = 8
max_steps = 30
lr = 2e-4
eval_every = 0
last_problems = 128
eval_samples = 16
min_skill = 0.8
