"""Time, memory and kernels: scripts/benchmark.py, and scripts/gpu-check.sh around it."""
