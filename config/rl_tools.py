"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. In the warm start some of the answers
are guesses or come too early: RL learns to ask, and to ask until the end.

    python train.py config/sft_tools.py          first; its further lines for point and spawn
    python rl.py config/rl_tools.py --task=pytool --max_steps=20 --out_dir=out-rl-pytool
    python rl.py config/rl_tools.py --task=lookup --levels=2+3 --harder=4 --out_dir=out-rl-lookup
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek
    python rl.py config/rl_tools.py --task=point --levels=2+3 --harder=4 --out_dir=out-rl-point --init_from=out-sft-point --min_skill=0 \\
        --max_steps=300 --lr=5e-4
    python rl.py config/rl_tools.py --task=spawn --levels=2+3 --harder= --out_dir=out-rl-spawn --init_from=out-sft-spawn \\
        --rounds=1 --eval_samples=4 --max_steps=60
    ... --tools=False --max_steps=0              calls stay without an answer

pass@1 on 128 held-out problems before and after, 16 answers of each (4 of spawn; half as many without the tool), one seed, warm start
and all in one go:

              warm start   RL      without the tool             one level harder, never trained on
    pytool    0.538        0.893   0.000, its floor 0           0.470 to 0.833
    lookup    0.262        0.898   0.001, its floor 1/900       0.000 to 0.000: the warm start never saw 4 links
    peek      0.531        0.877   0.044, its floor 1/10        0.447 to 0.678
    spawn     0.584        0.846   0.000, its floor 0           not run
    point     0.353        0.584   (always in the middle 0.14)  0.193 to 0.344; after 30 steps with the others' lr 0.419

The agents of spawn are not learned from, and share the weights: from a warm start that asked in half of its documents (0.311), calls came
with lr=4e-4 while the agents' sums got worse (0.98 to 0.81), so that nothing was won; with 1e-4 and 24 steps 0.398.
Floors: the numbers of lookup and the digits of peek are drawn at random and nothing else shows them; without the tool it also loses the
answers in which it calls. pytool and spawn ask for what could be worked out in the head, but not by this model. Where every answer is the
same few calls entropy falls, and its alarm sounds. More seeds have not been run.
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
