# shellcheck shell=bash
# Sourced: the environment of a process by its ACCELERATOR, gpu, tpu or cpu. Ours come
# first, so that what the user set already wins. Only that of CPUs was measured with this
# program; tests hold the names to what is installed.

case ${ACCELERATOR:-} in
  gpu)
    # Collectives run beside kernels that do not wait for them. NVIDIA's JAX images set it:
    # docs.nvidia.com/jax-toolbox/environment-variables
    XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
    export XLA_FLAGS
    # JAX takes 75 % of a GPU's memory by default; large batches want the rest. More than
    # 90 % leaves too little for NCCL and cuDNN:
    # docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
    ;;
  tpu)
    # The gradient's all-reduce runs beside the backward pass; suggested, and off by
    # default: github.com/openxla/xla, docs/flags_guidance.md, "v5e/Async".
    LIBTPU_INIT_ARGS="--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
    export LIBTPU_INIT_ARGS
    ;;
  cpu)
    # XLA maps its buffers anew at every step; glibc 2.35 can do that in pages of 2 MiB
    # instead of 4 KiB: docs/scaling.md, "Pages".
    export GLIBC_TUNABLES="glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"
    ;;
  *)
    printf 'Error: ACCELERATOR must be gpu, tpu or cpu, got "%s".\n' "${ACCELERATOR:-}" >&2
    exit 2
    ;;
esac
# Lines of a log appear when they are written, not when a buffer is full.
export PYTHONUNBUFFERED=1
