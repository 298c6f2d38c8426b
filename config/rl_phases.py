"""
RL on `signs`: thoughts grow, are compressed, and grow again. First 3 digits: more attempts solve more. When most are solved, what a right
answer cost is taken off its reward: thoughts leave out what need not be said. Then 4 digits come in, which that way of thinking is not
enough for.

    python data/signs/prepare.py --brief=0.15; python train.py config/sft_signs.py         first: most thoughts say every sum in full
    python rl.py config/rl_phases.py             --lam=0 --out_dir=out-rl-control: the control
    python tests/bench/rl.py --phases=true       both, the phases detected, plotted

One seed: right answers, mean of both levels, take 23.4 tokens at first, 40.7 at step 20, 29.0 at step 140, 32.7 at step 180, 33.3 at the
end; pass@1 of 3 digits 0.51, 0.80, 0.93, 0.93, 0.94, of 4 digits, trained on from step 140 on, 0.24, 0.40, 0.29, 0.70, 0.65. Other seeds
have not been run, and it is not robust: brief thoughts are few at first, so that the penalty shows from step 100 on only.
The control has 23.4, 40.9, 41.9, 40.5, 40.5 tokens, 0.51, 0.80, 0.90, 0.89, 0.89 of 3 digits and 0.24, 0.40, 0.34, 0.52, 0.51 of 4: what is
short enough is solved more often. Of all rollouts the third rise does not show (43.3 tokens at step 140, 42.1 at the end), as fewer end at
max_new; and while thoughts of 3 digits shrink, 4 digits, not trained on then, lose 11 points. 3.3 minutes of one core for the warm start,
2.7 for the control.

What failed: with the second part from step 80 on nothing was compressed yet. With 5 digits instead of 4 the right answers to those do not
become shorter (41.2 at the peak, 35.6 at the trough), and with the second part from step 180 on skill falls to 0.87 before it and stays
there. Twice the prompts, lr 6e-4 and len_ref 48: skill falls to 0.90 in 30 steps, and nothing is compressed by then.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-phases'
task = 'signs'
levels = '3'
harder = '4'
more = '4'
more_at = 140
budget = True
lam = 0.9
lam_from = 0.8
lam_ramp = 20
len_ref = 64
p_lo = 0.3
p_hi = 0.8
prompts = 8
max_steps = 190
lr = 4e-4
eval_every = 20
eval_problems = 32
last_problems = 32
sample_rows = 1024
