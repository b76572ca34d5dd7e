// Compiler tests in one place: every macro here is always defined.
#pragma once

#if defined(__CUDACC__)
#define TORCHINIT_CUDA 1
#else
#define TORCHINIT_CUDA 0
#endif

#if defined(__CUDA_ARCH__)
#define TORCHINIT_DEVICE_PASS 1
#else
#define TORCHINIT_DEVICE_PASS 0
#endif

// TORCHINIT_INLINE: a function of the shared mathematics, readable by host and device compilers.
#if TORCHINIT_CUDA
#define TORCHINIT_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define TORCHINIT_INLINE __forceinline
#else
#define TORCHINIT_INLINE inline __attribute__((always_inline))
#endif

// A static member function evaluated by the compiler, on either side.
#if TORCHINIT_CUDA
#define TORCHINIT_CONSTEXPR __host__ __device__ static constexpr
#else
#define TORCHINIT_CONSTEXPR static constexpr
#endif

// Before a loop of a fixed, small number of passes.
#if TORCHINIT_CUDA || defined(__clang__)
#define TORCHINIT_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define TORCHINIT_UNROLL _Pragma("GCC unroll 32")
#else
#define TORCHINIT_UNROLL
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define TORCHINIT_X86 1
#else
#define TORCHINIT_X86 0
#endif

#if defined(__aarch64__)
#define TORCHINIT_ARM64 1
#else
#define TORCHINIT_ARM64 0
#endif

// The namespace of one compilation of the shared mathematics. Each instruction set compiles the
// same headers into a namespace of its own, so that the linker never merges two of them.
#ifndef TORCHINIT_TARGET
#define TORCHINIT_TARGET generic
#endif

// 1 where the target of this compilation has a fused multiply-add instruction.
#ifndef TORCHINIT_HARDWARE_FMA
#define TORCHINIT_HARDWARE_FMA (TORCHINIT_DEVICE_PASS || TORCHINIT_ARM64)
#endif
