// regplug_reopen BUNDLE TIMES: opens BUNDLE that many times; prints its digest or the error's message each time.
#include <regplug/bundle.h>

#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "regplug_reopen: expected BUNDLE TIMES\n";
    return 2;
  }
  for (int left = std::stoi(argv[2]); left > 0; --left) {
    try {
      std::cout << regplug::Bundle::open(argv[1]).digest() << "\n";
    } catch (const regplug::Error& error) {
      std::cout << error.what() << "\n";
    }
  }
  return 0;
}
