"""Luna's operators fused into Triton kernels. Importing what is in here needs Triton; `..dispatch` asks first."""
