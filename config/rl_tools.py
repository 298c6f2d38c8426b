"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. In the warm start some of the answers
are guesses or come too early: RL learns to ask, and to ask until the end.

    python train.py config/sft_tools.py          first; its second line for spawn and point
    python rl.py config/rl_tools.py --task=pytool --max_steps=20 --out_dir=out-rl-pytool
    python rl.py config/rl_tools.py --task=lookup --levels=2+3 --harder=4 --out_dir=out-rl-lookup
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek

One seed, 20 to 30 steps: 0.7, 1.8 and 0.7 minutes of one core, with 128 held-out problems before and after, 16 answers of each. pass@1 of
the warm start and then, on the levels that were trained on, held out: pytool 0.543 to 0.889, lookup 0.269 to 0.942, peek 0.535 to 0.918.
A level harder: pytool 5 digits 0.483 to 0.807; peek 3 digits 0.469 to 0.665; lookup 4 links 0.000 to 0.005: the warm start never saw more
than 3, and looks for another name. Where every answer is the same few calls, entropy falls, and its alarm sounds. More seeds have not been run.
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
