// One of the inputs of a call, by its name in the manifest. Includes no torch.
#pragma once

#include <string_view>

#include "regplug/tensor.h"

namespace regplug {

// Owns neither: name and memory must stay valid while it is used.
struct NamedView {
  std::string_view name;
  TensorView view;
};

}  // namespace regplug
