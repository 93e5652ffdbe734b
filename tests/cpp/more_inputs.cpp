// regplug_more_inputs FOLDER: unit tests of bundles with a mask and vectors: the manifest's rules, the golden cases,
// and the checks of a call. Prints a line for each check that fails. FOLDER is for files.
#include <regplug/bundle.h>
#include <regplug/detail/program_checks.h>
#include <regplug/detail/read_manifest.h>
#include <regplug/detail/sha256.h>
#include <regplug/golden.h>
#include <regplug/inputs.h>
#include <regplug/write_safetensors.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <sys/stat.h>

namespace more_inputs {
namespace {

using regplug::Json;
using regplug::NamedView;
using regplug::TensorView;

int failures = 0;

void expect(const std::string& got, const std::string& wanted, const std::string& what) {
  if (got == wanted) return;
  std::cout << "FAILED: " << what << ": expected '" << wanted << "', got '" << got << "'\n";
  ++failures;
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

// A join of the mean of any number of tokens, the last two, which take no mask, and a vector.
Json join() {
  return Json::parse(R"({
    "bundle_format": 2, "holds": "readout", "strategy": "regplug:join", "num_registers": null, "hidden_dim": 2,
    "options": {}, "cond_dim": 7, "layout": null, "film": null, "backbone": null,
    "input": {"name": "tokens", "dtype": "float32", "shape": ["B", "T", 2], "min_batch": 1, "min_tokens": 2},
    "more_inputs": [{"name": "mask", "dtype": "bool", "shape": ["B", "T"]},
                    {"name": "state", "dtype": "float32", "shape": ["B", 3]}],
    "parts": [{"name": "mean", "width": 2, "tokens": [0, null], "takes_mask": true},
              {"name": "ends", "width": 2, "tokens": [-2, null], "takes_mask": false},
              {"name": "state", "width": 3, "tokens": null, "takes_mask": false}],
    "outputs": [{"name": "conditioning", "dtype": "float32", "shape": ["B", 7]}],
    "golden": {"truth": "eager", "cases": [
      {"case": "batch_1", "batch": 1, "start": null, "length": 3, "eager_error": 0.0, "tolerance": 0.0},
      {"case": "slice", "batch": 2, "start": 1, "length": 2, "eager_error": 0.0, "tolerance": 0.0}]},
    "programs": [],
    "files": {"weights.safetensors": {"size": 0, "sha256": ""}, "golden.safetensors": {"size": 0, "sha256": ""}},
    "provenance": {"packages": {"regplug": "1.0"}, "torch": "2.13.0", "python": "3.11.7", "cpu": "AVX2"}})");
}

// A conditioner on all tokens after the first.
Json conditioner() {
  Json values = join();
  values["holds"] = "conditioner";
  values["cond_dim"] = 2;
  values["layout"] = Json::parse(R"({"num_registers": null, "hidden_dim": 2, "start": 1, "indices": null,
                                     "num_tokens": null, "normalized": null})");
  values["film"] = Json::parse(R"({"generator": "regplug:kernel-film", "options": {}, "form": "gamma",
                                   "order": "gamma-first"})");
  values["input"]["min_tokens"] = 2;
  values["more_inputs"].erase(1);
  values["parts"] = nullptr;
  values["outputs"] = Json::parse(R"([{"name": "gamma_0", "dtype": "float32", "shape": ["B", 4]},
                                      {"name": "beta_0", "dtype": "float32", "shape": ["B", 4]}])");
  return values;
}

struct Edit {
  const char* place;
  const char* value;    // JSON; empty: the key is removed
  const char* message;  // empty: the manifest is accepted
};

std::string verdict_on(Json values, const std::vector<Edit>& edits) {
  for (auto& [name, entry] : values["files"].items()) entry["sha256"] = std::string(64, '0');
  for (const Edit& edit : edits) {
    const Json::json_pointer place(edit.place);
    if (*edit.value == '\0') {
      values[place.parent_pointer()].erase(place.back());
    } else {
      values[place] = Json::parse(edit.value);
    }
  }
  const std::string said = message_of([&] { regplug::detail::read_manifest(values.dump(), "m"); });
  return said.rfind("m: ", 0) == 0 ? said.substr(3) : said;
}

void check_edits(const Json& base, const std::vector<Edit>& edits) {
  for (const Edit& edit : edits) {
    expect(verdict_on(base, {edit}), edit.message, std::string(edit.place) + " as " + edit.value);
  }
}

void check_formats() {
  const std::string newer = "bundle_format: expected 1 or 2, got ";
  for (const char* other : {"0", "3", "-1", "2.0", "\"2\"", "null", "[2]"}) {
    expect(verdict_on(join(), {{"/bundle_format", other, ""}}), newer + other + "; use a newer regplug.", other);
  }
  check_edits(join(), {{"/more_inputs", "", "more_inputs: expected a value, got nothing."},
                       {"/parts", "", "parts: expected a value, got nothing."},
                       {"/bundle_format", "", "bundle_format: expected a value, got nothing."}});
  Json older = join();
  older["bundle_format"] = 1;
  const std::string surplus = "more_inputs: expected no such key, got [{\"dtype\":\"bool\",\"name\":\"mask\",";
  expect(verdict_on(older, {}).substr(0, surplus.size()), surplus, "a key of format 2 in format 1");
  older.erase("more_inputs");
  older.erase("parts");
  expect(verdict_on(older, {}), "num_registers: expected an integer >= 1, got null.", "any number in format 1");
  expect(verdict_on(older, {{"/num_registers", "3", ""}}), "input.name: expected \"registers\", got \"tokens\".",
         "tokens of a readout in format 1");
}

void check_input_rules() {
  const char* any_name = "lower-case letters, digits and underscores";
  const auto wrong_name = [&](const std::string& got) {
    return "more_inputs.1.name: expected " + std::string(any_name) + ", got " + got + ".";
  };
  for (const std::string name : {"\"State\"", "\"\"", "\"1st\"", "\"_a\"", "\"a-b\"", "\"a.b\"", "null", "1"}) {
    expect(verdict_on(join(), {{"/more_inputs/1/name", name.c_str(), ""}}), wrong_name(name), name);
  }
  const std::string longest = "\"" + std::string(64, 'a') + "\"";
  const std::string longer = "\"" + std::string(65, 'a') + "\"";
  expect(verdict_on(join(), {{"/more_inputs/1/name", longest.c_str(), ""}, {"/parts/2/name", longest.c_str(), ""}}), "",
         "a name of 64 letters");
  expect(verdict_on(join(), {{"/more_inputs/1/name", longer.c_str(), ""}}), wrong_name(longer.substr(0, 60) + "..."),
         "a name of 65 letters");
  check_edits(
      join(),
      {{"/input/name", "\"registers\"", "input.name: expected \"tokens\", got \"registers\"."},
       {"/input/min_tokens", "null", "input.min_tokens: expected 2, got null."},
       {"/input/min_tokens", "1", "input.min_tokens: expected 2, got 1."},
       {"/input/shape", "[\"B\", 3, 2]", "input.shape: expected [\"B\",\"T\",2], got [\"B\",3,2]."},
       {"/num_registers", "3", "input.shape: expected [\"B\",3,2], got [\"B\",\"T\",2]."},
       {"/num_registers", "0", "num_registers: expected an integer >= 1, got 0."},
       {"/more_inputs", "null", "more_inputs: expected a list, got null."},
       {"/more_inputs/0/shape", "[\"B\", 4]", "more_inputs.0.shape: expected [\"B\",\"T\"], got [\"B\",4]."},
       {"/more_inputs/0/shape", "[\"B\"]", "more_inputs.0.shape: expected [\"B\",\"T\"], got [\"B\"]."},
       {"/more_inputs/0/dtype", "\"float32\"", "more_inputs.0.dtype: expected \"bool\", got \"float32\"."},
       {"/more_inputs/0/dtype", "\"uint8\"",
        "more_inputs.0.dtype: expected one of [float32, float64, float16, bfloat16, bool], got \"uint8\"."},
       {"/more_inputs/1/dtype", "\"float64\"", "more_inputs.1.dtype: expected \"float32\", got \"float64\"."},
       {"/more_inputs/1/dtype", "\"bool\"", "more_inputs.1.dtype: expected \"float32\", got \"bool\"."},
       {"/more_inputs/1/shape", "[\"B\", 0]", "more_inputs.1.shape.1: expected an integer >= 1, got 0."},
       {"/more_inputs/1/shape", "[\"B\", \"T\"]", "more_inputs.1.shape: expected [\"B\",1], got [\"B\",\"T\"]."},
       {"/more_inputs/1/shape", "[\"B\", 2, 3]", "more_inputs.1.shape: expected [\"B\",3], got [\"B\",2,3]."},
       {"/more_inputs/1/shape", "[]", "more_inputs.1.shape: expected [\"B\",1], got []."},
       {"/more_inputs/1/name", "\"mask\"", "parts: expected [] without tokens, got [\"state\"]."},
       {"/more_inputs/0/name", "\"state\"",
        "parts: expected [\"state\",\"state\"] without tokens, got [\"state\"]."},
       {"/more_inputs/1/surplus", "1", "more_inputs.1.surplus: expected no such key, got 1."}});
  expect(verdict_on(join(), {{"/more_inputs/0/name", "\"state\"", ""}, {"/more_inputs/1/name", "\"mask\"", ""}}),
         "more_inputs.0.dtype: expected \"float32\", got \"bool\".", "a mask that is not the first");
  for (const std::string name : {"\"registers\"", "\"tokens\"", "\"images\""}) {
    expect(verdict_on(join(), {{"/more_inputs/1/name", name.c_str(), ""}, {"/parts/2/name", name.c_str(), ""}}),
           "more_inputs.1.name: expected a vector's name, got " + name + ".", "a vector with the name " + name);
  }
  Json twice = join();
  twice["more_inputs"].insert(twice["more_inputs"].begin(), twice["more_inputs"][0]);
  expect(verdict_on(twice, {}), "more_inputs: expected different names, at most 65, got [\"mask\",\"mask\",\"state\"].",
         "two masks");
  Json many = join();
  many["more_inputs"] = Json::array();
  many["parts"] = Json::array();
  for (int i = 0; i < 64; ++i) {
    const std::string name = "v" + std::to_string(i);
    many["more_inputs"].push_back({{"name", name}, {"dtype", "float32"}, {"shape", {"B", 1}}});
    many["parts"].push_back({{"name", name}, {"width", 1}, {"tokens", nullptr}, {"takes_mask", false}});
  }
  many["cond_dim"] = 64;
  many["input"]["min_tokens"] = 1;
  many["outputs"][0]["shape"][1] = 64;
  expect(verdict_on(many, {}), "", "64 vectors without a mask");
  many["parts"].push_back(many["parts"][0]);
  many["parts"][64]["name"] = "v64";
  expect(verdict_on(many, {}).substr(0, 57), "parts: expected 1 to 64 parts with different names, got [", "65 parts");
}

void check_layout_rules() {
  const char* positions = "layout: expected positions that agree with its sizes, got "
                          "{\"hidden_dim\":2,\"indices\":null,\"normalized\":null,\"num_regist....";
  check_edits(conditioner(),
              {{"/bundle_format", "2", ""},
               {"/input/min_tokens", "1", "input.min_tokens: expected 2, got 1."},
               {"/layout/start", "-1", positions},
               {"/layout/start", "null", positions},
               {"/layout/num_tokens", "1", positions},
               {"/layout/num_tokens", "2", "input.shape: expected [\"B\",2,2], got [\"B\",\"T\",2]."},
               {"/golden/cases/1/length", "1", "golden.cases.1.length: expected an integer >= 2, got 1."}});
  const std::string sizes = "layout: expected the num_registers and hidden_dim of the manifest, got ";
  expect(verdict_on(conditioner(), {{"/num_registers", "3", ""}}).substr(0, sizes.size()), sizes, "another R");
  expect(verdict_on(conditioner(), {{"/layout/start", "0", ""}, {"/input/min_tokens", "1", ""}}), "", "from the first");
}

void check_part_rules() {
  const char* inside = "parts.1: expected tokens inside the sequence, got "
                       "{\"name\":\"ends\",\"takes_mask\":false,\"tokens\":";
  check_edits(join(), {{"/parts", "null", "parts: expected a list, for the vectors, got null."},
                       {"/parts", "[]", "parts: expected 1 to 64 parts with different names, got []."},
                       {"/parts/0/width", "3", "parts: expected widths whose sum is 7, got 8."},
                       {"/parts/0/name", "\"ends\"",
                        "parts: expected 1 to 64 parts with different names, got [\"ends\",\"ends\",\"state\"]."},
                       {"/parts/0/tokens", "null",
                        "parts: expected [\"state\"] without tokens, got [\"mean\",\"state\"]."},
                       {"/parts/2/tokens", "[0, 1]", "parts: expected [\"state\"] without tokens, got []."},
                       {"/parts/2/name", "\"other\"", "parts: expected [\"state\"] without tokens, got [\"other\"]."},
                       {"/parts/1/takes_mask", "1", "parts.1.takes_mask: expected true or false, got 1."},
                       {"/parts/1/tokens", "[0, 1.5]", "parts.1.tokens.1: expected an integer, got 1.5."},
                       {"/parts/1/tokens", "[0, 2]", ""},
                       {"/parts/1/tokens", "[1, null]", ""},
                       {"/parts/1/tokens", "[-3, -1]", "input.min_tokens: expected 3, got 2."},
                       {"/parts/1/tokens", "[1, -1]", "input.min_tokens: expected 3, got 2."},
                       {"/parts/1/tokens", "[3, 5]", "input.min_tokens: expected 5, got 2."}});
  for (const char* tokens : {"[]", "[0]", "[null, 1]", "[0, 1, 2]", "[1, 1]", "[-1, -2]"}) {
    const std::string said = verdict_on(join(), {{"/parts/1/tokens", tokens, ""}});
    expect(said.substr(0, std::strlen(inside) - 1), std::string(inside).substr(0, std::strlen(inside) - 1), tokens);
  }
  Json fixed = join();
  fixed["num_registers"] = 3;
  fixed["input"]["shape"][1] = 3;
  fixed["input"]["min_tokens"] = nullptr;
  fixed["more_inputs"][0]["shape"][1] = 3;
  fixed["golden"]["cases"].erase(1);
  expect(verdict_on(fixed, {}), "", "three tokens");
  for (const char* tokens : {"[3, null]", "[1, -2]", "[0, -3]", "[-1, 2]"}) {
    const std::string said = verdict_on(fixed, {{"/parts/1/tokens", tokens, ""}});
    expect(said.substr(0, 30), std::string(inside).substr(0, 30), std::string(tokens) + " of three");
  }
  for (const char* tokens : {"[2, null]", "[1, -1]", "[-9, 1]", "[-1, 9]"}) {
    expect(verdict_on(fixed, {{"/parts/1/tokens", tokens, ""}}), "", std::string(tokens) + " of three");
  }
  expect(verdict_on(join(), {{"/parts/2/takes_mask", "true", ""}}).substr(0, 42),
         "parts.2: expected tokens inside the sequen", "a vector that takes the mask");
}

// ---- golden cases

using Tensors = std::map<std::string, TensorView>;

// A folder with the join's bundle, without programs. Its tensors may be changed before they are written.
class Folder {
 public:
  Folder(std::string path, Json values) : path_(std::move(path)), values_(std::move(values)) {
    ::mkdir(path_.c_str(), 0700);
    set("batch_1.input", std::vector<float>(6, std::nanf("")), {1, 3, 2});
    set("batch_1.input.state", std::vector<float>(3, 2), {1, 3});
    set_mask("batch_1.input.mask", {0, 1, 1}, {1, 3});
    set("slice.input", std::vector<float>(20, 4), {2, 5, 2});
    set("slice.input.state", std::vector<float>(6, 5), {2, 3});
    set_mask("slice.input.mask", {0, 1, 1, 0, 0, 0, 1, 1, 0, 1}, {2, 5});
    for (const Json& output : values_["outputs"]) {
      const std::string name = ".output." + output["name"].get<std::string>();
      const auto width = output["shape"][1].get<std::int64_t>();
      set("batch_1" + name, std::vector<float>(static_cast<std::size_t>(width)), {1, width});
      set("slice" + name, std::vector<float>(static_cast<std::size_t>(2 * width)), {2, width});
    }
  }

  void set(const std::string& name, const std::vector<float>& numbers, const regplug::Sizes& sizes) {
    tensors_[name] = regplug::Tensor::copy_of(TensorView(numbers.data(), sizes));
  }

  void set_mask(const std::string& name, const std::vector<std::uint8_t>& bytes, const regplug::Sizes& sizes) {
    tensors_[name] = regplug::Tensor::copy_of(TensorView(regplug::Dtype::boolean, bytes.data(), sizes));
  }

  void remove(const std::string& name) { tensors_.erase(name); }

  regplug::Bundle open() {
    write("weights.safetensors", {});
    write("golden.safetensors", Tensors(tensors_.begin(), tensors_.end()));
    std::ofstream(path_ + "/manifest.json") << values_.dump();
    return regplug::Bundle::open(path_);
  }

  // What opening says after the name of the file.
  std::string refusal() {
    const std::string said = message_of([&] { open(); });
    const std::string begin = "bundle " + path_ + ": golden.safetensors: ";
    return said.rfind(begin, 0) == 0 ? said.substr(begin.size()) : said;
  }

 private:
  void write(const std::string& name, const Tensors& tensors) {
    regplug::write_safetensors(path_ + "/" + name, tensors);
    std::ifstream file(path_ + "/" + name, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    values_["files"][name] = {{"size", bytes.size()}, {"sha256", regplug::detail::sha256_hex(bytes)}};
  }

  std::string path_;
  Json values_;
  std::map<std::string, regplug::Tensor> tensors_;
};

void check_golden_inputs(const std::string& path) {
  const regplug::Bundle bundle = Folder(path + "/join", join()).open();
  const std::vector<NamedView> whole = regplug::golden_inputs(bundle, bundle.manifest().cases[0]);
  const std::vector<NamedView> slice = regplug::golden_inputs(bundle, bundle.manifest().cases[1]);
  std::string shapes;
  for (const auto& inputs : {whole, slice}) {
    for (const NamedView& one : inputs) shapes += std::string(one.name) + " " + one.view.signature() + "; ";
  }
  expect(shapes,
         "tokens float32 [1, 3, 2]; mask bool [1, 3]; state float32 [1, 3]; "
         "tokens float32 [2, 2, 2]; mask bool [2, 2]; state float32 [2, 3]; ",
         "inputs of golden cases");
  const regplug::Tensor mask = regplug::Tensor::copy_of(slice[1].view);
  expect(std::string(static_cast<const char*>(mask.data()), 4), std::string("\1\1\1\1", 4), "the mask of a slice");
}

void check_golden_rules(const std::string& path) {
  const auto changed = [&](const auto& change) {
    Folder folder(path + "/changed", join());
    change(folder);
    return folder.refusal();
  };
  expect(changed([](Folder&) {}), "", "the bundle as it is");
  const std::string all =
      "batch_1.input, batch_1.input.mask, batch_1.input.state, batch_1.output.conditioning, slice.input, "
      "slice.input.mask, slice.input.state, slice.output.conditioning";
  expect(changed([](Folder& one) { one.remove("slice.input.state"); }).substr(0, all.size() + 20),
         "expected tensors [" + all + "],", "a vector that is missing");
  expect(changed([](Folder& one) { one.set("batch_1.input.state", {1, 2}, {1, 2}); }),
         "tensor 'batch_1.input.state': expected float32 [1, 3], got float32 [1, 2].", "a narrow vector");
  expect(changed([](Folder& one) { one.set("batch_1.input.mask", {1, 2, 3}, {1, 3}); }),
         "tensor 'batch_1.input.mask': expected bool [1, 3], got float32 [1, 3].", "a mask of floats");
  expect(changed([](Folder& one) { one.set_mask("batch_1.input.mask", {1, 1}, {1, 2}); }),
         "tensor 'batch_1.input.mask': expected bool [1, 3], got bool [1, 2].", "a short mask");
  expect(changed([](Folder& one) { one.set_mask("slice.input.mask", {1, 1, 1, 1}, {2, 2}); }),
         "tensor 'slice.input.mask': expected bool [2, 5], got bool [2, 2].", "a mask that is sliced already");
  expect(changed([](Folder& one) { one.set_mask("slice.input.mask", {1}, {1}); }),
         "tensor 'slice.input.mask': expected bool [2, 5], got bool [1].", "a mask of one dimension");
  const auto none = [](const std::string& name, int sample) {
    return "case '" + name + "': mask: expected a token of 'mean' that counts in every sample, got none in sample " +
           std::to_string(sample) + ".";
  };
  expect(changed([](Folder& one) { one.set_mask("batch_1.input.mask", {0, 0, 0}, {1, 3}); }), none("batch_1", 0),
         "a mask without a token");
  expect(changed([](Folder& one) { one.set_mask("slice.input.mask", {1, 1, 1, 0, 0, 1, 0, 0, 1, 1}, {2, 5}); }),
         none("slice", 1), "a slice without a token");
  expect(changed([](Folder& one) { one.set_mask("batch_1.input.mask", {1, 1, 0}, {1, 3}); }),
         "case 'batch_1': mask: expected every token of 'ends' to count, which takes no mask, got padding in sample 0.",
         "a part that takes no mask");
  Folder film(path + "/film", conditioner());
  film.remove("batch_1.input.state");
  film.remove("slice.input.state");
  expect(film.refusal(), "", "a conditioner");
}

// ---- the checks of a call

// What a loader checks of further inputs, without a program.
void check_calls() {
  regplug::Manifest manifest;
  manifest.input = {"tokens", "float32", {regplug::kFree, regplug::kFree, 2}};
  manifest.more_inputs = {{"mask", "bool", {regplug::kFree, regplug::kFree}},
                          {"state", "float32", {regplug::kFree, 7}}};
  const char* program = "program 'p'";
  const auto names = [&](const std::vector<NamedView>& given) {
    return message_of([&] { regplug::detail::in_order(program, manifest, given.data(), given.size()); });
  };
  const std::string wanted = "program 'p': expected inputs [tokens, mask, state], got [";
  expect(names({{"state", {}}, {"tokens", {}}, {"mask", {}}}), "", "names in another order");
  expect(names({{"tokens", {}}, {"state", {}}}), wanted + "tokens, state].", "a name that is missing");
  expect(names({{"tokens", {}}, {"state", {}}, {"state", {}}}), wanted + "tokens, state, state].", "a name twice");
  expect(names({{"b", {}}, {"a", {}}, {"tokens", {}}}), wanted + "b, a, tokens].", "unknown names");
  expect(names({}), wanted + "].", "no inputs");
  expect(message_of([&] { regplug::detail::check_single(program, manifest); }), wanted + "tokens].", "no names");
  const std::int64_t first[] = {2, 9, 2};
  const auto shape = [&](std::size_t i, const std::vector<std::int64_t>& sizes) {
    return message_of([&] {
      regplug::detail::check_more_shape(program, manifest.input_at(i), first, sizes.data(), sizes.size());
    });
  };
  expect(shape(1, {2, 9}) + shape(2, {2, 7}), "", "shapes that fit");
  expect(shape(1, {2, 8}), "program 'p': expected mask [B, T] with B=2 and T=9, got [2, 8].", "a short mask");
  expect(shape(1, {2, 9, 1}), "program 'p': expected mask [B, T] with B=2 and T=9, got [2, 9, 1].", "a rank of 3");
  expect(shape(2, {2, 6}), "program 'p': expected state [B, 7] with B=2, got [2, 6].", "a narrow vector");
  expect(shape(2, {3, 7}), "program 'p': expected state [B, 7] with B=2, got [3, 7].", "another batch");
  expect(shape(2, {}), "program 'p': expected state [B, 7] with B=2, got [].", "a scalar");
  manifest.more_inputs[0].shape[1] = 4;
  expect(shape(1, {2, 8}), "program 'p': expected mask [B, 4] with B=2, got [2, 8].", "a mask of another length");
}

std::string mask_refusal(const std::string& bytes, const regplug::Sizes& sizes, const regplug::Sizes& strides,
                         std::int64_t offset = 0, const regplug::Manifest& manifest = {}) {
  return message_of([&] {
    regplug::detail::check_mask("program 'p'", manifest, {bytes.data() + offset, sizes.data(), strides.data()});
  });
}

// Masks of every length around a word's, with any strides, compared with a search byte by byte.
void check_mask_values() {
  const std::string none = "program 'p': mask: expected a token that counts in every sample, got none in sample ";
  const std::string byte = "program 'p': mask: expected bytes 0 and 1, got ";
  std::mt19937 random(0);
  for (int i = 0; i < 4000; ++i) {
    const std::int64_t batch = random() % 4;
    const std::int64_t length = 1 + random() % 20;
    const std::int64_t step = 1 + random() % 2;
    const std::int64_t row = length * step + random() % 3;
    const bool backward = random() % 8 == 0;
    std::string bytes(static_cast<std::size_t>(4 * 45), '\7');  // the bytes between the items are not read
    std::string wanted;
    const std::int64_t begin = backward ? (length - 1) * step : 0;
    const std::int64_t stride = backward ? -step : step;
    for (std::int64_t sample = 0; sample < batch; ++sample) {
      bool any = false;
      const unsigned rare = random() % 5 == 0 ? 1000 : 4;
      for (std::int64_t j = 0; j < length; ++j) {
        int value = random() % rare == 0 ? 1 : 0;
        if (random() % 200 == 0) value = 1 << random() % 8;
        any = any || value != 0;
        bytes[static_cast<std::size_t>(begin + sample * row + j * stride)] = static_cast<char>(value);
        if (value > 1 && wanted.rfind(byte, 0) != 0) wanted = byte + std::to_string(value) + ".";
      }
      if (!any && wanted.empty()) wanted = none + std::to_string(sample) + ".";
    }
    expect(mask_refusal(bytes, {batch, length}, {row, stride}, begin), wanted, "a mask drawn at random");
  }
  expect(mask_refusal(std::string(3, '\1'), {5, 3}, {0, 1}), "", "one row for all samples");
  expect(mask_refusal(std::string(1, '\0'), {2, 300}, {0, 0}), none + "0.", "one byte for all tokens");
}

// Only the tokens that a module reads must be there, in every part that reads some.
void check_masks_of_parts() {
  const std::string mask = "program 'p': mask: expected ";
  const auto none = [&](const std::string& of, int sample) {
    return mask + "a token" + of + " that counts in every sample, got none in sample " + std::to_string(sample) + ".";
  };
  regplug::Manifest manifest;
  manifest.holds = "conditioner";
  manifest.layout = regplug::LayoutRecord{};
  manifest.layout->start = 1;
  const auto refusal = [&](const std::string& bytes) {  // of two samples
    const auto length = static_cast<std::int64_t>(bytes.size() / 2);
    return mask_refusal(bytes, {2, length}, {length, 1}, 0, manifest);
  };
  const auto said = [&](std::string digits) {
    for (char& digit : digits) digit = static_cast<char>(digit - '0');
    return refusal(digits);
  };
  expect(said("0100" "0001"), "", "all tokens after the first");
  expect(said("0100" "1000"), none("", 1), "only the first");
  manifest.layout->num_registers = 2;
  expect(said("00100" "01000"), "", "two tokens after the first");
  expect(said("10011" "01000"), none("", 0), "none of two");
  manifest.layout->start = -2;
  expect(said("00010" "00001"), "", "the last two");
  expect(said("00010" "11100"), none("", 1), "none of the last two");
  manifest.layout->start.reset();
  manifest.layout->indices = {0, 3};
  expect(said("1000" "0001"), "", "two places");
  expect(said("1000" "0110"), none("", 1), "none of two places");
  manifest.parts = {{"one", 1, false, 0, 1, true}, {"vector", 1, true, 0, {}, false}, {"last", 1, false, -1, {}, false}};
  expect(said("1001" "1001"), "", "two parts of two places");
  expect(said("1001" "0111"), none(" of 'one'", 1), "none of one part");
  expect(said("1110" "1001"),
         mask + "every token of 'last' to count, which takes no mask, got padding in sample 0.", "padding in another");
  manifest.holds = "readout";
  manifest.parts = {{"wide", 1, false, 1, -1, true}, {"all", 1, false, 0, {}, false}};
  expect(said("1111" "1111"), "", "no padding");
  expect(said("1111" "1001"), none(" of 'wide'", 1), "the first part is reported");
  expect(said("1111" "1011"),
         mask + "every token of 'all' to count, which takes no mask, got padding in sample 1.", "padding");
}

}  // namespace

inline int main_of(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: regplug_more_inputs FOLDER\n";
    return 2;
  }
  check_formats();
  check_input_rules();
  check_layout_rules();
  check_part_rules();
  check_golden_inputs(argv[1]);
  check_golden_rules(argv[1]);
  check_calls();
  check_mask_values();
  check_masks_of_parts();
  return failures == 0 ? 0 : 1;
}

}  // namespace more_inputs
