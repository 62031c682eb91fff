"""Importing this makes the exports of a test process quicker; what they write stays the same.

For each export PyTorch asks onnxscript for its operators, which parses the source of all their
functions: half the time of a small network. Here that is done once.
"""

import functools

from onnxscript._framework_apis import torch_2_11 as framework

framework.get_torchlib_ops = functools.cache(framework.get_torchlib_ops)
