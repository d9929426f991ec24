"""One thread per test process: the suite runs in parallel, and the small networks of the tests gain nothing by more."""

import torch

torch.set_num_threads(1)
