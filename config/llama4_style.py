"""
After config/llama_dense.py: the baseline in the manner of Llama 4. Behind the first layer every token goes to a shared expert and to the
one of 8 experts whose sigmoid score is highest (top-1; the gate is the score).

    python train.py config/llama_dense.py config/llama4_style.py

As many operations per token as the dense one, at 1.2 (EPYC, float32) to twice (Sapphire Rapids, bfloat16) its CPU-seconds: eight small
products in place of a large one. Tuned like it:

    width  context  batch   1.25e-3  2.5e-3    5e-3    CPU-seconds
       96      256   1024    1.5531  1.4416  1.4223    116 to 135
       96      256    512    1.4527  1.4036  1.4360    122 to 137
       64      256    512         -  1.3378  1.3272    186 to 196

and then the shorter context that is better for the dense one, untried here, as are a smaller width, batch or a higher rate.
"""
out_dir = 'out-llama4-style'
n_expert = 8
top_k = 1
expert_ff = 96
shared_ff = 96
