"""
RL of the orchestrator (data/merge): it reads what 8 agents of its own warm start reported on problems of `twice`, and is rewarded for the
right answer. It learns whom to believe: most reports are guesses, and the most frequent answer is wrong.

    python train.py config/sft_twice.py                 first
    python data/merge/prepare.py                        their reports, frozen
    python rl.py config/rl_merge.py
    python tests/bench/contemplate.py --out_dir=out-rl-merge

One seed, 6 minutes of RL beside other jobs after 5 minutes of warm start and 2.4 for the reports, of one core: pass@1 on held-out reports
0.249 to 0.693, with 4 reports, which RL never sees, to 0.446. Greedy and with agents that work anew (the bench, 200 problems): 8 agents
48.0 to 71.5%, where the majority is right in 15.0% and the self-verified vote in 71.0%; 16 agents 43.0 to 78.5% (vote 88.5). After 40 steps
it has 0.598, and 8 agents 64.0, with two other seeds 60.5 and 58.0%. From two earlier warm starts 40 were enough: 69.5 and 71.0% of 8, 91.0
and 88.0% of 16. Why this one begins lower has not been found out.
"""
init_from = 'out-sft-twice'
out_dir = 'out-rl-merge'
task = 'merge'
levels = '8'
harder = '4'
max_new = 8
budget = True
block_size = 192
prompts = 32
group = 16
rounds = 1
max_steps = 240
lr = 3e-4
eval_every = 40
eval_samples = 16
