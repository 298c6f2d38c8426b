"""
RL on `signs` with 4 to 6 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 7 digits, which RL never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '4+5+6'
harder = '7'
budget = True              # thoughts that do not end in time have failed
prompts = 8
max_steps = 80
lr = 2e-4
eval_every = 10
eval_problems = 48
