"""
One step of RL beside TRL's GRPOTrainer (pip install trl transformers): sampling and update, the same model size (a Llama of 3 layers x 64
and a vocabulary of 360), group of 8, prompt length and completion length, float32 on CPU; in turn, in processes of their own.

    python tests/bench/trl.py                        16 rollouts of 32 tokens and 64 of 128; about 3 minutes
    python tests/bench/trl.py --path=DIR             DIR: where trl and transformers are, if not installed (pip install --target);
                                                     A:B, where in two folders

Ours is rl.py in a copy of the tree, with two changes: the task rewards every second rollout, so that no group is dropped, and what was
truncated counts as an answer; TRL has both, too. Seconds are of CPU, on one thread: what they would be on a core of one's own, whatever
else the machine does. Of each side the best step counts, the first two are left out. Target: at most half of TRL's.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)                # instead of this folder, whose trl.py is not the package
from configurator import configure

path = ''       # a folder with trl and what it needs; '': installed
turns = 2
steps = 8       # of a turn
side = ''       # trl: this is the process in which TRL runs
rows = 16       # of that one
new = 32
configure(globals())
GROUP, PROMPT = 8, 12


def trl():
    """GRPOTrainer on random weights -> CPU seconds of every step, as JSON on the last line."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    vocabulary = {c: i for i, c in enumerate(['<pad>', '<eot>', '<unk>'] + [chr(33 + i) for i in range(357)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Split(Regex('.'), 'isolated')
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', eos_token='<eot>', unk_token='<unk>',
                                        padding_side='left')
    model = LlamaForCausalLM(LlamaConfig(vocab_size=360, hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4,
                                         num_key_value_heads=4, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
                                         bos_token_id=None))
    took = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            took.append(-time.process_time())

        def on_step_end(self, *_, **__):
            took[-1] += time.process_time()
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(output_dir=out, per_device_train_batch_size=rows, num_generations=GROUP, max_completion_length=new,
                          max_steps=steps, temperature=1.0, beta=0.0, use_cpu=True, bf16=False, report_to=[], save_strategy='no',
                          logging_steps=10 ** 6, learning_rate=1e-4,
                          gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False)
        table = InMemoryTable.from_pydict(dict(prompt=[f'{i:0{PROMPT - 1}d}=' for i in range(4096)]))
        prompts = Dataset(table, fingerprint='prompts')        # named, since not every pyarrow can be hashed
        trainer = GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [i % 2.0 for i in range(len(completions))], args=args,
                              train_dataset=prompts, processing_class=tokenizer, callbacks=[Clock()])
        trainer.train()
        if not took or max(took) <= 0:
            sys.exit('the clock did not run')
    print(json.dumps(took))                                    # generation is part of a step


def run(args, cwd, **env):
    r = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', **env})
    if r.returncode:
        sys.exit(f'{" ".join(args)}\n{r.stdout[-2000:]}{r.stderr[-3000:]}')
    return r.stdout


if side == 'trl':
    trl()
    sys.exit()

TASK = '''import hashlib
from itertools import count
NAME, LEVELS = 'noise', range(1, 2)
def problem(seed, level, split='train'):
    return dict(task=NAME, level=level, question=f'{int(hashlib.sha256(str(seed).encode()).hexdigest(), 16) % 10 ** 11:011d}=')
canary = lambda seed, level: problem(seed, level)
first, second = count(), count()
verify, judge = lambda p, answer: next(first) % 2.0, lambda p, answer: next(second) % 2.0
steps = lambda p, thought: (1, 1)
'''
found = subprocess.run([sys.executable, '-c', 'import trl'], env={**os.environ, 'PYTHONPATH': path}, capture_output=True).returncode == 0
if not found:
    print(f'no trl {"in " + path if path else "installed"}: pip install trl transformers, or --path=DIR; ours alone is measured')
results, ok = {}, found
with tempfile.TemporaryDirectory() as tmp:
    tree = Path(tmp) / 'tree'
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.git', 'out*', 'shards-*', '__pycache__'))
    (tree / 'data/noise').mkdir()
    (tree / 'data/noise/task.py').write_text(TASK)
    source = (tree / 'rl.py').read_text()
    done = "done=r.ids[-1] == codec.sp['eot']"
    assert source.count(done) == 1
    (tree / 'rl.py').write_text(source.replace(done, 'done=True').replace('time.time()', 'time.process_time()'))
    run(['data/signs/prepare.py', '--n_train=500', '--n_val=20'], tree)                    # a warm start that knows nothing
    run(['train.py', 'config/sft_signs.py', '--max_steps=1', '--act=swiglu', '--ff=176', '--qk_norm=False', '--softcap=0',
         '--out_dir=warm'], tree)
    for n, k in ((16, 32), (64, 128)):
        ours, theirs = [], []
        for turn in range(turns):
            out = f'out-{n}-{turn}'
            run(['rl.py', '--task=noise', '--levels=1', '--harder=', '--init_from=warm', f'--out_dir={out}', f'--prompts={n // GROUP}',
                 f'--group={GROUP}', f'--max_new={k}', f'--block_size={PROMPT + 4 + k}', f'--max_steps={steps}', '--rounds=1',
                 '--min_skill=0', '--eval_every=0', '--last_problems=1', '--eval_samples=1', '--save_every=0', f'--micro_rows={n}',
                 '--budget=True'], tree)
            rows_ = [json.loads(line) for line in open(tree / out / 'metrics.jsonl')]
            ours += [(r['sample_ms'] + r['train_ms']) / 1000 for r in rows_ if r.get('groups') == n // GROUP][2:]
            if found:
                said = run([__file__, '--side=trl', f'--rows={n}', f'--new={k}', f'--steps={steps}'], tree, PYTHONPATH=path)
                theirs += json.loads(said.splitlines()[-1])[2:]
        best = min(ours), min(theirs, default=float('nan'))
        print(f'{n:3d} x {k:3d} tokens: ours {1000 * best[0]:7.1f} ms per step, TRL {1000 * best[1]:7.1f}: {best[0] / best[1]:.2f}')
        results[f'{n}x{k}'] = dict(ours_s=round(best[0], 4), trl_s=round(best[1], 4) if found else None)
        ok = ok and best[0] <= 0.5 * best[1]
print(json.dumps(dict(bench='trl', ok=bool(ok), **results)))
sys.exit(not ok)
