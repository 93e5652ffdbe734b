// regplug.h over the C++ classes. No exception leaves this file.
#include <cxxabi.h>

#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <regplug/aotinductor.h>
#include <regplug/regplug.h>
#include <regplug/version.h>

namespace {

constexpr const char* kProgram = "program 'aotinductor'";
constexpr std::uint32_t kMaxShown = 64;  // sizes in a message
constexpr std::size_t kMaxMessage = 4 * 400 + 1;  // 400 characters of UTF-8

std::string describe(const regplug::AOTInductorBundle& bundle) {
  const regplug::Manifest& manifest = bundle.manifest();
  const auto tensor = [](const regplug::TensorSpec& spec) {
    regplug::Json shape = regplug::Json::array();
    for (const std::int64_t size : spec.shape) {
      if (size != regplug::kFree) {
        shape.push_back(size);
      } else {
        shape.push_back(shape.empty() ? "B" : "T");
      }
    }
    return regplug::Json{{"name", spec.name}, {"dtype", spec.dtype}, {"shape", shape}};
  };
  regplug::Json outputs = regplug::Json::array();
  for (const regplug::TensorSpec& output : manifest.outputs) outputs.push_back(tensor(output));
  return regplug::Json{{"holds", manifest.holds},       {"strategy", manifest.strategy},
                       {"cond_dim", manifest.cond_dim}, {"isa", bundle.isa()},
                       {"digest", bundle.digest()},     {"inputs", regplug::Json::array({tensor(manifest.input)})},
                       {"outputs", outputs}}
      .dump();
}

// Fixed memory: a message must need none when there is none.
char* last_error() {
  thread_local char text[kMaxMessage] = "";
  return text;
}

void keep(const char* text) { std::strncpy(last_error(), text, kMaxMessage - 1); }

// What `call` returns; `otherwise` after an exception, whose message is kept.
template <typename Result, typename Call>
Result guarded(Result otherwise, Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    keep("regplug: expected enough memory, got none.");
  } catch (const std::exception& error) {
    keep(error.what());
#ifdef __GLIBCXX__  // libc++ does not catch it
  } catch (const abi::__forced_unwind&) {  // the thread is being cancelled
    throw;
#endif
  } catch (...) {
    keep("regplug: expected a std::exception, got another type.");
  }
  return otherwise;
}

template <typename Pointer>
Pointer checked(Pointer pointer, const char* what) {
  if (pointer != nullptr) return pointer;
  throw regplug::Error(std::string("regplug: ") + what + ": expected a pointer, got null.");
}

}  // namespace

struct regplug_bundle {
  regplug::AOTInductorBundle bundle;
  std::string description;
};

struct regplug_outputs {
  std::vector<std::string> names;
  std::vector<regplug::Tensor> tensors;
};

namespace {

regplug::TensorView view_of(const regplug_tensor& tensor, const regplug::Manifest& manifest) {
  const regplug::TensorSpec& wanted = manifest.input;
  if (tensor.name != nullptr && tensor.name != wanted.name) {
    regplug::detail::reject(kProgram, "expected the input '" + wanted.name + "', got '" + tensor.name + "'.");
  }
  if (tensor.dtype < REGPLUG_FLOAT64 || tensor.dtype > REGPLUG_BOOL) {
    throw regplug::Error("tensor: expected a dtype from 0 to 9, got " + std::to_string(tensor.dtype) + ".");
  }
  const auto dtype = static_cast<regplug::Dtype>(tensor.dtype);  // both are in this order
  const std::int64_t* const given = tensor.rank == 0 ? nullptr : checked(tensor.sizes, "sizes");
  // a view holds no more sizes than 8, and no program takes as many; a rank that nobody set is not read
  if (tensor.rank > regplug::Sizes::kMaxRank && tensor.rank <= kMaxShown) {
    regplug::detail::check_shape(kProgram, manifest, given, tensor.rank);
  }
  if (tensor.rank > kMaxShown) {
    throw regplug::Error("tensor: expected at most 8 sizes, got " + std::to_string(tensor.rank) + ".");
  }
  const regplug::Sizes sizes(given, tensor.rank);
  const regplug::TensorView view =
      tensor.strides == nullptr
          ? regplug::TensorView(dtype, tensor.data, sizes)
          : regplug::TensorView(dtype, tensor.data, sizes, regplug::Sizes(tensor.strides, tensor.rank));
  if (view.items() != 0) checked(tensor.data, "data");
  return view;
}

}  // namespace

int32_t regplug_abi(void) { return REGPLUG_ABI; }

const char* regplug_version(void) { return REGPLUG_VERSION; }

const char* regplug_last_error(void) { return last_error(); }

regplug_bundle* regplug_open(const char* directory, const char* digest, uint32_t flags) {
  return guarded<regplug_bundle*>(nullptr, [&] {
    if ((flags & ~REGPLUG_FOLLOW_LINKS) != 0) {
      throw regplug::Error("regplug: flags: expected 0 or REGPLUG_FOLLOW_LINKS, got " + std::to_string(flags) + ".");
    }
    regplug::Options options;
    options.follow_links = (flags & REGPLUG_FOLLOW_LINKS) != 0;
    if (digest != nullptr) options.pin = digest;
    if (digest != nullptr && options.pin.empty()) {  // a variable that was never set is no agreement to any bundle
      throw regplug::Error("digest: expected 64 hexadecimal digits, got ''.");
    }
    auto bundle = regplug::AOTInductorBundle::open(checked(directory, "directory"), options);
    std::string description = describe(bundle);
    return new regplug_bundle{std::move(bundle), std::move(description)};
  });
}

void regplug_close(regplug_bundle* bundle) {
  guarded(0, [&] {
    delete bundle;
    return 0;
  });
}

const char* regplug_describe(const regplug_bundle* bundle) {
  return guarded<const char*>(nullptr, [&] { return checked(bundle, "bundle")->description.c_str(); });
}

regplug_outputs* regplug_run(const regplug_bundle* bundle, const regplug_tensor* inputs, size_t count) {
  return guarded<regplug_outputs*>(nullptr, [&] {
    const regplug::AOTInductorBundle& program = checked(bundle, "bundle")->bundle;
    const regplug::Manifest& manifest = program.manifest();
    if (count != 1) {
      regplug::detail::reject(kProgram, "expected 1 input, got " + std::to_string(count) + ".");
    }
    const regplug::TensorView input = view_of(*checked(inputs, "inputs"), manifest);
    std::vector<regplug::Tensor> made;
    if (manifest.is_conditioner()) {
      for (auto& [gamma, beta] : program.run_film(input)) {
        made.push_back(gamma);
        made.push_back(beta);
      }
    } else {
      made.push_back(program.run(input));
    }
    std::vector<std::string> names;
    for (const regplug::TensorSpec& output : manifest.outputs) names.push_back(output.name);
    return new regplug_outputs{std::move(names), std::move(made)};
  });
}

size_t regplug_num_outputs(const regplug_outputs* outputs) { return outputs == nullptr ? 0 : outputs->tensors.size(); }

int32_t regplug_output(const regplug_outputs* outputs, size_t index, regplug_tensor* output) {
  return guarded<int32_t>(1, [&] {
    checked(output, "output");
    if (index >= checked(outputs, "outputs")->tensors.size()) {
      throw regplug::Error("regplug: output: expected an index below " + std::to_string(outputs->tensors.size()) +
                           ", got " + std::to_string(index) + ".");
    }
    const regplug::TensorView& view = outputs->tensors[index].view();
    *output = {outputs->names[index].c_str(),
               static_cast<std::int32_t>(view.dtype()),
               static_cast<std::uint32_t>(view.sizes().size()),
               view.sizes().data(),
               view.strides().data(),
               view.data()};
    return 0;
  });
}

void regplug_free_outputs(regplug_outputs* outputs) {
  guarded(0, [&] {
    delete outputs;
    return 0;
  });
}

int32_t regplug_reload(regplug_bundle* bundle, const char* weights) {
  return guarded<int32_t>(1, [&] {
    checked(bundle, "bundle")->bundle.reload_weights(checked(weights, "weights"));
    return 0;
  });
}
