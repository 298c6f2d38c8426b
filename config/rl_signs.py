"""
RL on `signs` with 7 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 8 digits, which RL never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
    python tests/bench/rl.py                     both, and how straight the curves are

One seed, 80 steps, 4 minutes of one core after 3.5 for the warm start; 256 held-out problems: pass@1 0.123 to 0.309, pass@16 0.804 to
0.964, 8 digits 0.098 to 0.254; against ln tokens R^2 0.968, 0.780, 0.935; the line through the first 60% is wrong by 1.4, 2.1, 2.7 points
at most on the rest. More seeds have not been run.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '7'
harder = '8'
max_new = 160
block_size = 192
budget = True              # thoughts that do not end in time have failed
prompts = 8
rounds = 1                 # few groups teach nothing, and another round takes as long as the longest of them
max_steps = 80
lr = 3e-4
lr_hold = 8                # then 1 / step: with a constant rate most is won in the first 20 steps, and the curve bends
eval_every = 10
eval_problems = 48
