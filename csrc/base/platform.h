// All tests of the compiler and the target processor. Every macro here is always defined, and no
// other file uses the compiler's own macros.
#pragma once

#if defined(__FAST_MATH__)
#error "torchinit's bits depend on IEEE arithmetic: compile without -ffast-math (csrc/flags.txt)"
#endif

#if defined(__CUDACC__)
#define TORCHINIT_CUDA 1
#else
#define TORCHINIT_CUDA 0
#endif

// The architecture if this is nvcc's pass over device code; 0 on the host.
#if defined(__CUDA_ARCH__)
#define TORCHINIT_DEVICE_PASS 1
#define TORCHINIT_DEVICE_ARCHITECTURE __CUDA_ARCH__
#else
#define TORCHINIT_DEVICE_PASS 0
#define TORCHINIT_DEVICE_ARCHITECTURE 0
#endif

#if defined(__clang__)
#define TORCHINIT_CLANG 1
#else
#define TORCHINIT_CLANG 0
#endif

#if defined(__x86_64__)
#define TORCHINIT_X86 1
#else
#define TORCHINIT_X86 0
#endif

#if defined(__aarch64__)
#define TORCHINIT_ARM64 1
#else
#define TORCHINIT_ARM64 0
#endif

#if defined(__linux__)
#define TORCHINIT_LINUX 1
#else
#define TORCHINIT_LINUX 0
#endif

// TORCHINIT_INLINE: a function of the shared mathematics, readable by host and device compilers.
#if TORCHINIT_CUDA
#define TORCHINIT_INLINE __host__ __device__ __forceinline__
#else
#define TORCHINIT_INLINE inline __attribute__((always_inline))
#endif

// Marks a function template for host and device that may be called with functions of one side only.
#if TORCHINIT_CUDA
#define TORCHINIT_ANY_SIDE _Pragma("nv_exec_check_disable")
#else
#define TORCHINIT_ANY_SIDE
#endif

// A static member function evaluated by the compiler, on either side.
#if TORCHINIT_CUDA
#define TORCHINIT_CONSTEXPR __host__ __device__ static constexpr
#else
#define TORCHINIT_CONSTEXPR static constexpr
#endif

// Unrolls a loop with a small, fixed number of passes.
#if TORCHINIT_CUDA || TORCHINIT_CLANG
#define TORCHINIT_UNROLL _Pragma("unroll")
#else
#define TORCHINIT_UNROLL _Pragma("GCC unroll 32")
#endif
