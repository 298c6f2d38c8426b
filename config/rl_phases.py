"""
RL on `signs`: thoughts grow, are compressed, and grow again. First 3 digits: more attempts solve more. When most are solved, what a right
answer cost is taken off its reward: thoughts leave out what need not be said. Then 4 digits come in, which that way of thinking is not
enough for.

    python data/signs/prepare.py --brief=0.15; python train.py config/sft_signs.py         first: most thoughts say every sum in full
    python rl.py config/rl_phases.py             --lam=0 --out_dir=out-rl-control: the control
    python tests/bench/rl.py --phases=true       both, the phases detected, plotted

One seed: right answers, mean of both levels, take 24.5 tokens at first, 39.4 at step 20, 30.5 at step 100, 31.9 at step 180; pass@1 of 3
digits 0.56, 0.88, 0.94, 0.96, of 4 digits, trained on from step 140 on, 0.31, 0.48, 0.63, 0.74. The control has 24.5, 39.7, 35.0, 33.2
tokens, 0.56, 0.88, 0.96, 0.97 of 3 digits and 0.31, 0.48, 0.66, 0.74 of 4. So the third phase is missing (1.05 times; 1.1 was the aim):
what is short enough is solved more often, so that the control compresses, too, and by step 140 4 digits are solved as well as they will be.
It hangs on the warm start: of 1500 steps one led to 40.7, 29.0 and 33.3 tokens, another to 40.2, 37.5 and 40.5. 4.8 minutes of one core for
the warm start, 2.7 for the control.

What failed: 5 digits from step 100 on, with this warm start: 43.3, 33.5, 35.4 tokens. With earlier ones: the second part from step 80 on:
nothing was compressed yet; from step 180 on: skill falls to 0.87 before it and stays there. 5 digits instead of 4: right answers to those
do not become shorter (41.2 at the peak, 35.6 at the trough). Twice the prompts, lr 6e-4 and len_ref 48: skill falls to 0.90 in 30 steps,
and nothing is compressed by then.
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
