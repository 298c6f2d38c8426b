"""
RL on `signs`: thoughts grow, are compressed, and grow again. First 3 digits: more attempts solve more. When most are solved, what a right
answer cost is taken off its reward: thoughts leave out what need not be said. Then 5 digits come in, which that way of thinking is not
enough for.

    python data/signs/prepare.py --brief=0.15; python train.py config/sft_signs.py         first: most thoughts say every sum in full
    python rl.py config/rl_phases.py             --lam=0 --out_dir=out-rl-control: the control
    python tests/bench/rl.py --phases=true       both, the phases detected, plotted

Right answers, mean of both levels, take 28.7 tokens at first, 46.4 at step 20, 19.4 at step 140, 33.9 at step 180; pass@1 of 3 digits 0.60,
0.96, 0.99, 1.00, of 5 digits, trained on from step 140 on, 0.28, 0.55, 0.17, 0.85: what was compressed for 3 digits does not do for 5. The
control has 28.7, 46.9, 43.7, 43.6 tokens, 0.60, 0.97, 1.00, 1.00 of 3 digits and 0.28, 0.58, 0.53, 0.66 of 5: thinking that costs ends up
shorter and right more often. Another seed: 27.1, 46.3, 29.2, 32.9 tokens (1.13 times in the third phase), 5 digits 0.28, 0.55, 0.62, 0.84.

What the third phase hangs on is that the second takes something away from the later level. 5 digits from step 100 on: 1.53 times with the
first seed, 1.08 with the second. 6 digits from step 100 on: the first seed does not come back (0.25 of them at the end), the second 1.21
times; with lam 0.6 nothing is lost before and nothing grows after (36.2, 35.7 tokens). 4 digits, max_new 96: 1.05 times, since they are
solved by then. Lower rates of learning and longer ramps were not tried.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-phases'
task = 'signs'
levels = '3'
harder = '5'
more = '5'
more_at = 140
max_new = 160
block_size = 192
budget = True
lam = 0.9
lam_from = 0.8
lam_ramp = 20
len_ref = 64
p_lo = 0.3
p_hi = 0.8
prompts = 8
max_steps = 220
lr = 4e-4
eval_every = 20
eval_problems = 32
last_problems = 32
sample_rows = 1024
