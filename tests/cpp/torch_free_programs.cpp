// The programs that include no header of torch.
#include <regplug/golden.h>
// the header above is compiled with nothing before it
#include "aoti_golden.cpp"
#include "aoti_life.cpp"
#include "aoti_reload.cpp"
#include "by_name.h"
#include "more_inputs.cpp"
#include "open_bundles.cpp"
#include "units.cpp"
// the last, because its names are in no namespace
#define main main_of_run
#include <regplug-run/main.cpp>
#undef main

int main(int argc, char** argv) {
  return run_by_name(argc, argv,
                     {{"regplug_aoti_golden", aoti_golden::main_of},
                      {"regplug_aoti_life", aoti_life::main_of},
                      {"regplug_aoti_open", open_bundles::main_of},
                      {"regplug_aoti_reload", aoti_reload::main_of},
                      {"regplug_more_inputs", more_inputs::main_of},
                      {"regplug_run", main_of_run},
                      {"regplug_units", units::main_of}});
}
