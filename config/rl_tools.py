"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. One warm start for all of them, in
which half of the answers are guesses.

    python train.py config/sft_tools.py          first
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek-floor --tools=False --max_steps=0

Floors, without the tool: lookup 1 in 900, peek 1 in 10 (the numbers and digits are drawn at random and nothing else shows them); pytool
and spawn ask for what can be worked out, so their floor is what the model can do in its head: measured by the last line. point: 0.14,
always in the middle. Not run yet.
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
max_steps = 60
lr = 2e-4
eval_every = 20
eval_problems = 48
min_skill = 0.8
