"""
RL on `signs` with 5 and 8 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 9 digits, which only the warm start has seen, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
    python tests/bench/rl.py                     both, and how straight the curves are

Three seeds from one warm start, 7.1 minutes of one core each after 4.8 for the warm start; 256 held-out problems in every evaluation:
pass@1 0.158 to 0.384, 0.165 to 0.376, 0.169 to 0.383; pass@16 0.838 to 0.966, 0.849 to 0.948, 0.859 to 0.957; 9 digits 0.083 to 0.172,
0.088 to 0.172, 0.084 to 0.170. Against ln tokens R^2 is 0.995 to 0.997, 0.951 to 0.972, 0.982 to 0.996; the line through the first 60% is
wrong by 1.8, 2.1, 0.9 points at most on the rest.
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
max_steps = 80
lr = 1.5e-4
lr_hold = 8                # then 1 / step: with a constant rate most is won in the first 20 steps, and the curve bends
eval_every = 8             # 8, 11, 16, 22, 31, 43, 60, 80
eval_growth = 1.4
eval_problems = 256
