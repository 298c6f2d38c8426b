"""
RL on `signs`: thoughts grow, are compressed, and grow again. First 3 digits: more attempts solve more. When most are solved, what a right
answer cost is taken off its reward: thoughts leave out what need not be said. Then 5 digits come in, which that way of thinking is not
enough for.

    python data/signs/prepare.py --brief=0.15; python train.py config/sft_signs.py         first: most thoughts say every sum in full
    python rl.py config/rl_phases.py             --lam=0 --out_dir=out-rl-control: the control
    python tests/bench/rl.py --phases=true       both, the phases detected, plotted

One seed, without the control, from a warm start that had seen held-out problems by mistake: right answers, mean of both levels, take 25.7
tokens at first, 42.6 at step 20, 30.9 at step 80, 35.7 at step 100; pass@1 of 3 digits 0.55, 0.86, 0.93, 0.98, of 5 digits, trained on
from step 80 on, 0.21, 0.35, 0.28, 0.49. Of all rollouts the third rise does not show (48.3 tokens at step 80, 46.6 at step 100): half of
those with 5 digits end at max_new throughout. With --brief=0.5 the brief way wins while thoughts still grow, and the penalty finds nothing
more to take off.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-phases'
task = 'signs'
levels = '3'
harder = '5'
more = '5'
more_at = 80
budget = True
lam = 0.9
lam_from = 0.8
lam_ramp = 20
len_ref = 64
p_lo = 0.3
p_hi = 0.8
prompts = 8
max_steps = 110
lr = 4e-4
eval_every = 10
eval_problems = 32
last_problems = 32
