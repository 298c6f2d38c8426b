"""
After config/llama_dense.py: the baseline in the manner of Llama 4. Behind the first layer every token goes to a shared expert and to the
one of 8 experts whose sigmoid score is highest (top-1; the gate is the score).

    python train.py config/llama_dense.py config/llama4_style.py

As many operations per token as the dense one, at about twice its CPU-seconds: eight small products in place of a large one. Batch and
learning rate are those tuned for the dense one; **a grid of its own has not been run yet**.
"""
out_dir = 'out-llama4-style'
n_expert = 8
top_k = 1
expert_ff = 128
shared_ff = 128
