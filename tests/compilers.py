"""Whether this machine can compile what inductor generates."""

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler


def _has_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except Exception:  # inductor has an error of its own in every version
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler present")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device present")
