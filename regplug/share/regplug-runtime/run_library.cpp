// run-library: runs a bare model library over regplug::runtime. `regplug export` compiles it for the machine of a program
// that this one cannot run, and runs it in an emulator.
//
//   run-library LIBRARY IN.safetensors OUT.safetensors
//
// Inputs and outputs are named by their numbers, in four digits.
#include <regplug/detail/aten_handle.h>
#include <regplug/detail/model_library.h>
#include <regplug/write_safetensors.h>

#include <cstddef>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

std::string number(std::size_t index) {
  const std::string digits = std::to_string(index);
  return std::string(4 - digits.size(), '0') + digits;
}

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void run(const char* library, const char* in, const char* out) {
  namespace detail = regplug::detail;
  const regplug::SafeTensors given = regplug::read_safetensors(in);
  const detail::ModelLibrary::Use opened = detail::ModelLibrary::load(read_file(library), "");
  if (opened->num_inputs() != given.tensors().size()) {
    throw regplug::Error("expected " + std::to_string(opened->num_inputs()) + " inputs, got " +
                         std::to_string(given.tensors().size()) + ".");
  }
  std::vector<regplug::Tensor> copies;  // aligned
  std::vector<AtenTensorHandle> inputs;
  for (const auto& [name, entry] : given.tensors()) {
    copies.push_back(regplug::Tensor::copy_of(regplug::TensorView(entry)));
    inputs.push_back(detail::to_aten(copies.back()).release());
  }
  std::vector<AtenTensorHandle> outputs(opened->num_outputs());
  opened->run(inputs.data(), outputs.data());
  std::map<std::string, regplug::TensorView> named;
  for (std::size_t i = 0; i < outputs.size(); ++i) named[number(i)] = detail::inspect(outputs[i]).view;
  regplug::write_safetensors(out, named);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 4) throw regplug::Error("expected LIBRARY, IN and OUT.");
    run(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
