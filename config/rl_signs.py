"""
RL on `signs` with 5 and 8 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 9 digits, which only the warm start has seen, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
    python tests/bench/rl.py                     both, and how straight the curves are

Three seeds from one warm start, 7.7 minutes of one core each after 3.3 for the warm start; 256 held-out problems in every evaluation:
pass@1 0.176 to 0.442, 0.180 to 0.430, 0.184 to 0.430; pass@16 0.860 to 0.974, 0.873 to 0.968, 0.872 to 0.977; 9 digits 0.087 to 0.207,
0.097 to 0.197, 0.092 to 0.202. Against ln tokens R^2 is 0.997 to 1.000, 0.941 to 0.992, 0.992 to 0.996; the line through the first 60% is
wrong by 1.7, 2.0, 0.6 points at most on the rest.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '5+8'             # of one level, pass@16 is near 1 before pass@1 has gone far
harder = '9'
max_new = 160
block_size = 192
budget = True              # thoughts that do not end in time have failed
prompts = 16
rounds = 1                 # few groups teach nothing, and another round takes as long as the longest of them
sample_rows = 1024         # a fifth off the time of an evaluation
max_steps = 60
lr = 1.5e-4
lr_hold = 8                # then 1 / step: with a constant rate most is won in the first 20 steps, and the curve bends
eval_every = 8             # 8, 11, 16, 22, 31, 43, 60
eval_growth = 1.4
eval_problems = 256
