"""
RL on a task whose answers take a tool: pytool, lookup, peek, spawn; or on point, which takes none. In the warm start some of the answers
are guesses or come too early: RL learns to ask, and to ask until the end.

    python train.py config/sft_tools.py          first; its further lines for point and spawn
    python rl.py config/rl_tools.py --task=pytool --max_steps=20 --out_dir=out-rl-pytool
    python rl.py config/rl_tools.py --task=lookup --levels=2+3 --harder=4 --out_dir=out-rl-lookup
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3 --out_dir=out-rl-peek
    python rl.py config/rl_tools.py --task=point --levels=2+3 --harder=4 --out_dir=out-rl-point --init_from=out-sft-point --min_skill=0 \\
        --max_steps=300 --lr=5e-4
    python rl.py config/rl_tools.py --task=spawn --levels=1+2+3 --harder= --out_dir=out-rl-spawn --init_from=out-sft-spawn \\
        --rounds=1 --eval_samples=4 --max_steps=60
    ... --tools=False --max_steps=0              calls stay without an answer

pass@1 on 128 held-out problems before and after, 16 answers of each (4 of spawn; half as many without the tool), one seed, warm start
and all in one go:

              warm start   RL      without the tool             one level harder, never trained on
    pytool    0.507        0.886   0.000, its floor 0           0.489 to 0.876
    lookup    0.254        0.855   0.002, its floor 1/900       0.000 to 0.000: the warm start never saw 4 links
    peek      0.535        0.855   0.047, its floor 1/10        0.450 to 0.642
    spawn     0.598        0.826   0.000, its floor 0           not run; of 2 and 3 sums (--levels=2+3 --max_steps=0), of all
                                                              0.615 to 0.850, another seed of RL 0.643 to 0.883
    point     0.334        0.493   (always in the middle 0.14)  0.179 to 0.385

The agents of spawn are not learned from, and share the weights: their sums get worse while calls come. With level 1, a single sum, which
is what an agent is asked, among what is trained on, they lose less: 93.4% of single sums are right after 60 steps, 85.5% without, where
rewards rose to 0.85 and fell to 0.5 within 10 steps (0.547, 0.648 at the end; at lr=1e-4 0.730, 0.752). Why it helps is a guess.
Floors: the numbers of lookup and the digits of peek are drawn at random and nothing else shows them; without the tool it also loses the
answers in which it calls. pytool and spawn ask for what could be worked out in the head, but not by this model. Where every answer is the
same few calls entropy falls, and its alarm sounds. More seeds have not been run of the others.
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
