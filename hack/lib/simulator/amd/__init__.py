"""Simulated AMD GPUs: a `libamd_smi.so`, and the sysfs, KFD and DRM tree of amdgpu, both drawn from one state.

The verbs of nodes are those for NVIDIA's GPUs too: a profile such as `h100x2+mi300xx4` names both vendors' models.
"""

from simulator.amd.verbs import VERBS

__all__ = ["VERBS"]
