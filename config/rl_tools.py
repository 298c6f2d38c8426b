"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. In the warm start some of the answers
are guesses or come too early: RL learns to ask, and to ask until the end.

    python train.py config/sft_tools.py          first; its further lines for point and spawn
    python rl.py config/rl_tools.py --task=pytool --max_steps=20 --out_dir=out-rl-pytool
    python rl.py config/rl_tools.py --task=lookup --levels=2+3 --harder=4 --out_dir=out-rl-lookup
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek
    python rl.py config/rl_tools.py --task=point --levels=2+3 --harder=4 --out_dir=out-rl-point --init_from=out-sft-point --min_skill=0
    python rl.py config/rl_tools.py --task=spawn --levels=2+3 --harder= --out_dir=out-rl-spawn --init_from=out-sft-spawn \\
        --rounds=1 --eval_samples=4 --max_steps=60
    ... --tools=False --max_steps=0              calls stay without an answer

pass@1 on 128 held-out problems before and after, 16 answers of each (4 of spawn; half as many without the tool), one seed, 0.2 to 2.6
minutes of one core:

              warm start   RL      without the tool             one level harder, never trained on
    pytool    0.543        0.889   0.000, its floor 0           0.483 to 0.807
    lookup    0.269        0.942   0.001, its floor 1/900       0.000 to 0.005: the warm start never saw 4 links
    peek      0.535        0.918   0.043, its floor 1/10        0.469 to 0.665
    spawn     0.637        0.873   0.000, its floor 0           not run
    point     0.318        0.399   (always in the middle 0.14)  0.199 to 0.275

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
