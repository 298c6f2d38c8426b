"""
RL on `signs`: thoughts grow, are compressed, and grow again. First 3 digits: more attempts solve more. When most are solved, what a right
answer cost is taken off its reward: thoughts leave out what need not be said. Then 5 digits come in, which that way of thinking is not
enough for.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_phases.py             --lam=0 --out_dir=out-rl-control: the control
    python tests/bench/rl.py --phases=true       both, the phases detected, plotted
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-phases'
task = 'signs'
levels = '3'
harder = '5'
more = '5'
more_at = 80
budget = True
lam = 0.6
lam_from = 0.75
lam_ramp = 10
len_ref = 24
p_lo = 0.3
p_hi = 0.8
prompts = 8
max_steps = 120
lr = 5e-4
eval_every = 10
eval_problems = 32
last_problems = 32
