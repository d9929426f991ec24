"""Operations over lists of tensors, which ``torch.optim`` and ``clip_grad_norm_`` use under these private names.

Each does to every tensor, bit for bit, what the method of a tensor does; names that end in "_" write in place.
"""

import torch

add_ = torch._foreach_add_
addcdiv_ = torch._foreach_addcdiv_
addcmul_ = torch._foreach_addcmul_
copy_ = torch._foreach_copy_
div_ = torch._foreach_div_
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
norm = torch._foreach_norm
