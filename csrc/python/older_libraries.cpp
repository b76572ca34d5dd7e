// Definitions of functions that GCC's newer headers expect in newer libraries, so that a module
// built here loads on older systems too. With these, glibc 2.14 and libstdc++ of GCC 7 suffice
// (tools/make_wheel.py checks). All are hidden from other modules.
#include <new>

#ifdef __GLIBCXX__

#define HIDDEN __attribute__((visibility("hidden")))

// glibc 2.32. "Maybe not the only thread" is always right: reference counts are then atomic.
extern "C" {
extern char __libc_single_threaded;
HIDDEN char __libc_single_threaded = 0;
}

namespace std {
// GCC 11, for new int[n] and std::vector; declared by headers that are not included here.
[[noreturn]] HIDDEN void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

// GCC 11 copies and drops a std::exception_ptr inline and calls these two for the count. Here they
// call the functions that older libraries have. No header of those versions defines the callees
// inline, which would recurse.
#if _GLIBCXX_RELEASE >= 11 && _GLIBCXX_RELEASE <= 14
extern "C" {
// exception_ptr(void*), which increments the count.
void hold_exception(void** pointer,
                    void* exception) __asm__("_ZNSt15__exception_ptr13exception_ptrC1EPv");
// operator=(const exception_ptr&), which decrements the count of the old value.
void assign_exception(void** pointer,
                      void* const* other) __asm__("_ZNSt15__exception_ptr13exception_ptraSERKS0_");

HIDDEN void add_reference(void** pointer) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void add_reference(void** pointer) {
  void* uncounted;  // never dropped
  hold_exception(&uncounted, *pointer);
}

HIDDEN void release(void** pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release(void** pointer) {
  void* const none = nullptr;
  assign_exception(pointer, &none);
}
}
#endif

#endif
