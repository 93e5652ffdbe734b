// Several test programs in one binary, so that the headers are compiled once; symbolic links name the programs.
#pragma once

#include <initializer_list>
#include <iostream>
#include <string>
#include <utility>

using Main = int (*)(int, char**);

// Runs the program that the command names.
inline int run_by_name(int argc, char** argv, std::initializer_list<std::pair<const char*, Main>> programs) {
  const std::string command = argv[0];
  const std::string name = command.substr(command.find_last_of('/') + 1);
  for (const auto& [known, run] : programs) {
    if (name == known) return run(argc, argv);
  }
  std::cerr << name << ": no such program\n";
  return 2;
}
