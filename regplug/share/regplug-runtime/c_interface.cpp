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
  regplug::Json inputs = regplug::Json::array();
  regplug::Json outputs = regplug::Json::array();
  for (std::size_t i = 0; i < manifest.num_inputs(); ++i) inputs.push_back(tensor(manifest.input_at(i)));
  for (const regplug::TensorSpec& output : manifest.outputs) outputs.push_back(tensor(output));
  return regplug::Json{{"holds", manifest.holds},       {"strategy", manifest.strategy},
                       {"cond_dim", manifest.cond_dim}, {"isa", bundle.isa()},
                       {"digest", bundle.digest()},     {"inputs", inputs},
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

// A view holds no more sizes than 8, and no program takes as many.
[[noreturn]] void reject_rank(const regplug_tensor& tensor, const regplug::Manifest& manifest, std::size_t i,
                              const regplug_tensor& first) {
  namespace detail = regplug::detail;
  detail::check_shape(kProgram, manifest, first.sizes, first.rank);
  detail::check_more_shape(kProgram, manifest.input_at(i), first.sizes, tensor.sizes, tensor.rank);
  throw regplug::Error("tensor: expected at most 8 sizes, got " + std::to_string(tensor.rank) + ".");
}

// Input i of the manifest; `first` is its first one.
regplug::TensorView view_of(const regplug_tensor& tensor, const regplug::Manifest& manifest, std::size_t i,
                            const regplug_tensor& first) {
  if (tensor.dtype < REGPLUG_FLOAT64 || tensor.dtype > REGPLUG_BOOL) {
    throw regplug::Error("tensor: expected a dtype from 0 to 9, got " + std::to_string(tensor.dtype) + ".");
  }
  const auto dtype = static_cast<regplug::Dtype>(tensor.dtype);  // both are in this order
  const std::int64_t* const given = tensor.rank == 0 ? nullptr : checked(tensor.sizes, "sizes");
  if (tensor.rank > kMaxShown) {  // a rank that nobody set: the sizes are not read
    throw regplug::Error("tensor: expected at most 8 sizes, got " + std::to_string(tensor.rank) + ".");
  }
  if (tensor.rank > regplug::Sizes::kMaxRank) reject_rank(tensor, manifest, i, first);
  const regplug::Sizes sizes(given, tensor.rank);
  const regplug::TensorView view =
      tensor.strides == nullptr
          ? regplug::TensorView(dtype, tensor.data, sizes)
          : regplug::TensorView(dtype, tensor.data, sizes, regplug::Sizes(tensor.strides, tensor.rank));
  if (view.items() != 0) checked(tensor.data, "data");
  return view;
}

template <typename Inputs>
std::vector<regplug::Tensor> run_flat(const regplug::AOTInductorBundle& program, const Inputs& inputs) {
  std::vector<regplug::Tensor> made;
  if (program.manifest().is_conditioner()) {
    for (auto& [gamma, beta] : program.run_film(inputs)) {
      made.push_back(gamma);
      made.push_back(beta);
    }
  } else {
    made.push_back(program.run(inputs));
  }
  return made;
}

std::vector<regplug::Tensor> run_single(const regplug::AOTInductorBundle& program, const regplug_tensor& input) {
  regplug::detail::check_single(kProgram, program.manifest());
  return run_flat(program, view_of(input, program.manifest(), 0, input));
}

std::vector<regplug::Tensor> run_named(const regplug::AOTInductorBundle& program, const regplug_tensor* inputs,
                                       std::size_t count) {
  const regplug::Manifest& manifest = program.manifest();
  for (std::size_t i = 0; i < count; ++i) checked(inputs[i].name, "name");
  const auto ordered = regplug::detail::in_order(kProgram, manifest, inputs, count);
  if (count == 1) return run_flat(program, view_of(*inputs, manifest, 0, *inputs));
  std::vector<regplug::NamedView> views;
  for (std::size_t i = 0; i < count; ++i) {
    views.push_back({manifest.input_at(i).name, view_of(*ordered[i], manifest, i, *ordered[0])});
  }
  return run_flat(program, views);
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
    if (count != 0) checked(inputs, "inputs");
    const bool single = count == 1 && inputs->name == nullptr;
    std::vector<regplug::Tensor> made = single ? run_single(program, *inputs) : run_named(program, inputs, count);
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
