// All programs but regplug-run in one, so that the headers are compiled once.
#define WITH_TORCHSCRIPT
#include <regplug/torchscript.h>

#include "aoti_golden.cpp"
#include "aoti_life.cpp"
#include "aoti_reload.cpp"
#include "by_name.h"
#include "damaged.cpp"
#include "golden.cpp"
#include "more_inputs.cpp"
#include "open_bundles.cpp"
#include "reload.cpp"
#include "shim.cpp"
#include "soak.cpp"
#include "units.cpp"
#include "verdict.cpp"

int main(int argc, char** argv) {
  return run_by_name(argc, argv,
                     {{"regplug_aoti_golden", aoti_golden::main_of},
                      {"regplug_aoti_life", aoti_life::main_of},
                      {"regplug_aoti_open", open_bundles::main_of},
                      {"regplug_aoti_reload", aoti_reload::main_of},
                      {"regplug_damaged", damaged::main_of},
                      {"regplug_golden", golden::main_of},
                      {"regplug_more_inputs", more_inputs::main_of},
                      {"regplug_open", open_bundles::main_of},
                      {"regplug_reload", reload::main_of},
                      {"regplug_soak", soak::main_of},
                      {"regplug_units", units::main_of},
                      {"regplug_verdict", verdict::main_of}});
}
