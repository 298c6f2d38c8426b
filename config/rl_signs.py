"""
RL on `signs` with 3 to 5 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 6 digits, which RL never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '3+4+5'
harder = '6'
budget = True              # thoughts that do not end in time have failed
max_steps = 80
lr = 2e-4
eval_every = 10
eval_problems = 48
