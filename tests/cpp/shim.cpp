// Our declarations of the C shim with torch's own: they do not compile together if they differ.
#include <regplug/aotinductor.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
