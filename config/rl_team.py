"""
RL of the agents (data/team): 8 with roles search on a problem of `twice`, each is paid half for its own report and half for what it adds to
the orchestrator's answer, which is that of the same model and is not learned from.

    python train.py config/sft_twice.py                 first
    python data/merge/prepare.py
    python rl.py config/rl_merge.py                     an orchestrator that knows whom to believe
    python rl.py config/rl_team.py
    python tests/bench/contemplate.py --out_dir=out-rl-team

Nothing was won, in one seed: 16.0% of the agents are right in time before, 17.4% after 40 steps and 16.4% after 60; merged 70.5% of 8,
91.5% of 16 (the bench, --seed=1), which is what rl_merge.py had after 40 steps. With lr=1e-3 they unlearn arithmetic (99.8 to 33% of the
steps are right). They draw signs at random, as their examples did; to skip what was tried already would be worth more, and 60 steps do not
find it.
"""
init_from = 'out-rl-merge'
out_dir = 'out-rl-team'
task = 'team'
levels = '6'
harder = ''
max_new = 75
budget = True
block_size = 192
prompts = 16
group = 8
rounds = 1
max_steps = 60
lr = 1e-4
eval_every = 20
eval_samples = 16
