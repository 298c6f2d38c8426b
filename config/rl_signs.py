"""
RL on `signs` with 5 and 8 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 9 digits, which only the warm start has seen, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
    python tests/bench/rl.py                     both, and how straight the curves are

Three seeds from one warm start, 9 minutes of one core each after 7 for the warm start; 256 held-out problems in every evaluation: pass@1
0.182 to 0.414, 0.186 to 0.416, 0.191 to 0.406; pass@16 0.867 to 0.970, 0.865 to 0.966, 0.883 to 0.971; 9 digits 0.095 to 0.194, 0.102 to
0.196, 0.099 to 0.194. Against ln tokens R^2 is 0.997 to 1.000, 0.944 to 0.995, 0.993 to 0.999; the line through the first 60% is wrong by
1.2, 2.8, 1.1 points at most on the rest. After 60 steps pass@1 is up by 19.4 to 21.2 points.
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
