// The programs that include torch's headers.
#define WITH_TORCHSCRIPT
#include "by_name.h"
#include "damaged.cpp"
#include "golden.cpp"
#include "open_bundles.cpp"
#include "reload.cpp"
#include "shim.cpp"
#include "soak.cpp"

int main(int argc, char** argv) {
  return run_by_name(argc, argv,
                     {{"regplug_damaged", damaged::main_of},
                      {"regplug_golden", golden::main_of},
                      {"regplug_open", open_bundles::main_of},
                      {"regplug_reload", reload::main_of},
                      {"regplug_soak", soak::main_of}});
}
