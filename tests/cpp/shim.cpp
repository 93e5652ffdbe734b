// Our declarations of the C shim beside torch's own: the compiler refuses two that differ.
#include <regplug/aotinductor.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
