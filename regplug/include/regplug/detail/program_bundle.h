// What the two loaders have in common: an open bundle, and the weights that its calls share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/error.h"
#include "regplug/manifest.h"

namespace regplug::detail {

// `Result` is the loader's type of tensors, `Weights` one set of weights, ready to run.
template <typename Result, typename Weights>
class ProgramBundle {
 public:
  std::int64_t cond_dim() const { return manifest_.cond_dim; }
  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }

 protected:
  ProgramBundle(std::string dir, const Options& options, const Bundle& bundle)
      : dir_(std::move(dir)),
        follow_links_(options.follow_links),
        manifest_(bundle.manifest()),
        digest_(bundle.digest()),
        shared_(std::make_unique<Shared>()) {}

  static Options pinned(const std::string& pin) {
    Options options;
    options.pin = pin;
    return options;
  }

  void check_open() const {
    if (!shared_) throw Error("bundle: expected an open bundle, got one that was moved from.");
  }

  void check_readout() const {
    check_open();
    if (manifest_.is_conditioner()) throw Error("bundle " + dir_ + ": holds a conditioner; use run_film.");
  }

  void check_conditioner() const {
    check_open();
    if (!manifest_.is_conditioner()) throw Error("bundle " + dir_ + ": holds a readout; use run.");
  }

  static std::vector<std::pair<Result, Result>> pairs_of(std::vector<Result> flat) {
    std::vector<std::pair<Result, Result>> pairs;
    pairs.reserve(flat.size() / 2);
    for (std::size_t i = 0; i + 1 < flat.size(); i += 2) pairs.emplace_back(std::move(flat[i]), std::move(flat[i + 1]));
    return pairs;
  }

  std::shared_ptr<const Weights> weights() const {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    return shared_->weights;
  }

  // Calls that run keep the old weights until they end.
  void set_weights(std::shared_ptr<const Weights> weights) {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->weights = std::move(weights);
  }

  std::string dir_;
  bool follow_links_;
  Manifest manifest_;
  std::string digest_;

 private:
  struct Shared {
    std::mutex mutex;
    std::shared_ptr<const Weights> weights;  // never changed once other threads can see it
  };

  std::unique_ptr<Shared> shared_;  // null after a move
};

}  // namespace regplug::detail
