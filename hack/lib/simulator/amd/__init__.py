"""Simulated AMD GPUs: a `libamd_smi.so`, and the sysfs, KFD and DRM tree of amdgpu, both drawn from one state."""
